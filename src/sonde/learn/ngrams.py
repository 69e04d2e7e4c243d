"""Texts -> counts of word and character n-grams, without a Python loop over the n-grams.

    Kind          which n-grams: of words or of characters, how long, and how much of a text is read
    WORDS, CHARS  the two kinds that `lexical` reads
    Vocabulary    the n-grams of one kind that are counted, each with its column
    learn         texts -> the vocabulary of the n-grams in at least two of them, and their counts

An n-gram is an n-gram of one token less and one more token: with a number for the former, both fit into a 64-bit code,
so that n-grams of any length are counted by sorting whole numbers, exactly and without hashing. An n-gram is at most as
frequent as its own beginning, hence rare ones can be dropped length by length (the argument of Agrawal and Srikant
1994, "Fast Algorithms for Mining Association Rules", section 2.1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Literal

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Int32, Int64

from sonde.learn.tokens import characters, words

# What stands in one text alone cannot tell about another; with it the vocabulary would be several times larger.
MIN_TEXTS = 2
BLANK = ord(" ")
SHIFT = 32  # a code is prefix << 32 | token; neither reaches 2**31


@dataclass(frozen=True)
class Kind:
    """Which n-grams are counted. Case is ignored."""

    name: Literal["word", "char"]
    """Tokens are `tokens.words`, or characters; these stay within what stands between two blanks."""
    shortest: int
    """Tokens of the shortest n-grams."""
    longest: int
    """Tokens of the longest n-grams."""
    max_chars: int | None
    """Characters that are read from the beginning of a text; None = all."""


WORDS = Kind("word", 1, 2, None)
# A character gives four n-grams, words one for every three characters: 600 of them keep time and memory within three
# times those of the words of a review, and hold messages, news and abstracts nearly whole.
CHARS = Kind("char", 2, 5, 600)


@dataclass(frozen=True)
class Vocabulary:
    """The n-grams of one kind that are counted, each with its column."""

    kind: Kind
    """What is counted."""
    words: tuple[str, ...]
    """The words by number; empty for characters, whose number is their code point."""
    levels: tuple[Int64[np.ndarray, " _"], ...]
    """For each length in turn the codes of its n-grams, ascending: the columns in their order."""

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(len(level) for level in self.levels)

    def count(self, texts: Sequence[str]) -> sp.csr_array:
        """Count the n-grams of the vocabulary: int32 (row, ngram)."""
        numbers = {word: number for number, word in enumerate(self.words)}
        stream = _read(self.kind, texts, lambda word: numbers.get(word, -1))
        counts = []
        for level in self.levels:
            stream, codes = stream.grown()
            place = np.searchsorted(level, codes)
            known = place < len(level)
            known[known] = level[place[known]] == codes[known]
            stream = stream.kept(known, place[known])
            counts.append(stream.tally(len(texts), len(level)))
        return sp.csr_array(sp.hstack(counts, format="csr", dtype=np.int32))

    def strings(self) -> list[str]:
        """The n-grams as text, in the order of the columns; words are joined by a blank."""
        found: list[str] = []
        before = [""]
        for length, level in enumerate(self.levels, self.kind.shortest):
            prefixes, tokens = (level >> SHIFT).tolist(), (level & (2**SHIFT - 1)).tolist()
            if self.kind.name == "word":
                before = [f"{before[p]} {self.words[t]}".lstrip(" ") for p, t in zip(prefixes, tokens, strict=True)]
            elif length == 2:
                before = [chr(p) + chr(t) for p, t in zip(prefixes, tokens, strict=True)]
            else:
                before = [before[p] + chr(t) for p, t in zip(prefixes, tokens, strict=True)]
            found += before
        return found


def learn(kind: Kind, texts: Sequence[str]) -> tuple[Vocabulary, sp.csr_array]:
    """Find the n-grams that stand in at least two texts.

    Parameters
    ----------
    kind : Kind
    texts : sequence of str
        Each different text once, if repeated texts shall not count as evidence.

    Returns
    -------
    Vocabulary
    csr_array (row, ngram) of int32
        What `count` of the vocabulary gives for the same texts.
    """
    numbers: dict[str, int] = {}
    stream = _read(kind, texts, lambda word: numbers.setdefault(word, len(numbers)))
    words, levels, counts = tuple(numbers), [], []
    for length in range(kind.shortest, kind.longest + 1):
        stream, codes = stream.grown()
        found = np.sort(codes)
        found = found[np.diff(found, prepend=-1) > 0]
        number = np.searchsorted(found, codes)  # np.unique would sort indices, which takes twice as long
        tallied = stream.kept(np.ones(len(codes), dtype=bool), number).tally(len(texts), len(found))
        frequent = np.bincount(tallied.indices, minlength=len(found)) >= MIN_TEXTS
        rank = np.where(frequent, np.cumsum(frequent) - 1, -1)
        stream = stream.kept(frequent[number], rank[number[frequent[number]]])
        if kind.name == "word" and length == 1:  # rare words are forgotten; codes of single words are their numbers
            stream = replace(stream, tokens=rank[stream.tokens].astype(np.int32))
            words, found = tuple(compress(words, frequent)), np.arange(len(found)) - np.cumsum(~frequent)
        levels.append(found[frequent])
        counts.append(tallied[:, np.flatnonzero(frequent)])
    return Vocabulary(kind, words, tuple(levels)), sp.csr_array(sp.hstack(counts, format="csr", dtype=np.int32))


@dataclass(frozen=True)
class _Stream:
    """The tokens of all texts in turn, and where among them n-grams of some length start that are still of interest."""

    tokens: Int32[np.ndarray, " token"]
    """Number of each token; -1 for an unknown word."""
    rows: Int32[np.ndarray, " token"]
    """The text of each token."""
    stops: Bool[np.ndarray, " token"]
    """Whether n-grams of two tokens or more end here: after a character n-gram's second blank."""
    length: int
    """Tokens of the n-grams."""
    places: Int64[np.ndarray, " place"]
    """Index of the first token of each n-gram."""
    numbers: Int64[np.ndarray, " place"]
    """Number of each n-gram."""

    def grown(self) -> tuple["_Stream", Int64[np.ndarray, " place"]]:
        """The n-grams that go on for one more token, and the codes of what they become."""
        last = self.places + self.length
        fits = last < len(self.tokens)
        fits[fits] = (self.rows[last[fits]] == self.rows[self.places[fits]]) & (self.tokens[last[fits]] >= 0)
        if self.length >= 2:
            fits[fits] = ~self.stops[last[fits] - 1]
        codes = (self.numbers[fits] << SHIFT) | self.tokens[last[fits]]
        return replace(self.kept(fits, self.numbers[fits]), length=self.length + 1), codes

    def kept(self, which: Bool[np.ndarray, " place"], numbers: Int64[np.ndarray, " kept"]) -> "_Stream":
        """Some of the n-grams, with new numbers."""
        return replace(self, places=self.places[which], numbers=numbers.astype(np.int64, copy=False))

    def tally(self, rows: int, columns: int) -> sp.csr_array:
        """Count the numbers of each text: int32 (row, number)."""
        cells = np.sort(self.rows[self.places] * np.int64(max(columns, 1)) + self.numbers)
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        counts = np.diff(starts, append=len(cells)).astype(np.int32)
        row, column = np.divmod(cells[starts], max(columns, 1))
        ends = np.append(0, np.cumsum(np.bincount(row, minlength=rows)))  # row -> row+1
        index = np.int32 if len(starts) < 2**31 else np.int64  # scipy keeps the wider of the two, LIBLINEAR wants int32
        return sp.csr_array((counts, column.astype(index), ends.astype(index)), shape=(rows, columns))


def _read(kind: Kind, texts: Sequence[str], number: Callable[[str], int]) -> _Stream:
    if kind.name == "word":
        found = [[number(word) for word in words(text[: kind.max_chars])] for text in texts]
        tokens = np.fromiter(chain.from_iterable(found), dtype=np.int32)
        sizes = np.array([len(row) for row in found], dtype=np.int64)
    else:
        padded = [characters(text[: kind.max_chars]) for text in texts]
        tokens = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int32)
        sizes = np.array([len(text) for text in padded], dtype=np.int64)
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
    stops = (tokens == BLANK) & (kind.name == "char")
    if kind.name == "word":
        known = np.flatnonzero(tokens >= 0)
        return _Stream(tokens, rows, stops, 0, known, np.zeros(len(known), dtype=np.int64))
    # a first character is its own number
    return _Stream(tokens, rows, stops, 1, np.arange(len(tokens)), tokens.astype(np.int64))
