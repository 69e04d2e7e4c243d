"""The one reading path: texts -> pooled blocks, through the store.

Block     which values: backbone, site, pooling
Source    a backbone seen through a view
Window    the blocks of a run of consecutive texts
extract   texts -> windows, streamed
read      texts -> whole arrays
estimate  bytes that texts take on disk
outstanding  bytes that reading still adds to a store
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
from sonde.read.store import Store, block_bytes, hash_texts
from sonde.read.view import Pieces, View, clean, filler_id, tokenise

logger = logging.getLogger(__name__)

WINDOW_ROWS = 4096
WINDOW_CHARACTERS = 4 * 2**20
"""Texts are read in windows of at most this many rows or characters: enough that sorting by length leaves hardly any
padding (under 2% on IMDb), little enough that a killed run repeats at most a few minutes and memory stays flat."""

FEW_ROWS = 64
"""Fewer new rows than this are not written to the shared cache, which has a limit: a service would fill it with crumbs.
A store that somebody named keeps every row."""

SHORT_SHARD_BYTES = 4
"""Allowance a row and block in estimates, for the headers of the shorter shards that long texts make."""

TOKENS = ("tokens", "count")
"""The pseudo-block that remembers, for each text, its tokens and how many of them were lost."""

COUNT_BYTES = 8
"""Two numbers of 32 bits."""

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
    numbers: Sequence[int] | None = None,
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
    numbers : sequence of int, optional
        The row, from 0, by which an error names each text; by default its place among `texts`.

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
    columns = [column for reader in readers for column in reader.columns.values()]
    for reader in readers:
        reader.in_use = columns
    if store is not None:
        store.write_header()
    start = 0
    with track("reading", total, "rows") as advance:
        for window in _windows(texts):
            unique = list(dict.fromkeys(window))
            place = {text: row for row, text in enumerate(unique)}
            rows = np.array([place[text] for text in window])
            first = {row: start + i for i, row in reversed(list(enumerate(rows.tolist())))}
            if numbers is not None:
                first = {row: numbers[place] for row, place in first.items()}
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
    _, first = np.unique(rows, return_index=True)
    whole: dict[str, np.ndarray] = {}
    counts = np.zeros((2, len(sources), len(unique)), dtype=np.int64)
    stream = extract(
        unique, sources, blocks, store, token_budget=token_budget, total=len(unique), numbers=first.tolist()
    )
    for window in stream:
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
    """Bytes that `rows` texts take in an empty store at most."""
    readers = [_Reader(index, source, blocks, None, None) for index, source in sources.items()]
    return sum(reader.bytes_of(pair, rows) for reader in readers for pair in reader.wanted)


def outstanding(
    rows: int, sources: Mapping[int, Source], blocks: Sequence[Block], store: Store, texts: Iterable[str] | None = None
) -> int:
    """Bytes that reading still adds to a store at most.

    Exact with `texts`, which are then gone through once; without, what the store holds of these blocks is taken to be
    of the same texts, so that a command that was stopped is never refused the room it has already filled.
    """
    readers = [_Reader(index, source, blocks, store, None) for index, source in sources.items()]
    places = [(reader, pair) for reader in readers for pair in reader.wanted]
    if texts is None:
        return sum(max(r.bytes_of(pair, rows) - r.columns[pair].bytes(), 0) for r, pair in places)
    missing = [0] * len(places)
    for window in _windows(texts):
        keys = hash_texts(dict.fromkeys(window))
        missing = [n + reader.columns[pair].lacks(keys) for n, (reader, pair) in zip(missing, places, strict=True)]
    return sum(reader.bytes_of(pair, n) for n, (reader, pair) in zip(missing, places, strict=True) if n)


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
        self.wanted = [*self.sites, TOKENS]
        self.store = store
        self.columns = {pair: store.column(self.about(pair)) for pair in self.wanted} if store else {}
        self.in_use = list(self.columns.values())

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
        if not self.columns:
            return self._read(texts, self.wanted, first)
        missing = np.stack([~self.columns[pair].find(keys) for pair in self.wanted], axis=1)  # row pair
        fresh: list[tuple[np.ndarray, dict[Pair, Tensor]]] = []
        for pattern in np.unique(missing, axis=0):
            rows = np.flatnonzero((missing == pattern).all(axis=1))
            pairs = [pair for pair, lacks in zip(self.wanted, pattern, strict=True) if lacks]
            if pairs:
                values = self._read([texts[i] for i in rows], pairs, {j: first[i] for j, i in enumerate(rows.tolist())})
                fresh.append((rows, values))
                self._keep(keys[rows], {pair: values[pair] for pair in pairs})
        return {pair: self._gather(pair, keys, missing[:, i], fresh) for i, pair in enumerate(self.wanted)}

    def _keep(self, keys: np.ndarray, values: Mapping[Pair, Tensor]) -> None:
        """Write one shard a pair, if the store wants it and has room."""
        assert self.store is not None
        if len(keys) < FEW_ROWS and self.store.limit_bytes is not None:
            return
        if not self.store.make_room(sum(self.bytes_of(pair, len(keys)) for pair in values), self.in_use):
            logger.info("the store is full of what this run uses; %d rows are not kept", len(keys))
            return
        for pair, array in values.items():
            self.columns[pair].append(keys, array)

    def bytes_of(self, pair: Pair, rows: int) -> int:
        """Bytes that `rows` new rows of a pair take in the store at most."""
        backbone = self.source.backbone
        width = COUNT_BYTES if pair == TOKENS else backbone.width(self.sites[pair]) * backbone.dtype.itemsize
        return block_bytes(self.about(pair), rows, width + SHORT_SHARD_BYTES, -(-rows // WINDOW_ROWS))

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
            values = {pair: _join(v, pieces, pair[1], backbone.causal).to(backbone.dtype) for pair, v in values.items()}
        values[TOKENS] = torch.from_numpy(np.stack([pieces.tokens, pieces.lost], axis=1).astype(np.int32))  # row 2
        return values

    def about(self, pair: Pair) -> dict[str, object]:
        """What the store remembers of the values of a pair."""
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


def _join(values: Tensor, pieces: Pieces, pooling: str, causal: bool) -> Tensor:
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
    weight = torch.tensor([len(ids) for ids in pieces.ids], dtype=torch.float32)  # piece
    if pooling == "mean_content":
        content = (weight - pieces.content_start(causal) - pieces.suffix).clamp(min=0)  # piece
        left = torch.zeros(rows).index_add(0, owner, content) > 0  # row
        weight = torch.where(left[owner], content, weight)
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
    return np.asarray(array / np.maximum(length, 1e-12))
