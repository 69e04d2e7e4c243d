"""Texts are read before the first fit: no fit pays for what the next one finds in the store.

into_store   of several splits, what is not there
read_all     activations into the store, and what that took
holds        whether the store has them already
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from sonde.bench.cells import attempted
from sonde.cost import Meter
from sonde.errors import ArgumentError
from sonde.read.blocks import Block, Source
from sonde.read.extract import estimate, extract, outstanding
from sonde.read.reader import FEW_ROWS
from sonde.read.sources import open_store, prepare

Wanted = tuple[Mapping[int, Source], Sequence[Block]]
"""What is read, and of which backbones."""


def into_store(
    splits: Mapping[str, Sequence[str]],
    wanted: Callable[[], Wanted],
    cache: Any,
    put: Callable[[str, dict[str, Any]], None],
    *,
    new: Collection[str],
    due: bool,
) -> bool:
    """Read the splits that have not been read yet and, where a fit is due, what the store has lost of others since.

    Parameters
    ----------
    splits : mapping of str to sequence of str
        Name -> texts.
    wanted : callable
        Opens the backbones.
    cache : as in `TextClassifier`
    put : callable
        Gets name and figures of each new split, or why it was refused, as soon as they are known.
    new : collection of str
        Names of splits without figures.
    due : bool

    Returns
    -------
    bool
        Whether the store holds all of them, so that no fit reads.
    """
    found = []
    for name, texts in splits.items():
        if name in new or due:
            found.append(attempted(partial(_read, name, texts, wanted, cache, name in new)))
        if name in new:
            put(name, found[-1])
    if any("failed" in one for one in found):
        return False
    return not any(found) or all(holds(texts, *wanted(), cache) for texts in splits.values())


def _read(name: str, texts: Sequence[str], wanted: Callable[[], Wanted], cache: Any, new: bool) -> dict[str, Any]:
    """What reading took; nothing where it is not new and the store holds it."""
    sources, blocks = wanted()
    if not new and holds(texts, sources, blocks, cache):
        return {}
    return read_all(texts, sources, blocks, cache, f"reading_{name}")


def read_all(
    texts: Sequence[str], sources: Mapping[int, Source], blocks: Sequence[Block], cache: Any, stage: str = "reading"
) -> dict[str, Any]:
    """Read blocks of all texts into the store.

    Parameters
    ----------
    texts : sequence of str
    sources, blocks : as in `sonde.read.extract.extract`
    cache : as in `TextClassifier`
    stage : str
        Name of the stage in the cost.

    Returns
    -------
    dict
        `rows`; `tokens` and `lost_tokens` (cut off), summed over texts and backbones; `max_tokens` and `dtype` of the
        first backbone; `stored_share` of the bytes that the store held before, which cost nothing; `cost`.

    Raises
    ------
    ArgumentError
        If there is no store.
    """
    store, meter, unique = open_store(cache), Meter(), list(dict.fromkeys(texts))
    if store is None:
        raise ArgumentError("The bench needs a store, so that no fit pays for reading; leave out --no-cache.")
    whole, missing = estimate(len(unique), sources, blocks), outstanding(0, sources, blocks, store, unique)
    tokens = lost = 0
    with meter.stage(stage):
        prepare(len(texts), sources, blocks, store, texts=texts)
        for window in extract(texts, sources, blocks, store, total=len(texts)):
            tokens, lost = tokens + int(window.tokens.sum()), lost + int(window.lost.sum())
    first = next(iter(sources.values()))
    return {
        "rows": len(texts),
        "tokens": tokens,
        "lost_tokens": lost,
        "max_tokens": first.view.max_tokens,
        "dtype": str(first.backbone.dtype).removeprefix("torch."),
        "stored_share": round(1 - missing / max(whole, 1), 3),
        "cost": meter.cost().to_dict(),
    }


def holds(texts: Sequence[str], sources: Mapping[int, Source], blocks: Sequence[Block], cache: Any) -> bool:
    """Whether nothing is left to read; arguments as in `read_all`.

    A store with a limit never keeps fewer than `FEW_ROWS` new rows: there, so many may be lacking.
    """
    store = open_store(cache)
    if store is None:
        return False
    spared = 0 if store.limit_bytes is None else estimate(FEW_ROWS - 1, sources, blocks)
    return outstanding(0, sources, blocks, store, list(dict.fromkeys(texts))) <= spared
