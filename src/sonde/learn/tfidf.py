"""Counts of n-grams -> TF-IDF features, and back to plain data.

    Block    the n-grams of one kind that a model uses, and how much each says
    weigh    counts of training rows -> the block that they support

Counts are damped (1 + log), weighted by inverse document frequency, and rows are scaled to one length (Salton and
Buckley 1988, "Term-Weighting Approaches in Automatic Text Retrieval", section 3).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Int64

from sonde.errors import ModelError
from sonde.learn.ngrams import MIN_TEXTS, Kind, Vocabulary

# N-grams of one kind that a model may use, the most frequent ones: bounds the size of a saved model.
MAX_FEATURES = 300_000


@dataclass(frozen=True)
class Block:
    """The n-grams of one kind that a model uses, and their weights."""

    vocabulary: Vocabulary
    """N-grams that are counted."""
    columns: Int64[np.ndarray, " feature"]
    """Those of them that are used."""
    idf: Float32[np.ndarray, " feature"]
    """Inverse document frequency."""
    length: float = 1.0
    """Euclidean length of a row that has any of them."""

    def features(self, counts: sp.csr_array) -> sp.csr_array:
        """Counts (row, ngram) -> TF-IDF (row, feature), float32."""
        used = sp.csr_array(counts[:, self.columns], dtype=np.float32)  # row ngram -> row feature
        data = (1 + np.log(used.data)) * self.idf[used.indices]
        row = np.repeat(np.arange(used.shape[0]), np.diff(used.indptr))
        data *= self.length / np.sqrt(np.bincount(row, data**2, minlength=used.shape[0]))[row]
        return sp.csr_array((data.astype(np.float32), used.indices, used.indptr), shape=used.shape)

    def strings(self) -> list[str]:
        """The n-gram of each feature."""
        names = self.vocabulary.strings()
        return [names[column] for column in self.columns.tolist()]

    def settings(self) -> dict[str, Any]:
        """What `restored` needs beside the arrays; JSON values."""
        return {"kind": asdict(self.vocabulary.kind), "length": self.length}

    def arrays(self) -> dict[str, np.ndarray]:
        """Words as UTF-8 bytes and their ends, n-grams as the codes of `ngrams`."""
        encoded = [word.encode("utf-8", "surrogatepass") for word in self.vocabulary.words]
        return {
            "words": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "word_ends": np.cumsum([len(word) for word in encoded], dtype=np.int64),
            **{f"codes.{level}": codes for level, codes in enumerate(self.vocabulary.levels)},
            "columns": self.columns,
            "idf": self.idf,
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The block from its settings and arrays."""
        kind = Kind(**settings["kind"])
        text, stops = arrays["words"].tobytes(), arrays["word_ends"]
        if (np.diff(stops, prepend=0) < 0).any() or (stops[-1] if len(stops) else 0) != len(text):
            # words that overlap would take as many times the memory of the file as it has words
            raise ModelError(f"The words of kind {kind.name!r} do not follow one another: the model is damaged.")
        ends = stops.tolist()
        words = tuple(text[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise([0, *ends]))
        levels = tuple(arrays[f"codes.{level}"] for level in range(kind.longest - kind.shortest + 1))
        vocabulary, columns, idf = Vocabulary(kind, words, levels), arrays["columns"], arrays["idf"]
        if columns.shape != idf.shape or (columns >= vocabulary.size).any() or (columns < 0).any():
            raise ModelError(f"The n-grams of kind {kind.name!r} and their weights disagree: the model is damaged.")
        return cls(vocabulary, columns, idf, settings["length"])


def weigh(vocabulary: Vocabulary, counts: sp.csr_array) -> Block:
    """The n-grams in at least two of the rows of `counts` (row, ngram), if too many the most frequent ones."""
    frequency = np.bincount(counts.indices, minlength=vocabulary.size)  # ngram
    least = MIN_TEXTS
    if (frequency >= MIN_TEXTS).sum() > MAX_FEATURES:  # the next frequency up keeps ties together
        least = int(np.partition(frequency, -MAX_FEATURES - 1)[-MAX_FEATURES - 1]) + 1
    columns = np.flatnonzero(frequency >= least)  # feature
    idf = np.log((1 + counts.shape[0]) / (1 + frequency[columns])) + 1  # scikit-learn's smooth form
    return Block(vocabulary, columns, idf.astype(np.float32))
