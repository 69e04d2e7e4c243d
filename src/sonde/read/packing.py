"""Texts side by side in one row, without pads between them.

Span      texts of one length that stand side by side
Packed    input of one forward pass
Bags      what pooling asks of it
pack      lengths -> batches of pieces under a token budget
level     the budget under which few pieces make as many batches for each lane
lay, beside   pieces of one batch, or any texts -> Packed
Tile, tiles   a span in pieces of few shapes, for attention
apart     while it lasts, attention keeps to the spans; `current` is what it asks
BUDGET    tokens in one packed batch

Whatever the texts' lengths, nearly every batch has one and the same shape. oneDNN keeps code for each shape of a
product that it has ever met, half a megabyte each, and free memory falls to pieces between: padded, 100,000 rows of
SST-2 held 2.2 times the memory of 10,000; packed they hold .98 to 1.01 times, and are read 4 to 20% faster on two
cores.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from sonde.read.batching import LANE_TOKENS
from sonde.read.view import Pieces

WIDER = 8
"""Tokens behind the last text, at least: so much wider than its texts a tile may be."""

BUDGET = 4096 - WIDER
"""On a CPU, where rows go side by side, each on one thread (`sonde.read.lanes`): all-MiniLM-L6-v2 reads 2 to 10% slower
with rows of 3,072, up to 5% with 2,048, and no faster with 6,144 (two cores; freed memory is kept, `sonde.heap`)."""

ROOM = 1 / 64
"""Of the budget: less room than that stays empty; short texts of many lengths would fill it, each a span of its own."""

MANY = 8
"""Of so many batches the last, which is seldom full, is filled up like the others: it is a small part of the work, and
would bring another shape every time."""

EVEN_ROUNDS = 4
"""Pieces that make at most so many batches a lane are divided evenly: else one lane is idle while another reads the
last batch. Of more pieces that is a small part."""

STEPS = {256: 16, 1024: 64}
STEP = 256
"""A batch is filled up with pads to a multiple of `STEP` tokens, one of at most 256 tokens to a multiple of 16, of at
most 1,024 to one of 64: so few lengths that each product is compiled once, so few pads that a few texts do not wait."""

TILE_TOKENS = (1024, 512, 256, 128)
"""Tokens of a tile: a few shapes for each width. The largest fits into half of a full row, before or behind a text."""

IN_VAIN = 1.5
"""A tile is taken whole if it has at most so many times the rows that are left: half of them in vain cost less than
another call of every operation."""

NARROW, NARROW_STEP, WIDE_STEP = 32, 4, 8
"""Tiles of up to 32 tokens a row are as wide as a multiple of 4, others of 8: 30 widths up to the longest text that
attends in tiles. Each shape of each of attention's two products takes half a megabyte for good, once met."""


@dataclass(frozen=True)
class Span:
    """Texts of one length that stand side by side."""

    start: int
    """The first token."""
    rows: int
    """How many texts."""
    length: int
    """Tokens of each."""

    @property
    def stop(self) -> int:
        """The token after the last."""
        return self.start + self.rows * self.length

    def of(self, tokens: Tensor) -> Tensor:
        """(token, ...) of the whole row -> (row, token, ...) of these texts; the same memory."""
        return tokens[self.start : self.stop].view(self.rows, self.length, *tokens.shape[1:])


@dataclass(frozen=True)
class Tile:
    """Texts of one span that attend together, in one of few shapes.

    A tile may be wider than its texts: behind each it sees the first tokens of the next, which count for nothing. It
    may have more rows than are left, which count for nothing either.
    """

    start: int
    """The first token of the first row."""
    rows: int
    """Rows, those that count and others."""
    tokens: int
    """Tokens a row."""
    length: int
    """Tokens of each row that count, and from one row to the next."""
    first: int
    """The row of the span that is the first to count."""
    kept: int
    """How many count."""
    above: int
    """Rows of the tile before that."""

    def of(self, tokens: Tensor) -> Tensor:
        """(token, head, dim) of the whole row -> (row, token, head, dim); the same memory, rows overlap."""
        step, *rest = tokens.stride()
        begin = tokens.storage_offset() + self.start * step
        size = (self.rows, self.tokens, *tokens.shape[1:])
        return tokens.as_strided(size, (self.length * step, step, *rest), begin)

    def count(self, query: Tensor, key: Tensor, value: Tensor, summed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What counts: of (row, head, token, dim) three times, and of (row, token, head, dim)."""
        rows = slice(self.above, self.above + self.kept)
        q, k, v = (one[rows, :, : self.length] for one in (query, key, value))
        return q, k, v, summed[rows, : self.length]


@dataclass(frozen=True)
class Bag:
    """Tokens of every text that count for a mean."""

    tokens: Tensor
    """(counted,) int64, places in the row, text by text"""
    starts: Tensor
    """(text,) int64, the first of each text among them"""
    counts: Tensor
    """(text, 1) how many of each text"""

    @classmethod
    def of(cls, tokens: Tensor, owner: Tensor, texts: int) -> "Bag":
        """From places in the row and the text of each, ascending."""
        counts = torch.bincount(owner, minlength=texts)
        return cls(tokens, counts.cumsum(0) - counts, counts[:, None])


class Bags:
    """What pooling asks of a packed row, worked out once for all sites.

    Parameters
    ----------
    spans : sequence of Span
        All texts.
    content : (token,) bool or None
        As `Packed.content`.
    """

    def __init__(self, spans: Sequence[Span], content: Tensor | None = None) -> None:
        self.spans, self._content = spans, content
        self._texts = sum(span.rows for span in spans)
        lengths = torch.cat([torch.full((span.rows,), span.length) for span in spans])
        self._owner = torch.arange(self._texts).repeat_interleave(lengths)  # token
        self.whole = Bag.of(torch.arange(len(self._owner)), self._owner, self._texts)

    @cached_property
    def content(self) -> Bag:
        """Content tokens alone; all of a text that has none."""
        assert self._content is not None, "mean_content needs to know which tokens are content"
        kept = self._content[: len(self._owner)]
        has_any = torch.bincount(self._owner[kept], minlength=self._texts) > 0  # text
        kept = kept | ~has_any[self._owner]
        return Bag.of(self.whole.tokens[kept], self._owner[kept], self._texts)


@dataclass(frozen=True)
class Packed:
    """Input of one forward pass."""

    ids: Tensor
    """(1, token) int64; behind the last span, pads"""
    positions: Tensor
    """(1, token) int64, from 0 in every text"""
    spans: tuple[Span, ...]
    """Every text, in the order of the batch."""
    content: Tensor
    """(1, token) bool, True for tokens that are neither special nor the first-token sink"""


def pack(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Group pieces into batches; a pure function of its arguments.

    Each batch takes the longest piece that still fits, until hardly any room is left. Only a single piece may exceed
    the budget.
    """
    order = np.argsort(lengths, kind="stable").tolist()
    sizes = [int(lengths[piece]) for piece in order]
    batches = []
    while order:
        batch: list[int] = []
        room = token_budget
        while order:
            fits = bisect_right(sizes, room) - 1
            full = fits < 0 or (fits < len(sizes) - 1 and room < ROOM * token_budget)
            if full and batch:
                break
            batch.append(order.pop(fits))  # -1: the longest, which fits nowhere
            room -= sizes.pop(fits)
        batches.append(np.array(batch, dtype=np.int64))
    return batches


def level(lengths: Sequence[int], token_budget: int, lanes: int) -> int:
    """The token budget under which few pieces make as many batches for each lane; of many, the one that is given."""
    tokens = sum(lengths)
    for batches in range(lanes, lanes * EVEN_ROUNDS + 1, lanes):
        if tokens < batches * LANE_TOKENS:
            break
        room = max(min(lengths) // 2, max(lengths) // batches)  # pieces seldom fill a batch to the last token
        most = math.ceil((1 + ROOM) * tokens / batches) + room
        if most <= token_budget:
            return most
    return token_budget


def lay(pieces: Pieces, batch: np.ndarray, pad_id: int, causal: bool, least: int = 0) -> Packed:
    """Put the pieces of one batch side by side, in a row of at least so many tokens."""
    return beside([pieces.ids[piece] for piece in batch], pad_id, pieces.content_start(causal), pieces.suffix, least)


def beside(texts: Sequence[list[int]], pad_id: int = 0, before: int = 0, behind: int = 0, least: int = 0) -> Packed:
    """Texts, each of at least one token, as one row; neighbours of one length are a span.

    `before` and `behind` are the tokens at the ends of each text that are no content.
    """
    flat = [token for ids in texts for token in ids]
    size = max(_filled(len(flat)), least)
    ids = torch.full((1, size), pad_id, dtype=torch.int64)
    ids[0, : len(flat)] = torch.tensor(flat, dtype=torch.int64)
    positions = torch.zeros((1, size), dtype=torch.int64)
    content = torch.zeros((1, size), dtype=torch.bool)
    spans: list[Span] = []
    for length, some in groupby(map(len, texts)):
        spans.append(Span(spans[-1].stop if spans else 0, sum(1 for _ in some), length))
        place = torch.arange(length)
        spans[-1].of(positions[0])[:] = place
        spans[-1].of(content[0])[:] = (place >= before) & (place < length - behind)
    return Packed(ids, positions, tuple(spans), content)


def tiles(span: Span, size: int) -> Iterator[Tile]:
    """The tiles of a span in a row of `size` tokens, large ones first."""
    tokens = min(_wide(span.length), size)
    heights = [max(tokens_of // tokens, 1) for tokens_of in TILE_TOKENS]  # descending
    first = 0
    while left := span.rows - first:
        enough = [rows for rows in heights if left <= rows <= IN_VAIN * left]
        rows = enough[-1] if enough else next((rows for rows in heights if rows <= left), heights[-1])
        kept = min(rows, left)
        yield _fit(span, size, first, rows, tokens, kept)
        first += kept


def _fit(span: Span, size: int, first: int, rows: int, tokens: int, kept: int) -> Tile:
    """A tile whose rows lie in the row of `size` tokens: others follow those that count, or stand before them."""
    start = span.start + first * span.length
    for above in (0, rows - kept):
        begin = start - above * span.length
        if begin >= 0 and begin + (rows - 1) * span.length + tokens <= size:
            return Tile(begin, rows, tokens, span.length, first, kept, above)
    return Tile(start, kept, span.length, span.length, first, kept, 0)  # neither fits: these texts alone, as they are


def _wide(length: int) -> int:
    step = NARROW_STEP if length <= NARROW else WIDE_STEP
    return -(-length // step) * step


def _filled(tokens: int) -> int:
    least = tokens + WIDER
    step = next((step for most, step in STEPS.items() if least <= most), STEP)
    return -(-least // step) * step


_CURRENT: ContextVar[tuple[Span, ...] | None] = ContextVar("spans", default=None)


@contextmanager
def apart(spans: tuple[Span, ...] | None) -> Iterator[None]:
    """Let no text attend to its neighbours; None: rows are single texts, padded."""
    token = _CURRENT.set(spans)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> tuple[Span, ...] | None:
    """The spans of the pass that runs, None if it is not packed."""
    return _CURRENT.get()
