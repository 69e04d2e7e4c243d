"""Memory: what a batch leaves is kept for the next; a batch for which there is not enough is halved.

Halving            splits the batches of one reader, as far as it had to
is_out_of_memory   whether an error says that memory did not suffice
HEAP               keeps freed memory in this process; hands it back to the system now and then
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch

from sonde.errors import ReadingError, SondeError, warn

T = TypeVar("T")

_SIGNS = (
    "out of memory",
    "defaultcpuallocator",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "could not create a primitive",
    "could not execute a primitive",
)
"""What torch says in a plain RuntimeError: its allocator on the CPU, MPS, libraries of CUDA; oneDNN, which keeps the
reason to itself."""

HELD_BYTES = 2**30
"""Free memory at the end of the heap that glibc keeps: the values of 4,000 texts at every site, and what makes them."""

HEAP_BYTES = 32 * 2**20
"""Arrays of up to so many bytes come from the heap; glibc allows no more. The activations of a batch are smaller."""

EVERY_TOKENS = 2**21
"""After so many tokens, a minute or two of work, free memory goes back to the system."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


class Halving:
    """Splits batches; what was too much once is not tried again.

    Parameters
    ----------
    name : str
        The backbone, for the sentence where one text alone is too much.

    Attributes
    ----------
    parts : int
        Into how many parts a batch is split from the beginning; doubled when memory does not suffice.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts = 1

    def each(self, batch: np.ndarray, read: Callable[[np.ndarray], T]) -> list[T]:
        """`read` of the parts of a batch, in order.

        Raises
        ------
        ReadingError
            If memory does not suffice for a single row.
        """
        left = deque(np.array_split(batch, min(self.parts, len(batch))))
        done: list[T] = []
        while left:
            part = left.popleft()
            try:
                done.append(read(part))
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise ReadingError(
                        f"Memory does not suffice for one text in the backbone {self.name} "
                        f"({next(iter(str(error).splitlines()), 'out of memory')}). Read fewer tokens (max_tokens), in "
                        "bfloat16 (dtype='bfloat16'), or on another device."
                    ) from error
            # not in the handler: while it runs, the error holds the tensors of the pass that failed
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()  # what other sizes of batch have left
            warn(
                f"Memory did not suffice for a batch of {len(part):,} texts in the backbone {self.name}; it is read in "
                "halves, and so are those that follow. The values stay the same.",
                "halved_batches",
            )
            fits, rest = len(part) // 2, np.concatenate([part, *left])
            left = deque(np.array_split(rest, -(-len(rest) // fits)))
            self.parts = max(self.parts, -(-len(batch) // fits))
        return done


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch, its allocator or Python that had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, SondeError):  # it may repeat what torch said, of one text that cannot be halved
        return False
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class Heap:
    """What the C library does with memory that is freed, where it can be told; glibc can.

    Left alone, glibc returns the activations of one layer to the system before the next layer asks for as much, and
    every page is then faulted in anew. What it keeps, on the other hand, it keeps in pieces between the compiled
    products that oneDNN holds for good: what comes next does not fit in, and memory grows without end.

    Attributes
    ----------
    tokens : int
        Tokens that were read since free memory last went back to the system.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._call: Any = None

    def hold(self) -> None:
        """Keep what is freed from now on, unless the environment says how memory is to be kept."""
        if self._call is None:
            with suppress(AttributeError, OSError, TypeError):  # macOS, musl; Windows
                library = ctypes.CDLL(None)
                self._call = library.malloc_trim
                if not any(name in os.environ for name in _OWN_SETTINGS):
                    library.mallopt(_M_MMAP_THRESHOLD, HEAP_BYTES)
                    library.mallopt(_M_TRIM_THRESHOLD, HELD_BYTES)

    def read(self, tokens: int) -> None:
        """Count tokens; every now and then, return free memory to the system."""
        self.tokens += tokens
        if self.tokens >= EVERY_TOKENS:
            self.tokens = 0
            if self._call is not None:
                self._call(0)


HEAP = Heap()
"""There is one a process."""
