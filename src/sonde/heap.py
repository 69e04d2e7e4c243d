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

HEAP_BYTES = {"bfloat16": 32 * 2**20, "float32": 2**20}
"""Arrays of up to so many bytes come from the heap. In bfloat16 as many as glibc allows: the activations of a batch are
smaller. In float32, where no two batches are of one size, what is larger is mapped by itself and leaves no hole: of
60,000 rows of SST-2 the quarters peak at 628, 642, 649 and 651 MB, with 4 MiB at 717, 733, 738 and 758, with 32 at 816,
862, 875 and 879. The processor's time, in seven interleaved runs over six layers, is .94 to 1.04 of that with 4 MiB."""

EVERY_TOKENS = 2**17
"""After so many tokens free memory goes back to the system. In bfloat16 it costs 1% of the time; with 16 times as many,
100,000 rows of SST-2 held 1.05 to 1.13 times the memory of 10,000, with these .98 to 1.01."""

EVERY_SECONDS = 2.0
"""And after reading for so long, within a window of texts as well as after it: in float32 free memory falls to pieces
sooner. It costs .01 to .03 s each time."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


class Heap:
    """What the C library does with memory that is freed, where it can be told; glibc can.

    Left alone, glibc returns the activations of one layer to the system before the next layer asks for as much, and
    every page is then faulted in anew. What it keeps, on the other hand, it keeps in pieces between the compiled
    products that oneDNN holds for good: what comes next does not fit in, and memory grows without end.

    Attributes
    ----------
    tokens, seconds : int, float
        That were read, and spent on it, since free memory last went back to the system.
    """

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self._call: Any = None
        self._held = 0

    def hold(self, dtype: str) -> None:
        """Keep what is freed from now on, as suits a model of this dtype; or as the environment says."""
        largest = HEAP_BYTES.get(dtype, HEAP_BYTES["bfloat16"])
        if self._held != largest:
            self._held = largest
            with suppress(AttributeError, OSError, TypeError):  # macOS, musl; Windows
                library = ctypes.CDLL(None)
                self._call = library.malloc_trim
                if not any(name in os.environ for name in _OWN_SETTINGS):
                    library.mallopt(_M_MMAP_THRESHOLD, largest)
                    library.mallopt(_M_TRIM_THRESHOLD, HELD_BYTES)

    def read(self, tokens: int, seconds: float) -> None:
        """Count tokens that were read, and how long it took; every now and then, return free memory to the system."""
        self.tokens += tokens
        self.seconds += seconds
        if self.tokens >= EVERY_TOKENS or self.seconds >= EVERY_SECONDS:
            self.tokens, self.seconds = 0, 0.0
            if self._call is not None:
                self._call(0)


HEAP = Heap()
"""There is one a process."""
