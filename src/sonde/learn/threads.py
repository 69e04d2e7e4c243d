"""Small tensors are worked on by one thread.

    one_thread   for as long as a block runs

Several cores would wait for one another longer than they work: 12 times as long was measured for 398 rows on two cores
that had other work.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.Lock()
_inside = 0
_usual = 1


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Let this thread's tensors be worked on by one thread, if `wanted`; afterwards as before the first of all blocks.

    The number belongs to the process and to each thread of it, so that blocks of several threads must know each other.
    """
    global _inside, _usual
    if not wanted:
        yield
        return
    with _LOCK:
        if not _inside:
            _usual = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            torch.set_num_threads(_usual)
