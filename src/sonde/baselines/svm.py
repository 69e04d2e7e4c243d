"""SVM: a linear support vector machine on TF-IDF, as scikit-learn has them (Joachims 1998).

SVM   texts and labels in, labels and margins out

The line that everything else has to beat. Words and pairs of words, and a C that nobody chose; the recipe `lexical` is
the same idea with characters, and settings chosen by folds.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Float64
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sonde.baselines.classifying import Classifying
from sonde.baselines.prompting import check_whole
from sonde.errors import ArgumentError, DataError
from sonde.inputs import as_texts
from sonde.learn.calibration import fit_temperature, to_probabilities
from sonde.learn.splitting import Folds, make_folds
from sonde.learn.targets import Targets
from sonde.rows import Labelled, as_labelled, check_class_weight, class_factors

NGRAMS = (1, 2)
"""Words and pairs of words: Wang and Manning 2012 found pairs to help wherever tone counts."""

NEVER = -1e9
"""The margin of a class that no row of any weight has: finite, so that a temperature can be fitted."""


class SVM(Classifying):
    """A linear support vector machine on TF-IDF of words and pairs of words.

    Parameters
    ----------
    C : float
        Strength of the data term, as in scikit-learn.
    probability : bool
        Whether `predict_proba` is wanted: margins over a temperature that is fitted out of fold, for which the machine
        is trained five more times.
    class_weight : "balanced", dict or None
        As in scikit-learn.
    random_state : int
        Seed of the solver and of the folds.

    Attributes
    ----------
    classes_ : ndarray (class,)
        Sorted labels, of the type they came in.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        probability: bool = False,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.probability = probability
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, texts: Any, labels: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """Count, weigh and train; arguments as in `TextClassifier.fit`.

        Raises
        ------
        DataError, ArgumentError
            Also if no text holds a word.
        """
        if isinstance(self.C, bool) or not isinstance(self.C, int | float) or not 0 < self.C < float("inf"):
            raise ArgumentError(f"C is {self.C!r}; it must be a number above 0.")
        check_class_weight(self.class_weight)
        check_whole("random_state", self.random_state, 0)
        rows = as_labelled(texts, labels, sample_weight, None, groups)
        everything, folds = np.ones(len(rows.texts), dtype=bool), _whole(rows)
        if self.probability:
            folds = make_folds(rows.texts, rows.targets, seed=self.random_state, groups=rows.groups)
        weights = rows.weights * class_factors(self.class_weight, rows.targets, rows.weights, folds)
        self.temperature_ = self._temperature(rows, weights, folds) if self.probability else 1.0
        self.machine_ = self._train(rows, weights, everything)
        self._know(rows.targets)
        return self

    def _train(self, rows: Labelled, weights: Float[np.ndarray, " row"], some: Bool[np.ndarray, " row"]) -> "_Machine":
        some = some & (weights > 0)
        texts = [text for text, here in zip(rows.texts, some, strict=True) if here]
        return _Machine(texts, rows.targets.take(some), weights[some], float(self.C), self.random_state)

    def _temperature(self, rows: Labelled, weights: Float[np.ndarray, " row"], folds: Folds) -> float:
        """What margins are divided by: fitted on rows that the machine of their fold did not see."""
        margins = np.full(rows.targets.indicator.shape, np.nan)  # row class
        for fold in range(folds.n_folds):
            held = folds.held_out(fold)
            unseen = [text for text, here in zip(rows.texts, held, strict=True) if here]
            margins[held] = self._train(rows, weights, ~held).margins(unseen)
        seen = np.isfinite(margins).all(axis=1)
        return fit_temperature(margins[seen], rows.targets.take(seen), weights[seen]) if seen.any() else 1.0

    def _margins(self, texts: Any) -> Float64[np.ndarray, "row class"]:
        check_is_fitted(self, "classes_")
        return self.machine_.margins(as_texts(texts)) / self.temperature_

    def decision_function(self, texts: Any) -> Float64[np.ndarray, "..."]:
        """Margins (row, class); (row,) for two classes, positive for `classes_[1]`. With probabilities, scaled."""
        margins = self._margins(texts)
        return margins[:, 1] - margins[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else margins

    def _probabilities(self, texts: list[str]) -> Float64[np.ndarray, "row class"]:
        return to_probabilities(self._margins(texts), self.multilabel_)

    @available_if(lambda self: self.probability)  # type: ignore[untyped-decorator]
    def predict_proba(self, texts: Any) -> Float64[np.ndarray, "row class"]:
        """Calibrated probabilities, columns in the order of `classes_`; with `probability=True` alone."""
        return to_probabilities(self._margins(texts), self.multilabel_)


def _whole(rows: Labelled) -> Folds:
    """All rows train, none is held out."""
    n = len(rows.texts)
    return Folds(np.full(n, -1), np.ones(n, dtype=bool), np.zeros(n, dtype=bool), 0)


class _Machine:
    """A vocabulary and one machine, or one a label."""

    def __init__(
        self, texts: list[str], targets: Targets, weights: Float[np.ndarray, " row"], C: float, seed: int
    ) -> None:
        self.vectoriser = TfidfVectorizer(ngram_range=NGRAMS, sublinear_tf=True)
        try:
            features = self.vectoriser.fit_transform(texts)  # row feature
        except ValueError as error:  # scikit-learn: empty vocabulary
            raise DataError(
                "No training text holds a word of two letters or more: there is nothing to count."
            ) from error
        self.multilabel, self.classes = targets.multilabel, targets.n_classes
        self.known = np.unique(targets.ids) if not targets.multilabel else np.arange(targets.n_classes)
        columns = targets.indicator.T > 0 if targets.multilabel else [targets.ids]  # class row, or row
        self.machines = [
            LinearSVC(C=C, random_state=seed).fit(features, column, sample_weight=weights)
            if len(np.unique(column)) > 1
            else bool(column[0])
            for column in columns
        ]

    def margins(self, texts: list[str]) -> Float64[np.ndarray, "row class"]:
        """One number a class; of two classes, the halves of one. A class without a row of any weight never wins."""
        if not texts:
            return np.zeros((0, self.classes))
        features = self.vectoriser.transform(texts)  # row feature
        found = [
            np.full(len(texts), np.inf if one else -np.inf)
            if isinstance(one, bool)
            else one.decision_function(features)
            for one in self.machines
        ]
        if self.multilabel:
            return np.stack(found, axis=1)  # row -> row class
        margins = np.full((len(texts), self.classes), NEVER)  # row class
        if len(self.known) == 1:
            margins[:, self.known] = 0.0
        else:
            halves = np.stack([-found[0] / 2, found[0] / 2], axis=1) if found[0].ndim == 1 else found[0]
            margins[:, self.known] = halves
        return margins
