"""KNN: the labels of the most similar training texts, by any block.

KNN   texts and labels in, labels and shares of votes out
"""

from typing import Any, Self

import numpy as np
from jaxtyping import Float64
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted

from sonde.baselines.classifying import Classifying
from sonde.baselines.prompting import check_whole
from sonde.baselines.retrieval import Neighbours, open_retriever
from sonde.errors import ArgumentError
from sonde.inputs import as_texts
from sonde.rows import as_labelled

NEARER = 1e-6
"""How much more a vote counts than that of the next farther neighbour: it decides ties, and nothing else."""


class KNN(Classifying):
    """Votes of the k nearest training texts, by cosine; of classes with as many votes, the nearer.

    Parameters
    ----------
    features : transformer under the scikit-learn contract, or None
        Texts -> (row, feature), dense or sparse: `ActivationFeatures` of any block, a TF-IDF vectoriser, ...; None:
        the sentence embedding of the offline bundle.
    k : int
        Neighbours that vote; 16 is what CARP retrieves (Sun et al. 2023, section 4).

    Attributes
    ----------
    classes_ : ndarray (class,)
        Sorted labels, of the type they came in.
    """

    def __init__(self, features: Any = None, k: int = 16) -> None:
        self.features = features
        self.k = k

    def fit(self, texts: Any, labels: Any, sample_weight: Any = None) -> Self:
        """Read the training texts; nothing else is learned.

        Parameters
        ----------
        texts, labels : as in `TextClassifier.fit`
        sample_weight : sequence of float, optional
            How much the vote of each text counts; a text of weight 0 is no neighbour.

        Raises
        ------
        DataError, ArgumentError
            Also if there are fewer texts than neighbours.
        """
        check_whole("k", self.k, 1)
        features = open_retriever(self.features, "features")
        rows = as_labelled(texts, labels, sample_weight, None)
        if len(rows.texts) < self.k:
            raise ArgumentError(f"k is {self.k}, but there are {len(rows.texts)} training texts. Give a smaller k.")
        told = rows.targets
        targets = told.indicator if told.multilabel else told.classes[told.ids]
        self.neighbours_ = Neighbours(features, rows.texts, targets)
        # not by distance, which is faster: a text without a known word, a vector of zeros, would be near to everything
        self.index_ = NearestNeighbors(n_neighbors=self.k, algorithm="brute", metric="cosine")
        self.index_.fit(self.neighbours_.vectors)
        self.indicator_, self.weights_ = told.indicator, rows.weights
        self._know(told)
        return self

    def _probabilities(self, texts: list[str]) -> Float64[np.ndarray, "row class"]:
        if not texts:
            return np.zeros((0, len(self.classes_)))
        nearest = self.index_.kneighbors(self.neighbours_.read(texts), return_distance=False)  # row neighbour
        votes = self.weights_[nearest] * (1 - NEARER * np.arange(self.k))  # row neighbour
        shares = np.einsum("rn,rnc->rc", votes, self.indicator_[nearest])  # row class
        return np.asarray(shares / votes.sum(axis=1, keepdims=True))  # row class

    def predict_proba(self, texts: Any) -> Float64[np.ndarray, "row class"]:
        """Shares of the votes, columns in the order of `classes_`; rows sum to 1 unless multi-label."""
        check_is_fitted(self, "classes_")
        return self._probabilities(as_texts(texts))
