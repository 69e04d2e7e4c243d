"""Long work tells how far it is; whoever watches decides how that looks.

track      what a loop wraps itself in: `with track("reading", 1000, "rows") as advance: advance(64)`
tracked    the same for a sequence: `for item in tracked(items, "training", "folds")`
watching   what a front end wraps a call in, to be told

The library itself never prints: without a watcher nothing happens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Advance = Callable[[int], None]
Watcher = Callable[[str, int | None, str], AbstractContextManager[Advance]]

_watcher: ContextVar[Watcher | None] = ContextVar("sonde_watcher", default=None)


def track(stage: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
    """Open a stage of `total` units (None = unknown); the context gives a function that advances it."""
    watcher = _watcher.get()
    return watcher(stage, total, unit) if watcher else nullcontext(_ignore)


def tracked(items: Sequence[Item], stage: str, unit: str) -> Iterator[Item]:
    """Go through items, advancing a stage after each."""
    with track(stage, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Send every stage opened inside this context to `watcher`."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def _ignore(_: int) -> None:
    return None
