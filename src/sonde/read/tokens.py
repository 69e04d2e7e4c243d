"""One text, token by token: the values that poolings reduce, and where in the text each token stands.

Position      one position of a backbone: its token, and the characters that it came from
TokenValues   the values of a block at every position, and each position's share in the pooled value
Reading       the positions of a text, and its blocks
read_tokens   a text and blocks of one source -> Reading

A position is not a word: its hidden state holds what the model gathered there from the whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from sonde.read.blocks import Block, Source
from sonde.read.sites import DECODER, Site
from sonde.read.view import Pieces, clean, parts, special_tokens, tokenise

START = "<start>"
"""What stands for the decoder's first position, before any token of the text."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Position:
    """One position of a backbone."""

    token: str
    """The token as the tokenizer writes it."""
    span: Span | None
    """Its first character in the text and the one after its last; None for special tokens and where the tokenizer
    does not tell."""
    special: bool
    """Whether it stands for no part of the text."""


@dataclass(frozen=True)
class TokenValues:
    """A block, not yet pooled: the pooled value of a neuron is the sum over positions of value times share."""

    values: Float32[np.ndarray, "position dim"]
    """What each position says; 0 where the stack has no such position."""
    shares: Float64[np.ndarray, "position dim"] | Float64[np.ndarray, "position 1"]
    """Not negative, summing to 1 over the positions: 1 / count for means, 1 for the winner of `max`."""

    def pooled(self) -> Float64[np.ndarray, " dim"]:
        """The block's value of this text."""
        return np.asarray((self.values * self.shares).sum(axis=0))  # position dim -> dim


@dataclass(frozen=True)
class Reading:
    """A text as one backbone reads it."""

    positions: tuple[Position, ...]
    """Those of all windows in turn."""
    blocks: dict[str, TokenValues]
    """Block name -> values at the positions."""

    @property
    def has_content(self) -> bool:
        """Whether any position stands for a part of the text."""
        return not all(position.special for position in self.positions)


def read_tokens(text: str, source: Source, blocks: Sequence[Block]) -> Reading:
    """Read one text and keep every token.

    Parameters
    ----------
    text : str
    source : Source
    blocks : sequence of Block
        Blocks of this source.

    Returns
    -------
    Reading
        The values are those of `extract` before pooling: pooled they agree with it within 1e-5 relative in float32
        and, because poolings round there, 2e-2 in bfloat16. Long texts are cut or windowed by the source's view.

    Raises
    ------
    BackboneError
        If the backbone cannot be read at a site.
    """
    backbone = source.backbone
    pieces = tokenise([clean(text)], backbone.tokenizer, source.view)
    places = {block.name: _place(block, source) for block in blocks}
    sites = list(dict.fromkeys(site for site, _ in places.values()))
    slots = _slots(pieces, source, shifted=any(site.stack == DECODER for site in sites))
    taken = [backbone.read_tokens(torch.tensor([ids]), sites) for ids in pieces.ids]
    values = {site: slots.spread(site, [piece[site][0].numpy() for piece in taken]) for site in sites}
    read = {
        name: TokenValues(values[site], slots.shares(site, how, values[site])) for name, (site, how) in places.items()
    }
    for block in blocks:
        if block.site.kind == "sentence" and backbone.sentence.normalise:
            read[block.name] = _unit(read[block.name])
    return Reading(_positions(text, pieces, slots, source), read)


@dataclass(frozen=True)
class _Slots:
    """Where the tokens of all pieces stand in one row of positions; a decoder has one more in front of each piece."""

    piece: Int64[np.ndarray, " position"]
    """The piece of each position."""
    place: Int64[np.ndarray, " position"]
    """The token's place in its piece; -1 for the decoder's start."""
    content: Bool[np.ndarray, " position"]
    """Whether `mean_content` counts it."""
    lengths: tuple[int, ...]
    """Tokens of each piece."""

    def used(self, site: Site) -> Bool[np.ndarray, " position"]:
        """The positions that the stack of a site has: the decoder sees a start and no last token."""
        if site.kind == "pooler":
            return np.asarray(self.place == 0)
        last = np.array(self.lengths)[self.piece] - 1
        return np.asarray(self.place < last if site.stack == DECODER else self.place >= 0)

    def spread(self, site: Site, pieces: Sequence[np.ndarray]) -> Float32[np.ndarray, "position dim"]:
        """The values of each piece at their positions."""
        values = np.zeros((len(self.place), pieces[0].shape[1]), dtype=np.float32)
        values[self.used(site)] = np.concatenate(pieces)  # token dim -> position dim
        return values

    def shares(self, site: Site, how: str | None, values: Float32[np.ndarray, "position dim"]) -> np.ndarray:
        """(position, 1), for `max` (position, dim): how much each position counts in the pooled value."""
        used = self.used(site)
        if how == "max":
            wins = used[:, None] & (values == values[used].max(axis=0))  # position dim
            return np.asarray(wins / wins.sum(axis=0))  # equal values share
        counted = used.astype(np.float64)
        if how is None:  # windows count by their length
            counted *= np.array(self.lengths, dtype=np.float64)[self.piece]
        elif how in ("first", "last"):
            counted = np.zeros(len(used))
            counted[np.flatnonzero(used)[0 if how == "first" else -1]] = 1
        elif how == "mean_content" and (self.content & used).any():
            counted = (self.content & used).astype(np.float64)
        return np.asarray(counted / counted.sum())[:, None]  # position 1


def _place(block: Block, source: Source) -> tuple[Site, str | None]:
    """The site and pooling that a block really reads."""
    if block.site.kind == "sentence":
        return source.backbone.sentence.site, source.backbone.sentence.pooling
    return block.site, block.pooling or None


def _unit(block: TokenValues) -> TokenValues:
    """Divide all positions by the length of the pooled vector: a normalised embedding is then their sum again."""
    length = max(float(np.linalg.norm(block.pooled())), 1e-12)
    return TokenValues((block.values / length).astype(np.float32), block.shares)


def _slots(pieces: Pieces, source: Source, shifted: bool) -> _Slots:
    lengths = tuple(map(len, pieces.ids))
    place = [np.arange(-1 if shifted else 0, length) for length in lengths]
    begin = pieces.content_start(source.backbone.causal)
    content = [(p >= begin) & (p < n - pieces.suffix) for p, n in zip(place, lengths, strict=True)]
    piece = np.repeat(np.arange(len(lengths)), [len(p) for p in place])
    return _Slots(piece, np.concatenate(place), np.concatenate(content), lengths)


def _positions(text: str, pieces: Pieces, slots: _Slots, source: Source) -> tuple[Position, ...]:
    spans = _spans(text, pieces, source)
    tokenizer = source.backbone.tokenizer
    found = []
    for piece, place in zip(slots.piece.tolist(), slots.place.tolist(), strict=True):
        if place < 0:
            found.append(Position(START, None, True))
            continue
        inner = place - pieces.prefix
        special = not 0 <= inner < slots.lengths[piece] - pieces.prefix - pieces.suffix or not pieces.tokens[0]
        token = str(tokenizer.convert_ids_to_tokens(pieces.ids[piece][place]))
        found.append(Position(token, None if special or spans is None else spans[piece][inner], special))
    return tuple(found)


def _spans(text: str, pieces: Pieces, source: Source) -> list[list[Span]] | None:
    """The characters of the content tokens of each piece; None where the tokenizer keeps no record of them."""
    tokenizer, view = source.backbone.tokenizer, source.view
    if not getattr(tokenizer, "is_fast", False) or len(clean(text)) != len(text):
        return None
    encoded = tokenizer(
        clean(text), add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
    )
    prefix, suffix = special_tokens(tokenizer)
    room = max(view.max_tokens - len(prefix) - len(suffix), 1)
    seen = parts(list(range(len(encoded["input_ids"]))), room, view.long_text)
    offsets = [_without_blanks(text, start, stop) for start, stop in encoded["offset_mapping"]]
    assert sum(map(len, seen)) == pieces.tokens[0] - pieces.lost[0] - len(prefix) - len(suffix), "other tokens"
    return [[offsets[i] for i in part] for part in seen]


def _without_blanks(text: str, start: int, stop: int) -> Span:
    """Some tokenizers count the blank before a word as part of it."""
    while start < stop and text[start].isspace():
        start += 1
    return start, stop
