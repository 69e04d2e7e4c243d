"""What a figure was measured on: printed beside every table that a command writes.

describe   machine, versions and date as plain data
sentence   the same as one line of Markdown
sentences  such lines for all cells of a table
Stopwatch  wall-clock and processor seconds of a stage
"""

import datetime
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sonde.precision import bfloat16_units

PACKAGES = ("sonde", "torch", "transformers", "scikit-learn", "numpy")


def describe() -> dict[str, Any]:
    """Processor and its units for bfloat16, cores, memory, versions, date."""
    return {
        "processor": _processor(),
        "units": bfloat16_units(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def sentence(machine: dict[str, Any]) -> str:
    """One line that says where and with what figures were made."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    units = f" with {machine['units']}" if machine.get("units") else ""
    return (
        f"Measured on {machine['date']}: {machine['processor']}{units}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, "
        f"{machine['system']}, Python {machine['python']}, {versions}."
    )


def sentences(cells: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each machine on which cells were measured, with the first and the last day."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if "machine" in cell:
            groups.setdefault(repr({**cell["machine"], "date": ""}), []).append(cell["machine"])
    for group in groups.values():
        days = sorted({one["date"] for one in group})
        yield sentence({**group[0], "date": " to ".join(dict.fromkeys([days[0], days[-1]]))})


class Stopwatch:
    """Runs from its making; processor seconds count all threads and hardly move when the machine has other work."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` since the start."""
        seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"seconds": round(seconds, 6), "cpu_seconds": round(cpu, 6)}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
