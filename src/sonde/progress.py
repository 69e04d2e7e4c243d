"""Long work tells how far it is; whoever watches decides how that looks.

    track      what a loop wraps itself in: `with track("reading", 1000, "rows") as advance: advance(64)`
    watching   what a front end wraps a call in, to be told

The library itself never prints: without a watcher nothing happens.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Advance = Callable[[int], None]
Watcher = Callable[[str, int | None, str], AbstractContextManager[Advance]]

_watcher: ContextVar[Watcher | None] = ContextVar("sonde_watcher", default=None)


def track(stage: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
    """Open a stage of `total` units (None = unknown); the context gives a function that advances it."""
    watcher = _watcher.get()
    return watcher(stage, total, unit) if watcher else nullcontext(_ignore)


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
