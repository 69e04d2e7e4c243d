"""Lanes: on a CPU several batches go through a model side by side, each on one thread.

Lanes    runs a function over batches, in lanes
LANES    there is one a process
Copies   copies of what runs a model, which share its weights: one for each lane

Threads that share a pass wait for one another at the end of each of its operations, and all but one of them while
Python goes from one operation to the next; where another program, or another guest of the same machine, has taken a
core for a moment, all wait for it. In float32, two cores without units for matrices, all-MiniLM-L6-v2: 512 texts of
AG News take 10.1 to 11.2 ms each in two lanes and 13.6 in passes on two threads, 64 of IMDb 43 to 46 and 64; one text
of AG News takes 33 ms on one thread and 51 on two, at 32 and 73 ms of processor time.
`torch.set_num_threads(1)` switches lanes off; a model that cannot be copied runs one batch at a time, on all threads.
"""

import copy
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger(__name__)

LITTLE = 10**10
"""Multiplications of a call, times the threads that could share them, up to which it takes one thread: 470 tokens of
all-MiniLM-L6-v2 on two cores. The more threads there are, the more a call gains from all of them."""

AHEAD = 3
"""Batches a lane that are begun before the first of them is taken: enough that a long one keeps no other lane idle."""

_REFUSALS = (AttributeError, RuntimeError, TypeError, ValueError)
"""What models raise that cannot be copied: copy and pickle name no error of their own."""


class Lanes:
    """Threads that each run a batch."""

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()

    def each(self, work: Callable[[T], U], items: Sequence[T], lanes: int) -> Iterator[U]:
        """`work` of each item, in their order; as `map` if there is one lane.

        At most `AHEAD` items a lane are worked on or wait to be taken; what waits is dropped after an error.
        """
        if lanes < 2:
            yield from map(work, items)
            return
        pool = self._pool(lanes)
        ahead: deque[Future[U]] = deque()
        try:
            for item in items:
                if len(ahead) == AHEAD * lanes:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(work, item))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def forget(self) -> None:
        """Begin anew: in a process that was forked the threads are missing."""
        self.__init__()  # type: ignore[misc]

    def _pool(self, lanes: int) -> ThreadPoolExecutor:
        with self._lock:
            if lanes not in self._pools:
                self._pools[lanes] = _single_threaded(lanes)
            return self._pools[lanes]


LANES = Lanes()
"""There is one a process: callers at the same time share its threads."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LANES.forget)


def _single_threaded(count: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one. Its number is of a thread, which begins with the last that was set anywhere."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "sonde-lane", _begin)
    all_there = threading.Barrier(count)
    for _ in pool.map(lambda _: all_there.wait(), range(count)):
        pass
    torch.set_num_threads(threads)
    return pool


def _begin() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # before it is asked once, a thread takes the last number set anywhere


class Copies(Generic[T]):
    """Copies of an object that runs a model, each used by one thread at a time.

    Parameters
    ----------
    first : object
        The first of them.
    shared : function
        Its tensors that all copies share: parameters and buffers.
    """

    def __init__(self, first: T, shared: Callable[[], Iterator[Tensor]]) -> None:
        self._first, self._shared = first, shared
        self._free: SimpleQueue[T] = SimpleQueue()
        self._free.put(first)
        self._count = 1
        self._can_grow = True
        self._gathering = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def one(self) -> Iterator[T]:
        """Any that is free, as soon as one is; the first within `alone`."""
        if self._is_owned():
            yield self._first
            return
        own = self._free.get()
        try:
            yield own
        finally:
            self._free.put(own)

    @contextmanager
    def alone(self) -> Iterator[T]:
        """The first, while no other is in use. What is called meanwhile, in the same thread, may use it too."""
        if self._is_owned():
            yield self._first
            return
        with self._gathering:
            idle: list[T] = []
            try:
                while len(idle) < self._count:
                    idle.append(self._free.get())
                self._owner = threading.get_ident()
                yield self._first
            finally:
                self._owner = None
                for each in idle:
                    self._free.put(each)

    def grow(self, count: int) -> int:
        """See to it that there are so many, and return how many may be used: one if it cannot be copied, or is taken
        `alone` by this thread.
        """
        if self._is_owned():
            return 1
        if self._count < count and self._can_grow:
            with self.alone() as first:  # none is in use: no hook stands in a model that is copied
                try:
                    while self._count < count:
                        self._free.put(copy.deepcopy(first, {id(one): one for one in self._shared()}))
                        self._count += 1
                except _REFUSALS as reason:
                    self._can_grow = False
                    logger.info("this model runs one batch at a time: %s", reason)
        return min(self._count, count)

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()
