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
        if "recipes" in settings.keys() - signature(function).parameters.keys():
            raise ArgumentError(f"`sonde bench {module}` has its own recipes; leave out --recipe.")
        written: list[Path] = function(**settings)
        return written

    return run


_NAMES = ("tables", "collapse", "long_text", "trust", "reasons", "ablation", "few", "depth", "sample", "comparison")
BENCHES: dict[str, Callable[..., list[Path]]] = {name: _lazily(name) for name in _NAMES}
