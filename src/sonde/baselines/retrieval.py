"""Retrieval: the training texts most like a text.

Neighbours      training texts as unit vectors
open_retriever  an argument such as `retriever` -> something that turns texts into vectors
"""

from typing import Any

import numpy as np
from jaxtyping import Int64
from scipy import sparse
from sklearn.base import clone
from sklearn.preprocessing import normalize

from sonde.errors import ArgumentError

_CHUNK = 512
"""Texts compared at once: with 100,000 training texts, a matrix of 400 MB."""


class Neighbours:
    """Training texts as unit vectors, compared by cosine (CARP, section 3.3: inner product of L2-normalised vectors).

    Parameters
    ----------
    retriever : transformer under the scikit-learn contract
        Texts -> (row, feature), dense or sparse: `ActivationFeatures` of any block, a TF-IDF vectoriser, ...
    texts, labels : the training rows
    """

    def __init__(self, retriever: Any, texts: list[str], labels: Any) -> None:
        self.retriever = clone(retriever).fit(texts, labels)
        self.vectors = self.read(texts)

    def nearest(self, texts: list[str], k: int) -> Int64[np.ndarray, "row neighbour"]:
        """The k most similar training rows of each text, the most similar last; of equals, the later row is nearer."""
        found = np.empty((len(texts), k), dtype=np.int64)
        vectors = self.read(texts) if texts else np.empty((0, self.vectors.shape[1]))
        for start in range(0, len(texts), _CHUNK):
            alike = vectors[start : start + _CHUNK] @ self.vectors.T  # row, training row
            dense = alike.toarray() if sparse.issparse(alike) else np.asarray(alike)
            order = np.argsort(dense.astype(np.float32), axis=1, kind="stable")  # row, training row
            found[start : start + _CHUNK] = order[:, order.shape[1] - k :]
        return found

    def read(self, texts: list[str]) -> Any:
        """Texts as unit vectors, (row, feature)."""
        matrix = self.retriever.transform(texts)
        if len(getattr(matrix, "shape", ())) != 2 or matrix.shape[0] != len(texts):
            raise ArgumentError(
                f"{type(self.retriever).__name__} must turn texts into a matrix with one row a text; it "
                f"gave {getattr(matrix, 'shape', type(matrix).__name__)} for {len(texts)} texts."
            )
        return normalize(matrix)  # row feature


def open_retriever(retriever: Any, argument: str = "retriever") -> Any:
    """None = the sentence embedding of the offline bundle; else anything with fit and transform."""
    if retriever is None:
        from sonde.features import ActivationFeatures

        return ActivationFeatures("sentence")
    if not (hasattr(retriever, "fit") and hasattr(retriever, "transform")) or isinstance(retriever, type):
        raise ArgumentError(
            f"{argument} is {retriever!r:.60}; give a transformer such as ActivationFeatures('hidden.-1'), with fit "
            "and transform, or None for the sentence embedding of the offline bundle."
        )
    return retriever
