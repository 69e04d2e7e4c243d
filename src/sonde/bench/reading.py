"""Texts are read before the first fit: no fit pays for what the next one finds in the store.

read_all   activations into the store, and what that took
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sonde.cost import Meter
from sonde.errors import ArgumentError
from sonde.read.blocks import Block, Source
from sonde.read.extract import estimate, extract, outstanding
from sonde.read.sources import open_store, prepare


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
