"""Evidence gathered on the tokens of a text.

tokens_of   what backbones read of a text and what it adds -> the tokens, in the order of the text
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64

from sonde.explanation.records import Token
from sonde.learn.attribution import Attribution, Part
from sonde.learn.tokens import WORD

if TYPE_CHECKING:
    from sonde.read.tokens import Reading


def tokens_of(text: str, readings: "Mapping[int, Reading]", found: Attribution) -> list[Token]:
    """The tokens of the first backbone, with all that is said of their characters.

    Parameters
    ----------
    text : str
    readings : mapping of int to Reading
        What each backbone reads of it.
    found : Attribution

    Returns
    -------
    list of Token
        In the order of the text; with the bias their contributions sum to the score. What other backbones and n-grams
        say of characters is added to the tokens of the first backbone that cover them, in equal parts. What none of
        them covers has tokens of its own: the others' special tokens, words beyond the reach of the model that n-grams
        read, everything of a backbone whose tokenizer does not tell its places.
    """
    said = _said(text, found)  # character
    tokens: list[Token] = []
    for index, reading in readings.items():
        parts = [part for part in found.parts if int(part.block.split("/")[0]) == index]
        own = _by_position(reading, parts)
        tokens += _listed(text, index, reading, own) if index == min(readings) else _spread(index, reading, own, said)
    covers = np.zeros(len(text))  # character: tokens that cover it
    for token in tokens:
        covers[_place(token)] += 1
    shared = said / np.maximum(covers, 1)
    tokens = [replace(token, contribution=token.contribution + float(shared[_place(token)].sum())) for token in tokens]
    return _in_order([*tokens, *_words(text, said, covers == 0, whole=not readings)])


def _said(text: str, found: Attribution) -> Float64[np.ndarray, " character"]:
    """What n-grams say of each character: every occurrence an equal part, spread over the characters it covers."""
    said = np.zeros(len(text))
    for gram in found.grams:
        for places in gram.places:
            said[list(places)] += gram.contribution / (len(gram.places) * len(places))
    return said


def _by_position(reading: "Reading", parts: Sequence[Part]) -> Float64[np.ndarray, " position"]:
    """What the hidden states at each position add: (value - centre) * share * weight, summed over neurons."""
    added = np.zeros(len(reading.positions))
    for part in parts:
        block, used = reading.blocks[part.block], np.flatnonzero(part.weights)
        shares = block.shares if block.shares.shape[1] == 1 else block.shares[:, used]  # position 1 or dim
        moved = block.values[:, used].astype(np.float64) - part.centre[used]  # position dim
        added += (moved * shares) @ part.weights[used]  # position dim -> position
    return added


def _listed(text: str, index: int, reading: "Reading", added: Float64[np.ndarray, " position"]) -> list[Token]:
    """Every position as a token."""
    tokens = []
    for position, own in zip(reading.positions, added.tolist(), strict=True):
        start, stop = position.span or (None, None)
        shown = text[start:stop] if position.span else ""
        tokens.append(Token(shown or position.token, start, stop, own, position.special, index))
    return tokens


def _spread(
    index: int,
    reading: "Reading",
    added: Float64[np.ndarray, " position"],
    said: Float64[np.ndarray, " character"],
) -> list[Token]:
    """Add what positions say to the characters that they cover; the rest as tokens."""
    tokens = []
    for position, own in zip(reading.positions, added.tolist(), strict=True):
        start, stop = position.span or (0, 0)
        if start < stop:
            said[start:stop] += own / (stop - start)
        else:
            tokens.append(Token(position.token, None, None, own, position.special, index))
    return tokens


def _place(token: Token) -> slice:
    """The characters of a token."""
    return slice(0, 0) if token.start is None else slice(token.start, token.stop)


def _words(
    text: str, said: Float64[np.ndarray, " character"], free: Bool[np.ndarray, " character"], whole: bool
) -> Iterator[Token]:
    """Words of which no token covers a character: all of them, or those of which something is said."""
    for match in WORD.finditer(text):
        places = np.arange(match.start(), match.end())[free[match.start() : match.end()]]
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            own = float(said[run].sum())
            if len(run) and (whole or own):
                start, stop = int(run[0]), int(run[-1]) + 1
                yield Token(text[start:stop], start, stop, own, False, None)


def _in_order(tokens: Sequence[Token]) -> list[Token]:
    """By their place in the text; tokens without one stay behind the token they followed."""
    last: dict[int | None, int] = {}
    keys = []
    for token in tokens:
        last[token.backbone] = token.start if token.start is not None else last.get(token.backbone, -1)
        keys.append(last[token.backbone])
    return [tokens[i] for i in np.argsort(keys, kind="stable")] if tokens else []
