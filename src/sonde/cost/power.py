"""Power: energy counters that the hardware has.

counters   those of this machine that can be read: RAPL zones of the processor, NVIDIA GPUs through NVML
Counter    one of them
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of Intel's and AMD's Running Average Power Limit (RAPL)."""
_ZONES = ("package", "dram")
"""`core` and `uncore` are parts of `package`, `psys` holds everything a second time."""


@dataclass(frozen=True)
class Counter:
    """An energy counter."""

    name: str
    """Such as `RAPL package-0` or `NVML GPU 0`."""
    read: Callable[[], float]
    """Joules since some point in the past."""
    range_joules: float | None = None
    """Where the counter starts at 0 again; None if it never does."""

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to the next, across at most one start at 0."""
        if after >= before or self.range_joules is None:
            return max(0.0, after - before)
        return after + self.range_joules - before


def counters() -> list[Counter]:
    """Every counter of this machine that answers; RAPL is often readable by root alone.

    None where a GPU is in use that tells nothing: what the processor drew would pass for all of it.
    """
    gpus = _nvml()
    if not gpus and _uses_gpu():
        logger.info("no counter of the GPU can be read (is nvidia-ml-py installed?): energy is estimated")
        return []
    return [*_rapl(POWERCAP), *gpus]


def _uses_gpu() -> bool:
    torch = sys.modules.get("torch")  # who has not imported it uses none
    return torch is not None and bool(torch.cuda.is_available())


def _rapl(root: Path) -> list[Counter]:
    found: list[Counter] = []
    for path in sorted(root.glob("*:*/energy_uj")) if root.is_dir() else []:
        try:
            name = (path.parent / "name").read_text().strip()
            span = float((path.parent / "max_energy_range_uj").read_text()) / 1e6
            _microjoules(path)
        except (OSError, ValueError) as error:
            logger.info("%s cannot be read: %s", path, error)
            continue
        if name.startswith(_ZONES) and all(f"RAPL {name}" != one.name for one in found):  # -mmio shows it once more
            found.append(Counter(f"RAPL {name}", lambda path=path: _microjoules(path), span))  # type: ignore[misc]
    return found


def _microjoules(path: Path) -> float:
    return float(path.read_text()) / 1e6


def _nvml() -> list[Counter]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [counter for handle in _handles(pynvml) if (counter := _gpu(pynvml, *handle)) is not None]
    except pynvml.NVMLError as error:
        logger.info("NVML does not answer: %s", error)
        return []


def _handles(pynvml: Any) -> list[tuple[int, Any]]:
    """(number, handle) of each GPU that this process may use."""
    import torch

    if not torch.cuda.is_available():
        return []
    numbers = range(torch.cuda.device_count())
    names = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]
    return [(number, pynvml.nvmlDeviceGetHandleByUUID(name)) for number, name in zip(numbers, names, strict=True)]


def _gpu(pynvml: Any, number: int, handle: Any) -> Counter | None:
    """The counter of one GPU; None before Volta, which has none."""

    def read() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # millijoules

    try:
        read()
    except pynvml.NVMLError as error:
        logger.info("GPU %d has no energy counter: %s", number, error)
        return None
    return Counter(f"NVML GPU {number}", read)
