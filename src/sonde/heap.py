"""What becomes of memory that is freed: kept for what comes next, and handed back now and then.

HEAP   there is one a process
Heap   tells the C library
"""

import ctypes
import os
from contextlib import suppress
from typing import Any

HELD_BYTES = 2**30
"""Free memory at the end of the heap that glibc keeps: the values of 4,000 texts at every site, and what makes them."""

HEAP_BYTES = 32 * 2**20
"""Arrays of up to so many bytes come from the heap; glibc allows no more. The activations of a batch are smaller."""

EVERY_TOKENS = 2**17
"""After so many tokens, some seconds of work, free memory goes back to the system. It costs 1% of the time; with 16
times as many, 100,000 rows of SST-2 held 1.05 to 1.13 times the memory of 10,000, with these .98 to 1.01."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


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
