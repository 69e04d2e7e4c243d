"""Scripts of the checkout that stand outside the package, as modules.

CHECKOUT, BENCHMARKS   folders
loaded                 path -> module
benchmark              name of a file of benchmarks/ -> module
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
BENCHMARKS = CHECKOUT / "benchmarks"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def benchmark(name: str) -> Any:
    if str(BENCHMARKS) not in sys.path:  # where they find each other when they are run
        sys.path.append(str(BENCHMARKS))
    return loaded(BENCHMARKS / f"{name}.py")
