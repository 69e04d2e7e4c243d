"""Reads the blocks of one backbone, what the store lacks only.

Reader    texts -> the values of every block, and the number of tokens of each text
Kind      values as the store knows them: a site, a pooling, some columns
TOKENS    the kind that holds these numbers
read_pieces   a model's activations, batch by batch, packed where that can be
divide    how the batches are made, and whether they go side by side
check_finite, unit   values without NaN, rows of length one
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sonde.errors import ReadingError, StoreError
from sonde.heap import HEAP
from sonde.read.backbone import Backbone, Wanted
from sonde.read.batching import LANE_BUDGET, TOKEN_BUDGET, collate, plan, share
from sonde.read.blocks import Block, Source
from sonde.read.lanes import LITTLE
from sonde.read.memory import Halving
from sonde.read.packing import BUDGET, EVEN_ROUNDS, MANY, WIDER, lay, level, pack
from sonde.read.shards import is_finite
from sonde.read.sites import MAIN, Site
from sonde.read.store import Column, Store, block_bytes
from sonde.read.view import Pieces, filler_id, tokenise

logger = logging.getLogger(__name__)

FEW_ROWS = 64
"""Fewer new rows than this are not written to the shared cache, which has a limit: a service would fill it with crumbs.
A store that somebody named keeps every row."""

SHORT_SHARD_BYTES = 4
"""Allowance a row and block in estimates, for the headers of the shorter shards that long texts make."""

ATTEMPTS = 2
"""So often rows are looked for in the store; if it loses them each time, it is passed by."""

COUNT_BYTES = 8
"""Two numbers of 32 bits."""


@dataclass(frozen=True)
class Kind:
    """Values as the store knows them."""

    site: Site
    """Where the model is tapped; never `sentence`, which stands for another site."""
    pooling: str
    """Empty for the pooler."""
    columns: tuple[int, ...] | None = None
    """The features that are kept, ascending; None = all."""

    @classmethod
    def of(cls, block: Block, source: Source) -> "Kind":
        """What is really read for a block."""
        if block.site.kind == "sentence":
            sentence = source.backbone.sentence
            return cls(sentence.site, sentence.pooling or "")
        return cls(block.site, block.pooling, block.columns)

    def about(self, source: Source) -> dict[str, object]:
        """What the store remembers of such values."""
        backbone = source.backbone
        about: dict[str, object] = {
            "backbone": backbone.name,
            "fingerprint": backbone.fingerprint,
            "view": source.view.key(),
            "site": str(self.site),
            "pooling": self.pooling,
            "dtype": "int32" if self == TOKENS else str(backbone.dtype).removeprefix("torch."),
        }
        if self.columns is not None:
            digest = hashlib.blake2b(np.array(self.columns, dtype="<i8").tobytes(), digest_size=16).hexdigest()
            about |= {"columns": len(self.columns), "columns_digest": digest}
        return about

    def width(self, source: Source) -> int:
        """Numbers a text."""
        if self == TOKENS:
            return 2
        return source.backbone.width(self.site) if self.columns is None else len(self.columns)

    def take(self, whole: Tensor) -> Tensor:
        """These columns of all features: (row, dim) -> (row, kept)."""
        return whole if self.columns is None else whole[:, list(self.columns)]


TOKENS = Kind(Site(MAIN, "tokens"), "count")
"""For each text, its tokens and how many of them were lost."""


@dataclass(frozen=True)
class Part:
    """What one backbone makes of some texts."""

    blocks: dict[str, np.ndarray]
    """Block name -> float32 (row, dim)."""
    counts: np.ndarray
    """(row, 2): tokens of each text, and how many of them were lost."""


class Reader:
    """Reads the blocks of one source.

    Attributes
    ----------
    wanted : list of Kind
        What is read for these blocks.
    columns : list of Column
        Where the store keeps it.
    in_use : sequence of Column
        Columns of this run that the store must not drop.
    """

    def __init__(
        self, index: int, source: Source, blocks: Sequence[Block], store: Store | None, token_budget: int | None = None
    ) -> None:
        self.source, self.store = source, store
        self.blocks = {block: Kind.of(block, source) for block in blocks if block.backbone == index}
        self.wanted = [*dict.fromkeys(self.blocks.values()), TOKENS]
        self.token_budget = token_budget
        self._halving = Halving(source.backbone.name)
        self._own = (
            {kind: store.column(kind.about(source), kind.width(source)) for kind in self.wanted} if store else {}
        )
        narrow = [kind for kind in self.wanted if kind.columns is not None] if store else []
        whole = {kind: replace(kind, columns=None) for kind in narrow}
        self._whole = {kind: store.column(of.about(source), of.width(source)) for kind, of in whole.items() if store}
        self.columns = [*self._own.values(), *self._whole.values()]
        self.in_use: Sequence[Column] = self.columns

    def read(
        self, texts: list[str], keys: np.ndarray, first: Mapping[int, int], rows: np.ndarray | None = None
    ) -> Part:
        """Read distinct texts; `first` gives the row by which an error names each. Of these, `rows` come, or all."""
        values = self._stored_or_read(texts, keys, first)
        places = None if rows is None else torch.from_numpy(rows)
        blocks, uses = {}, Counter([TOKENS, *self.blocks.values()])

        def take(kind: Kind) -> Tensor:
            """And drop what is not needed again: the next takes its memory."""
            uses[kind] -= 1
            whole = values[kind] if uses[kind] else values.pop(kind)
            return whole if places is None else whole[places]

        for block, kind in self.blocks.items():
            array = take(kind).float().numpy()
            sentence = block.site.kind == "sentence" and self.source.backbone.sentence.normalise
            blocks[block.name] = unit(array) if sentence else array
        counts = take(TOKENS).numpy().astype(np.int64)
        return Part(blocks, counts)

    def bytes_of(self, kind: Kind, rows: int, window_rows: int) -> int:
        """Bytes that `rows` new rows take in the store at most, in shards of `window_rows`."""
        itemsize = COUNT_BYTES // 2 if kind == TOKENS else self.source.backbone.dtype.itemsize
        row_bytes = kind.width(self.source) * itemsize + SHORT_SHARD_BYTES
        return block_bytes(kind.about(self.source), rows, row_bytes, -(-rows // window_rows))

    def stored_bytes(self, kind: Kind) -> int:
        """Bytes of these values in the store now."""
        return self._own[kind].bytes()

    def lacks(self, kind: Kind, keys: np.ndarray) -> int:
        """How many keys the store does not hold, without looking at their values."""
        absent = self._own[kind].absent(keys)
        if kind in self._whole:
            absent &= self._whole[kind].absent(keys)
        return int(absent.sum())

    def _stored_or_read(self, texts: list[str], keys: np.ndarray, first: Mapping[int, int]) -> dict[Kind, Tensor]:
        for _ in range(ATTEMPTS if self._own else 0):
            stored, fresh = self._completed(texts, keys, first)
            try:
                return {kind: self._gather(kind, keys, found, fresh) for kind, found in stored.items()}
            except StoreError as lost:  # another process has dropped them, to make room
                logger.info("%s", lost)
        return self._read(texts, self.wanted, first)

    def _completed(
        self, texts: list[str], keys: np.ndarray, first: Mapping[int, int]
    ) -> tuple[dict[Kind, np.ndarray], list[tuple[np.ndarray, dict[Kind, Tensor]]]]:
        """What the store holds of each kind, and values that were read because it does not."""
        stored = {kind: self._find(kind, keys) for kind in self.wanted}
        missing = np.stack([~found.any(axis=1) for found in stored.values()], axis=1)  # row kind
        fresh: list[tuple[np.ndarray, dict[Kind, Tensor]]] = []
        for pattern in np.unique(missing, axis=0):
            rows = np.flatnonzero((missing == pattern).all(axis=1))
            kinds = [kind for kind, lacks in zip(self.wanted, pattern, strict=True) if lacks]
            if kinds:
                values = self._read([texts[i] for i in rows], kinds, {j: first[i] for j, i in enumerate(rows.tolist())})
                fresh.append((rows, values))
                self._keep(keys[rows], values, kinds)
        return stored, fresh

    def _find(self, kind: Kind, keys: np.ndarray) -> np.ndarray:
        """Bool (row, 2): whether the rows lie in the store by themselves; whether they do in rows of all features."""
        own = self._own[kind].find(keys)
        whole = np.zeros(len(keys), dtype=bool)
        if kind in self._whole and not own.all():
            whole[~own] = self._whole[kind].find(keys[~own])
        return np.stack([own, whole], axis=1)

    def _keep(self, keys: np.ndarray, values: Mapping[Kind, Tensor], kinds: Sequence[Kind]) -> None:
        """Write one shard a kind, if the store wants it and has room."""
        assert self.store is not None
        if len(keys) < FEW_ROWS and self.store.limit_bytes is not None:
            return
        new_bytes = sum(self.bytes_of(kind, len(keys), len(keys)) for kind in kinds)
        if not self.store.make_room(new_bytes, self.in_use):
            logger.info("the store is full of what this run uses; %d rows are not kept", len(keys))
            return
        for kind in kinds:
            self._own[kind].append(keys, values[kind])

    def _gather(
        self, kind: Kind, keys: np.ndarray, stored: np.ndarray, fresh: list[tuple[np.ndarray, dict[Kind, Tensor]]]
    ) -> Tensor:
        parts = [(rows, values[kind]) for rows, values in fresh if kind in values]
        own, whole = np.flatnonzero(stored[:, 0]), np.flatnonzero(stored[:, 1])
        if len(own):
            parts.append((own, self._own[kind].read(keys[own])))
        if len(whole):
            parts.append((whole, kind.take(self._whole[kind].read(keys[whole]))))
        out = torch.empty((len(keys), parts[0][1].shape[1]), dtype=parts[0][1].dtype)  # row dim
        for rows, values in parts:
            out[torch.from_numpy(rows)] = values
        return out

    def _read(self, texts: list[str], kinds: Sequence[Kind], first: Mapping[int, int]) -> dict[Kind, Tensor]:
        """Tokenise, batch, run the model, put rows back in order."""
        backbone = self.source.backbone
        pieces = tokenise(texts, backbone.tokenizer, self.source.view)
        wanted = [kind for kind in kinds if kind != TOKENS]
        values: dict[Kind, Tensor] = {}
        if wanted:
            values = self._run(pieces, wanted)
            check_finite(values, pieces, first, backbone.name)
            values = {kind: _join(v, pieces, kind.pooling, backbone.causal) for kind, v in values.items()}
            values = {kind: v.to(backbone.dtype) for kind, v in values.items()}  # of windows; else they are
        values[TOKENS] = torch.from_numpy(np.stack([pieces.tokens, pieces.lost], axis=1).astype(np.int32))  # row 2
        return values

    def _run(self, pieces: Pieces, kinds: Sequence[Kind]) -> dict[Kind, Tensor]:
        """(piece, dim) of every kind, in the order of the pieces; float32 where windows are still to be joined."""
        backbone = self.source.backbone
        if backbone.device.type == "cpu":
            HEAP.hold(str(backbone.dtype).removeprefix("torch."))
        taps = {kind: (kind.site, kind.pooling or None) for kind in kinds}
        dtype = backbone.dtype if len(pieces.ids) == len(pieces.tokens) else torch.float32
        sizes = {kind: (len(pieces.ids), kind.width(self.source)) for kind in kinds}
        values = {kind: torch.empty(size, dtype=dtype) for kind, size in sizes.items()}  # piece dim
        wanted = list(dict.fromkeys(taps.values()))
        started = time.perf_counter()
        for batch, pooled in read_pieces(pieces, backbone, wanted, self.token_budget, self._halving):
            for kind, tap in taps.items():
                values[kind][torch.from_numpy(batch)] = kind.take(pooled[tap]).to(dtype)
            started, before = time.perf_counter(), started
            HEAP.read(sum(len(pieces.ids[piece]) for piece in batch), started - before)
        return values


def read_pieces(
    pieces: Pieces,
    backbone: Backbone,
    wanted: Sequence[Wanted],
    token_budget: int | None = None,
    halving: Halving | None = None,
) -> Iterator[tuple[np.ndarray, dict[Wanted, Tensor]]]:
    """Read in batches: each time which pieces, and their activations (row, dim), float32 on the CPU.

    A batch for which memory does not suffice comes in parts; `halving` knows of those before.
    """
    lengths, filler = [len(ids) for ids in pieces.ids], filler_id(backbone.tokenizer)
    packs, halving = backbone.packs(wanted), halving or Halving(backbone.name)
    lanes, batches = divide(lengths, backbone, packs, token_budget, halving.side_by_side)
    fills = packs and token_budget is None and sum(lengths) >= max(MANY, EVEN_ROUNDS * lanes) * BUDGET
    least = BUDGET + WIDER if fills else 0

    def read(part: np.ndarray) -> tuple[np.ndarray, dict[Wanted, Tensor]]:
        if packs:  # parts of a batch are not filled up: that would take the memory that was lacking
            filled = least if halving.parts == 1 else 0
            return part, backbone.read_packed(lay(pieces, part, filler, backbone.causal, filled), wanted)
        inputs = collate(pieces, part, filler, backbone.causal)
        return part, backbone.read(inputs.ids, inputs.mask, inputs.content, wanted)

    def is_long(batch: np.ndarray) -> bool:
        return any(lengths[piece] > LANE_BUDGET for piece in batch)

    alone = [batch for batch in batches if not lanes or is_long(batch)]
    beside = [batch for batch in batches if lanes and not is_long(batch)]
    found = backbone.each(lambda batch: halving.beside(batch, read), beside, lanes)
    for batch, parts in zip(beside, found, strict=True):
        if parts is None:
            alone.append(batch)
        else:
            yield from parts
    for batch in alone:
        yield from halving.each(batch, read)


def divide(
    lengths: Sequence[int], backbone: Backbone, packs: bool, token_budget: int | None = None, side_by_side: bool = True
) -> tuple[int, list[np.ndarray]]:
    """In how many lanes pieces of these lengths are read, 0 for none, and in which batches.

    Of many pieces the batches are the same whatever the number of threads, and so are the bytes of what is read.
    """
    lanes = backbone.most_lanes() if side_by_side else min(backbone.most_lanes(), 1)
    little = sum(lengths) * backbone.multiplications * lanes <= LITTLE
    if packs:
        budget = token_budget or BUDGET
        batches = pack(lengths, level(lengths, budget, lanes) if lanes else budget)
        beside = little or (side_by_side and 2 * len(batches) > lanes)
        return lanes if beside else 0, batches
    if lanes and (little or backbone.dtype == torch.float32):  # others are not measured yet
        batches = plan(lengths, share(lengths, token_budget or LANE_BUDGET, lanes))
        if little or 2 * len(batches) > lanes:
            return lanes, batches
    return 0, plan(lengths, token_budget or TOKEN_BUDGET.get(backbone.device.type, TOKEN_BUDGET["cpu"]))


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


def check_finite(values: Mapping[Kind, Tensor], pieces: Pieces, first: Mapping[int, int], name: str) -> None:
    """`ReadingError` if a value is not finite: it names the row, by `first`, and the site."""
    for kind, array in values.items():
        if is_finite(array):
            continue
        piece = int((~torch.isfinite(array)).any(dim=1).nonzero()[0])
        row = first[int(pieces.owner[piece])]
        raise ReadingError(
            f"The backbone {name} gave NaN or infinity at site {kind.site} ({kind.pooling or 'pooler'}) for row "
            f"{row + 1}. Read in float32 (dtype='float32'); if it stays, the checkpoint is damaged or overflows on it."
        )


def unit(array: np.ndarray) -> np.ndarray:
    """Rows of length one, as sentence-transformers' Normalize does."""
    length = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.maximum(length, 1e-12))
