"""Long work tells how far it is; whoever watches decides how that looks.

track      what a loop wraps itself in: `with track("reading", 1000, "rows") as advance: advance(64)`
tracked    the same for a sequence: `for item in tracked(items, "training", "folds")`
announce   a sentence about what is going to be done
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
Listener = Callable[[str], None]

_watcher: ContextVar[Watcher | None] = ContextVar("sonde_watcher", default=None)
_listener: ContextVar[Listener | None] = ContextVar("sonde_listener", default=None)


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


def announce(sentence: str) -> None:
    """Say what is going to be done, before it starts."""
    listener = _listener.get()
    if listener:
        listener(sentence)


@contextmanager
def watching(watcher: Watcher, listener: Listener | None = None) -> Iterator[None]:
    """Send every stage opened inside this context to `watcher`, and every announcement to `listener`."""
    tokens = _watcher.set(watcher), _listener.set(listener)
    try:
        yield
    finally:
        _watcher.reset(tokens[0])
        _listener.reset(tokens[1])


def _ignore(_: int) -> None:
    return None
