"""Precision: which device and which floating type a backbone runs with, and heads are trained with.

choose_device   "auto", "cpu", "cuda", "cuda:1", "mps" -> torch.device
choose_dtype    "auto", "float32", "bfloat16" -> torch.dtype, from what the hardware reports and a measurement
reported_dtype  a device -> torch.dtype, from what the hardware reports alone
bfloat16_units  what the processor multiplies bfloat16 with
DTYPES          the explicit types by name
"""

import os
import time
from functools import cache
from pathlib import Path

import torch

from sonde.errors import ArgumentError, BackboneError, choose

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""float16 is left out: its largest value is 65,504, and the massive activations of many decoders overflow it."""
_FAST = frozenset({"amx_bf16", "avx512_bf16"})  # of x86: large products in half the time of float32, or less
_UNITS = frozenset({"bf16", "sve_bf16"})  # of ARM: what torch makes of them depends on how it was built
_HELD_BACK = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # variables that keep oneDNN from using what there is
_LEAST_GAIN = 1.3  # below this, the coarser type buys too little
_GEMM = (1024, 768, 768)  # tokens x width x width: a batch of a small encoder, 1.2 GFLOP
_REPEATS = 7  # the best of 7 stands against other work on the machine


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; "auto" takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        existing = ", ".join(kind for kind, yes in there.items() if yes)
        raise BackboneError(f"Device {name!r} does not exist on this machine; it must be auto or one of: {existing}.")
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        if number >= torch.cuda.device_count():
            raise BackboneError(f"Device {name!r} does not exist: this machine has {torch.cuda.device_count()} GPU.")
        return torch.device("cuda", number)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the floating type of this name; "auto" decides by the hardware.

    CUDA: bfloat16 where supported. MPS: float32. CPU: bfloat16 on x86 with units for it (AMX, AVX512-BF16) that oneDNN
    may use; on ARM with units, and where oneDNN is off or held back, if a short matrix product runs at least 1.3 times
    faster with it; without such units it can be a hundred times slower. A measurement can come out differently on a
    busy machine, so it is made only where needed.
    """
    if name != "auto":
        return DTYPES[choose("dtype", name, ["auto", *DTYPES], ArgumentError) if name not in DTYPES else name]
    reported = reported_dtype(device)
    if reported == torch.float32 and device.type == "cpu" and _has(_FAST | _UNITS) and _bfloat16_gain() >= _LEAST_GAIN:
        return torch.bfloat16
    return reported


def reported_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where a GPU supports it or an x86 processor has units for it that oneDNN may use, else float32.

    Nothing is measured, so the same seed trains the same head in every process of a machine.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        used = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled  # type: ignore[no-untyped-call]
        fast = device.type == "cpu" and used and _has(_FAST) and not any(name in os.environ for name in _HELD_BACK)
    return torch.bfloat16 if fast else torch.float32


def bfloat16_units() -> str:
    """What the processor itself multiplies bfloat16 with, as it calls it: such as `amx_bf16`; or nothing."""
    return ", ".join(sorted(_reported(_FAST | _UNITS)))


def _has(features: frozenset[str]) -> bool:
    """Whether the processor reports one of these features."""
    return bool(_reported(features))


def _reported(features: frozenset[str]) -> frozenset[str]:
    """Those of these features that the processor reports."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    cpuinfo = Path("/proc/cpuinfo")  # older torch; absent elsewhere than on Linux
    words = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.is_file() else set()
    return features & (words | {name for name, there in capabilities.items() if there})


@cache
def _bfloat16_gain() -> float:
    """How many times faster a matrix product is in bfloat16 than in float32; some tens of milliseconds, once."""
    tokens, width, out = _GEMM
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(tokens, width, dtype=dtype), torch.ones(width, out, dtype=dtype)
        left @ right  # the first call sets up the kernel
        seconds[dtype] = min(_seconds(left, right) for _ in range(_REPEATS))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start
