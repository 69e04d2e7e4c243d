"""Tables of the papers, ours beside theirs.

BENCHES   name of a benchmark -> the function that runs it and returns the files it wrote
"""

import importlib
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from sonde.errors import ArgumentError


def _lazily(module: str) -> Callable[..., list[Path]]:
    def run(**settings: Any) -> list[Path]:
        function = importlib.import_module(f"sonde.bench.{module}").run
        unknown = settings.keys() - signature(function).parameters.keys()
        if "recipes" in unknown:
            raise ArgumentError(f"`sonde bench {module}` has its own recipes; leave out --recipe.")
        if unknown:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(unknown))
            raise ArgumentError(f"`sonde bench {module}` has no use for {options}; leave it out.")
        written: list[Path] = function(**settings)
        return written

    return run


_NAMES = (
    *("tables", "collapse", "long_text", "trust", "reasons", "ablation", "few", "depth", "sample", "comparison"),
    *("llmembed", "stc"),
)
BENCHES: dict[str, Callable[..., list[Path]]] = {name: _lazily(name) for name in _NAMES}
