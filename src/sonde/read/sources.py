"""From what a user says to what can be read: names to backbones, specifications to blocks, a cache to a store.

open_sources   ids or paths -> backbones with their views
max_tokens_of, view_of   the `max_tokens` argument -> what a backbone sees of a text
open_store     the `cache` argument -> a Store or None
expand_blocks  a site specification and a pooling -> the blocks of one source
block_of       a block name -> the Block
layers_run     how many layers run for some blocks
prepare        make sure that the store can hold what is about to be read
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sonde.errors import ArgumentError, BackboneError, choose
from sonde.progress import announce
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Block, Source
from sonde.read.extract import estimate, outstanding
from sonde.read.pooling import POOLINGS
from sonde.read.sites import DECODER, MAIN, expand
from sonde.read.store import DEFAULT_LIMIT_BYTES, Store, default_root, opened
from sonde.read.view import DEFAULT_MAX_TOKENS, LONG_TEXT, View

Cache = str | Path | bool | None
MaxTokens = int | Sequence[int | None] | None

MIN_TOKENS = 4
"""Fewer leave no room for a word between the special tokens of an encoder."""


def open_sources(
    names: Mapping[int, str], *, max_tokens: MaxTokens, long_text: str, dtype: str, device: str
) -> dict[int, Source]:
    """Load backbones and give each its view.

    Parameters
    ----------
    names : mapping of int to str
        Hub ids, folders, or the id of the offline bundle.
    max_tokens : int, sequence of int or None, or None
        For all backbones, or one entry for each; None = the checkpoint's positions, at most 512.
    long_text, dtype, device : str
        As in `TextClassifier`.

    Raises
    ------
    ArgumentError, BackboneError
    """
    choose("long_text", long_text, LONG_TEXT)
    sources = {}
    for index, name in names.items():
        bound = max_tokens_of(max_tokens, index)
        backbone = load_backbone(name, dtype=dtype, device=device)
        sources[index] = Source(backbone, view_of(name, backbone.max_positions, bound, long_text))
    return sources


def view_of(name: str, positions: int | None, bound: int | None, long_text: str) -> View:
    """How a backbone of so many positions (None = no bound) sees texts; `ArgumentError` if it has fewer than asked."""
    if bound is not None and positions is not None and bound > positions:
        raise ArgumentError(f"max_tokens is {bound}, but {name} has {positions} positions. Give at most {positions}.")
    return View(bound or min(positions or DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS), long_text)


def max_tokens_of(max_tokens: MaxTokens, index: int) -> int | None:
    """The bound of one backbone, out of one for all or one for each; `ArgumentError` if it is none."""
    bound = max_tokens
    if isinstance(max_tokens, Sequence) and not isinstance(max_tokens, str):
        if index >= len(max_tokens):
            raise ArgumentError(f"max_tokens has {len(max_tokens)} entries; give one number, or one for each backbone.")
        bound = max_tokens[index]
    if bound is None or (isinstance(bound, int | np.integer) and not isinstance(bound, bool) and bound >= MIN_TOKENS):
        return None if bound is None else int(bound)
    raise ArgumentError(f"max_tokens is {bound!r}; it must be a whole number of at least {MIN_TOKENS}, or None.")


def open_store(cache: Cache) -> Store | None:
    """`"auto"` = the default cache (20 GB, least recently used first), a path = a store there, None or False = none."""
    if cache is None or cache is False:
        return None
    if cache == "auto" or cache is True:
        return opened(default_root(), DEFAULT_LIMIT_BYTES)
    if not isinstance(cache, str | Path):
        raise ArgumentError(f"cache is {cache!r}; give 'auto', the path of a folder, or False for no store.")
    return opened(cache)


def expand_blocks(index: int, source: Source, site: str, pooling: str) -> list[Block]:
    """All blocks of one source that a site specification names, shallowest first.

    Raises
    ------
    BackboneError
        If the site does not exist, or the pooling cannot be had there.
    """
    backbone = source.backbone
    sites = expand(site, backbone.layers)
    blocks = []
    for place in sites:
        whole = place.kind in ("sentence", "pooler")
        if not whole:
            choose("pooling", pooling, POOLINGS, BackboneError)
        backbone.check(place, None if whole else pooling)
        blocks.append(Block(index, place, "" if whole else pooling))
    return blocks


def block_of(name: str, sources: Mapping[int, Source]) -> Block:
    """The block that a learner calls `name`."""
    index, site, *pooling = name.split("/")
    (place,) = expand(site, sources[int(index)].backbone.layers)
    return Block(int(index), place, "".join(pooling))


def layers_run(blocks: Iterable[Block], sources: Mapping[int, Source]) -> int:
    """Layers that a text runs through, of all backbones together: of each as many as its deepest block needs."""
    deepest: dict[tuple[int, str], int] = {}
    for block in blocks:
        backbone = sources[block.backbone].backbone
        site = backbone.sentence.site if block.site.kind == "sentence" else block.site
        layer = backbone.layers[site.stack] if site.layer is None else site.layer
        place = (block.backbone, site.stack)
        deepest[place] = max(deepest.get(place, 0), layer)
        if site.stack == DECODER:  # it reads what the whole encoder made
            deepest[block.backbone, MAIN] = backbone.layers[MAIN]
    return sum(deepest.values())


def prepare(
    rows: int,
    sources: Mapping[int, Source],
    blocks: Sequence[Block],
    store: Store | None,
    texts: Iterable[str] | None = None,
) -> int:
    """Bytes that the rows take in a store at most; refused before work starts if what is missing does not fit.

    With `texts` (gone through once) what is missing is known exactly. Announces the plan: rows, sites, bytes.

    Raises
    ------
    StoreError
        If the disk, or the limit of the shared cache, cannot hold it.
    """
    needed = estimate(rows, sources, blocks)
    missing = needed
    if store is not None:
        missing = outstanding(rows, sources, blocks, store, texts)
        store.reserve(missing)
    announce(_plan(rows, blocks, needed, missing, store))
    return needed


def _plan(rows: int, blocks: Sequence[Block], needed: int, missing: int, store: Store | None) -> str:
    places = {(block.backbone, block.site) for block in blocks}
    kept = sum(len(block.columns) for block in blocks if block.columns is not None)
    what = f", {kept:,} neurons of them," if kept else ""
    where = f"{_size(missing)} to write to {store.root}" if store else f"{_size(needed)}, kept nowhere"
    return f"plan: {rows:,} texts, {len(places)} sites{what} in {len(blocks)} blocks: {where}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
