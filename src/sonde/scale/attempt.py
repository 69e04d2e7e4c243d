"""Attempt: one worker's work on a part; a row that it cannot do is found by halving, and the others are done.

attempt   texts -> Outcome
Do, Found, Beat   what a worker does with texts, what it gives, and how it says that it is alive
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sonde.errors import InputError, SondeWarning
from sonde.progress import Advance, watching
from sonde.scale.outcome import Outcome, joined, lost

Found = tuple[dict[str, list[Any]], dict[str, int]]
Do = Callable[[list[str]], Found]
Beat = Callable[[int], None]

MOST_FAILURES = 64
"""More failed rows in one part are not odd rows: something else is wrong, and every row would be tried on its own."""


def attempt(do: Do, texts: list[str], start: int, beat: Beat) -> Outcome:
    """Do a part; where that fails, halve it until the rows that fail stand alone.

    Parameters
    ----------
    do : function
        Texts -> the new columns, and counts.
    texts : list of str
    start : int
        Rows of the file before the first.
    beat : function
        Called with a number of rows as they are done, in all as many as there are texts.

    Raises
    ------
    InputError
        The input is wrong, or a disk full: no other row would do better.
    Exception
        What the first failure was, if every row of two or more fails, or more than `MOST_FAILURES`.
    """
    found: list[Outcome] = []
    left = [(0, len(texts))]
    first: Exception | None = None
    with _beating(beat, len(texts)):
        while left:
            begin, end = left.pop()
            try:
                found.append(_done(do, texts[begin:end]))
            except InputError:
                raise
            except Exception as error:  # whatever a model does with an odd row must not cost the others
                first = first or error
                if end - begin > 1:
                    middle = (begin + end) // 2
                    left += [(middle, end), (begin, middle)]
                    continue
                found.append(lost(start + begin, _reason(error, start + begin)))
                failures = sum(len(one.failed) for one in found)
                if failures > MOST_FAILURES or failures == len(texts) > 1:
                    raise first from None
    return joined(found)


def _done(do: Do, texts: list[str]) -> Outcome:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SondeWarning)
        columns, counts = do(texts)
    said = [entry.message for entry in caught if isinstance(entry.message, SondeWarning)]
    return Outcome(len(texts), columns, counts, [], [(str(one), one.code, one.count) for one in said])


def _reason(error: Exception, row: int) -> str:
    """What went wrong, on one line; the row that a sentence counts from the beginning of the part is put right."""
    said = " ".join(str(error).split())
    return re.sub(r"\bfor row \d+", f"for row {row + 1}", said) or type(error).__name__


@contextmanager
def _beating(beat: Beat, rows: int) -> Iterator[None]:
    """Pass on how many rows are read, never more than there are, and the rest at the end."""
    told = 0

    def tell(count: int) -> None:
        nonlocal told
        fresh = min(count, rows - told)
        told += fresh
        beat(fresh)

    @contextmanager
    def watch(stage: str, total: int | None, unit: str) -> Iterator[Advance]:
        yield tell if (stage, unit) == ("reading", "rows") else lambda _: None

    with watching(watch):
        yield
    tell(rows - told)
