"""Texts -> counts of word and character n-grams, without a Python loop over the n-grams.

    Kind          which n-grams: of words or of characters, how long, and how much of a text is read
    WORDS, CHARS  the two kinds that `lexical` reads
    Vocabulary    the n-grams of one kind that are counted, each with its column
    learn         texts -> the vocabulary of n-grams in at least two texts, and the counts of all texts

An n-gram is an n-gram of one token less and one more token: with the former as a number, both fit into one 64-bit code,
so that n-grams of any length are counted by sorting whole numbers, exactly and without hashing. An n-gram is at most as
frequent as its own beginning, hence rare ones can be dropped length by length (the argument of Agrawal and Srikant 1994,
"Fast Algorithms for Mining Association Rules", section 2.1).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

# A word, or one punctuation mark: "!" and "?" tell about tone, and one-letter words are words.
TOKEN = re.compile(r"\w+|[^\w\s]")
# N-grams of one text alone cannot tell about another text; with them the vocabulary would be several times larger.
MIN_TEXTS = 2
BLANK = 32
SHIFT = 32  # a code is prefix << 32 | token; both are far below 2**31


@dataclass(frozen=True)
class Kind:
    """Which n-grams are counted."""

    name: Literal["word", "char"]
    """Tokens are words and punctuation marks, or characters; character n-grams stay inside a word and its two blanks."""
    shortest: int
    """Tokens of the shortest n-grams."""
    longest: int
    """Tokens of the longest n-grams."""
    max_chars: int
    """Characters read from the beginning of a text."""


WORDS = Kind("word", 1, 2, 2**20)
CHARS = Kind("char", 2, 5, 600)


@dataclass(frozen=True)
class Vocabulary:
    """The n-grams of one kind that are counted, each with its column."""

    kind: Kind
    """What is counted."""
    tokens: dict[str, int]
    """Word -> number; empty for characters, whose number is their code point."""
    levels: tuple[Int64[np.ndarray, " ngram"], ...]
    """For each length from 1 (words) or 2 (characters) on, the codes of the n-grams in ascending order."""

    @property
    def size(self) -> int:
        """Number of columns."""
        return sum(len(level) for level in self.levels)

    def count(self, texts: Sequence[str]) -> sp.csr_array:
        """Counts (row, ngram) of the n-grams; columns are the n-grams of the levels in turn."""
        stream = _Stream.of(self.kind, texts, self.tokens)
        counts = []
        for level in self.levels:
            codes = stream.codes()
            place = np.minimum(np.searchsorted(level, codes), max(len(level) - 1, 0))
            known = level[place] == codes if len(level) else np.zeros(len(codes), dtype=bool)
            counts.append(_tally(stream.keep(known, place[known]), len(texts), len(level)))
        return sp.hstack(counts, format="csr")

    def strings(self) -> list[str]:
        """The n-grams as text, in the order of the columns; words are joined by a blank."""
        join = " " if self.kind.name == "word" else ""
        names = list(self.tokens) if self.kind.name == "word" else None
        before: list[str] | None = None
        found: list[str] = []
        for level in self.levels:
            prefixes, tokens = (level >> SHIFT).tolist(), (level & (2**SHIFT - 1)).tolist()
            last = [names[t] if names is not None else chr(t) for t in tokens]
            if before is None and self.kind.name == "word":
                before = last
            else:
                begin = [chr(p) for p in prefixes] if before is None else [before[p] for p in prefixes]
                before = [first + join + end for first, end in zip(begin, last, strict=True)]
            found += before
        return found
