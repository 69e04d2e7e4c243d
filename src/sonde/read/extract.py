"""The one reading path: texts -> pooled blocks, through the store.

    Block     which values: backbone, site, pooling
    Source    a backbone seen through a view
    Window    the blocks of a run of consecutive texts
    extract   texts -> windows, streamed
    read      texts -> whole arrays
    estimate  bytes that reading will put on disk
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sonde.errors import ReadingError
from sonde.progress import track
from sonde.read.backbone import Backbone
from sonde.read.batching import TOKEN_BUDGET, collate, plan
from sonde.read.sites import Site
from sonde.read.store import Column, Store, hash_texts
from sonde.read.view import Pieces, View, clean, filler_id, tokenise

logger = logging.getLogger(__name__)

WINDOW_ROWS = 4096
WINDOW_CHARACTERS = 4 * 2**20
"""Texts are read in windows of at most this many rows or characters: enough that sorting by length leaves hardly any
padding (under 2% on IMDb), little enough that a killed run repeats at most a few minutes and memory stays flat."""

FEW_ROWS = 64
"""Fewer new rows than this are not written to the store: a service would fill it with crumbs."""

TOKENS = ("tokens", "count")
"""The pseudo-block that remembers, for each text, its tokens and how many of them were lost."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class Block:
    """One array of values a text."""

    backbone: int
    """Index into the sources."""
    site: Site
    """Where the model is tapped."""
    pooling: str = ""
    """How tokens become one vector; empty for the site `sentence`, which brings its own."""

    @property
    def name(self) -> str:
        """`<backbone>/<site>/<pooling>`, the name that learners know."""
        return "/".join(filter(None, (str(self.backbone), str(self.site), self.pooling)))


@dataclass(frozen=True)
class Source:
    """A backbone seen through a view."""

    backbone: Backbone
    """The frozen model."""
    view: View
    """What it sees of a text."""


@dataclass(frozen=True)
class Window:
    """Blocks of consecutive texts."""

    start: int
    """Index of the first text."""
    blocks: dict[str, Float32[np.ndarray, "row dim"]]
    """Block name -> values."""
    tokens: Int64[np.ndarray, "source row"]
    """Tokens of each text, for each source."""
    lost: Int64[np.ndarray, "source row"]
    """Of these, tokens that the model did not see."""

    @property
    def rows(self) -> int:
        """Number of texts."""
        return int(self.lost.shape[1])


def extract(
    texts: Iterable[str],
    sources: Mapping[int, Source],
    blocks: Sequence[Block],
    store: Store | None = None,
    *,
    token_budget: int | None = None,
    total: int | None = None,
) -> Iterator[Window]:
    """Read texts in windows; memory does not grow with their number.

    Parameters
    ----------
    texts : iterable of str
        Read lazily, a window at a time. Equal texts within a window are read once; across windows the store serves
        them.
    sources : mapping of int to Source
        The backbones, each with its view, under the index that blocks name them by.
    blocks : sequence of Block
        What to read.
    store : Store, optional
        Rows that it holds are not read again; new rows are added, a whole shard at a time.
    token_budget : int, optional
        Padded tokens in one batch; by default what suits the device. Results agree for any value within 1e-5 relative
        in float32 and 2e-2 in bfloat16.
    total : int, optional
        Number of texts, for the progress bar.

    Yields
    ------
    Window

    Raises
    ------
    ReadingError
        If a value is not finite; names the row and the site.
    StoreError
        If the store's disk cannot be written.
    """
    readers = [_Reader(index, source, blocks, store, token_budget) for index, source in sources.items()]
    if store is not None:
        store.write_header()
    start = 0
    with track("reading", total, "rows") as advance:
        for window in _windows(texts):
            unique = list(dict.fromkeys(window))
            place = {text: row for row, text in enumerate(unique)}
            rows = np.array([place[text] for text in window])
            first = {row: start + i for i, row in reversed(list(enumerate(rows.tolist())))}
            keys = hash_texts(unique)
            parts = [reader.read(unique, keys, first) for reader in readers]
            values = {name: array[rows] for part in parts for name, array in part.blocks.items()}  # row dim
            counts = np.stack([part.counts[rows] for part in parts]) if parts else np.zeros((0, len(rows), 2), np.int64)
            yield Window(start, values, counts[:, :, 0], counts[:, :, 1])
            start += len(window)
            advance(len(window))


def read(
    texts: Sequence[str],
    sources: Mapping[int, Source],
    blocks: Sequence[Block],
    store: Store | None = None,
    *,
    token_budget: int | None = None,
) -> Window:
    """Read all texts into one window: each distinct text once, in any order, with or without a store."""
    unique = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(unique)}
    rows = np.array([place[text] for text in texts], dtype=np.int64)
    whole: dict[str, np.ndarray] = {}
    counts = np.zeros((2, len(sources), len(unique)), dtype=np.int64)
    for window in extract(unique, sources, blocks, store, token_budget=token_budget, total=len(unique)):
        stop = window.start + window.rows
        counts[0, :, window.start : stop] = window.tokens
        counts[1, :, window.start : stop] = window.lost
        for name, values in window.blocks.items():
            if name not in whole:
                whole[name] = np.empty((len(unique), values.shape[1]), dtype=np.float32)
            whole[name][window.start : stop] = values
    if len(unique) == len(texts):
        return Window(0, whole, counts[0], counts[1])
    return Window(0, {n: v[rows] for n, v in whole.items()}, counts[0][:, rows], counts[1][:, rows])


def estimate(rows: int, sources: Mapping[int, Source], blocks: Sequence[Block]) -> int:
    """Bytes that `rows` new texts take in a store."""
    total = 0
    for index, source in sources.items():
        pairs = {pair: site for block in blocks if block.backbone == index for pair, site in [_pair(block, source)]}
        width = sum(source.backbone.width(site) for site in pairs.values())
        total += rows * (width * source.backbone.dtype.itemsize + 8 + 16 * (len(pairs) + 1))
    return total


def columns(sources: Mapping[int, Source], blocks: Sequence[Block], store: Store) -> list[Column]:
    """The columns of `store` that these blocks live in."""
    return [column for i, s in sources.items() for column in _Reader(i, s, blocks, store, None).columns.values()]


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    window: list[str] = []
    characters = 0
    for text in texts:
        if window and (len(window) >= WINDOW_ROWS or characters + len(text) > WINDOW_CHARACTERS):
            yield window
            window, characters = [], 0
        window.append(clean(text))
        characters += len(text)
    if window:
        yield window


def _pair(block: Block, source: Source) -> tuple[Pair, Site]:
    """What is really read for a block: `sentence` stands for a site and a pooling of the backbone's own."""
    if block.site.kind == "sentence":
        sentence = source.backbone.sentence
        return (str(sentence.site), sentence.pooling or ""), sentence.site
    return (str(block.site), block.pooling), block.site


@dataclass(frozen=True)
class _Part:
    blocks: dict[str, np.ndarray]
    counts: np.ndarray  # row 2


class _Reader:
    """Reads the blocks of one source, what the store lacks only."""

    def __init__(
        self, index: int, source: Source, blocks: Sequence[Block], store: Store | None, token_budget: int | None
    ) -> None:
        self.source = source
        self.blocks = [block for block in blocks if block.backbone == index]
        resolved = [_pair(block, source) for block in self.blocks]
        self.sites = dict(resolved)
        self.names = {block.name: pair for block, (pair, _) in zip(self.blocks, resolved, strict=True)}
        self.token_budget = token_budget or TOKEN_BUDGET.get(source.backbone.device.type, TOKEN_BUDGET["cpu"])
        self.columns = {pair: store.column(self._about(pair)) for pair in [*self.sites, TOKENS]} if store else {}

    def read(self, texts: list[str], keys: np.ndarray, first: Mapping[int, int]) -> _Part:
        values = self._stored_or_read(texts, keys, first)
        counts = values.pop(TOKENS).numpy().astype(np.int64)
        blocks = {}
        for block in self.blocks:
            array = values[self.names[block.name]].float().numpy()
            sentence = block.site.kind == "sentence" and self.source.backbone.sentence.normalise
            blocks[block.name] = _unit(array) if sentence else array
        return _Part(blocks, counts)

    def _stored_or_read(self, texts: list[str], keys: np.ndarray, first: Mapping[int, int]) -> dict[Pair, Tensor]:
        wanted = [*self.sites, TOKENS]
        if not self.columns:
            return self._read(texts, wanted, first)
        missing = np.stack([~self.columns[pair].find(keys) for pair in wanted], axis=1)  # row pair
        fresh: list[tuple[np.ndarray, dict[Pair, Tensor]]] = []
        for pattern in np.unique(missing, axis=0):
            rows = np.flatnonzero((missing == pattern).all(axis=1))
            pairs = [pair for pair, lacks in zip(wanted, pattern, strict=True) if lacks]
            if pairs:
                values = self._read([texts[i] for i in rows], pairs, {j: first[i] for j, i in enumerate(rows.tolist())})
                fresh.append((rows, values))
                if len(rows) >= FEW_ROWS:
                    for pair in pairs:
                        self.columns[pair].append(keys[rows], values[pair])
        return {pair: self._gather(pair, keys, missing[:, i], fresh) for i, pair in enumerate(wanted)}

    def _gather(
        self, pair: Pair, keys: np.ndarray, missing: np.ndarray, fresh: list[tuple[np.ndarray, dict[Pair, Tensor]]]
    ) -> Tensor:
        parts = [(rows, values[pair]) for rows, values in fresh if pair in values]
        if not missing.all():
            parts.append((np.flatnonzero(~missing), self.columns[pair].read(keys[~missing])))
        out = torch.empty((len(keys), parts[0][1].shape[1]), dtype=parts[0][1].dtype)  # row dim
        for rows, values in parts:
            out[torch.from_numpy(rows)] = values
        return out

    def _read(self, texts: list[str], pairs: Sequence[Pair], first: Mapping[int, int]) -> dict[Pair, Tensor]:
        """Tokenise, batch, run the model, put rows back in order."""
        pieces = tokenise(texts, self.source.backbone.tokenizer, self.source.view)
        wanted = [(self.sites[pair], pair[1] or None) for pair in pairs if pair != TOKENS]
        values: dict[Pair, Tensor] = {}
        if wanted:
            backbone = self.source.backbone
            filler = filler_id(backbone.tokenizer)
            for batch in plan([len(ids) for ids in pieces.ids], self.token_budget):
                inputs = collate(pieces, batch, filler, backbone.causal)
                pooled = backbone.read(inputs.ids, inputs.mask, inputs.content, wanted)
                for (site, pooling), rows in pooled.items():
                    pair = (str(site), pooling or "")
                    if pair not in values:
                        values[pair] = torch.empty((len(pieces.ids), rows.shape[1]))  # piece dim
                    values[pair][torch.from_numpy(batch)] = rows
            _check_finite(values, pieces, first, backbone.name)
            values = {pair: _join(v, pieces, pair[1]).to(backbone.dtype) for pair, v in values.items()}
        values[TOKENS] = torch.from_numpy(np.stack([pieces.tokens, pieces.lost], axis=1).astype(np.int32))  # row 2
        return values

    def _about(self, pair: Pair) -> dict[str, object]:
        backbone = self.source.backbone
        dtype = "int32" if pair == TOKENS else str(backbone.dtype).removeprefix("torch.")
        return {
            "backbone": backbone.name,
            "fingerprint": backbone.fingerprint,
            "view": self.source.view.key(),
            "site": pair[0],
            "pooling": pair[1],
            "dtype": dtype,
        }


def _join(values: Tensor, pieces: Pieces, pooling: str) -> Tensor:
    """Windows of one text -> one row, as if pooling had seen all its tokens at once."""
    rows = len(pieces.tokens)
    if len(pieces.ids) == rows:
        return values
    owner = torch.from_numpy(pieces.owner)
    index = owner[:, None].expand_as(values)
    if pooling == "max":
        return torch.full((rows, values.shape[1]), -torch.inf).scatter_reduce(0, index, values, "amax")
    if pooling in ("first", "last"):
        starts = np.flatnonzero(np.diff(pieces.owner, prepend=-1))
        ends = np.append(starts[1:], len(pieces.owner)) - 1
        return values[torch.from_numpy(starts if pooling == "first" else ends)]
    special = pieces.prefix + pieces.suffix if pooling == "mean_content" else 0
    weight = torch.tensor([max(len(ids) - special, 1) for ids in pieces.ids], dtype=torch.float32)  # piece
    total = torch.zeros(rows).index_add(0, owner, weight)  # row
    return torch.zeros((rows, values.shape[1])).index_add(0, owner, values * weight[:, None]) / total[:, None]


def _check_finite(values: Mapping[Pair, Tensor], pieces: Pieces, first: Mapping[int, int], name: str) -> None:
    for (site, pooling), array in values.items():
        if bool(torch.isfinite(array).all()):
            continue
        piece = int((~torch.isfinite(array)).any(dim=1).nonzero()[0])
        row = first[int(pieces.owner[piece])]
        raise ReadingError(
            f"The backbone {name} gave NaN or infinity at site {site} ({pooling or 'pooler'}) for row {row + 1}. "
            "Read in float32 (dtype='float32'); if it stays, the checkpoint is damaged or overflows on this text."
        )


def _unit(array: np.ndarray) -> np.ndarray:
    """Rows of length one, as sentence-transformers' Normalize does."""
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.maximum(length, 1e-12)


