"""Memory: a batch for which it does not suffice is halved, and reading goes on.

Halving            splits the batches of one reader, as far as it had to
is_out_of_memory   whether an error says that memory did not suffice
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from sonde.errors import ReadingError, SondeError, warn

T = TypeVar("T")

logger = logging.getLogger(__name__)

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
    side_by_side : bool
        Whether batches may be read at the same time; no longer when memory did not suffice for that.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts = 1
        self.side_by_side = True

    def beside(self, batch: np.ndarray, read: Callable[[np.ndarray], T]) -> list[T] | None:
        """`read` of a batch beside others; None if memory does not suffice: it is for `each`, after the others."""
        if self.side_by_side:
            try:
                return [read(batch)]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.info("batches are read one at a time from now on: %s", error)
        self.side_by_side = False
        return None

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
