"""Tables of the papers, ours beside theirs.

BENCHES   name of a benchmark -> the function that runs it and returns the files it wrote
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _lazily(module: str) -> Callable[..., list[Path]]:
    def run(**settings: Any) -> list[Path]:
        written: list[Path] = importlib.import_module(f"sonde.bench.{module}").run(**settings)
        return written

    return run


BENCHES: dict[str, Callable[..., list[Path]]] = {
    name: _lazily(name) for name in ("tables", "collapse", "long_text", "trust")
}
