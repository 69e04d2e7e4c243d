"""Classifying: what the baselines that learn from labelled texts share.

Classifying   labels and probabilities, as their callers know them from `TextClassifier`
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import metadata_routing
from sklearn.utils.validation import check_is_fitted

from sonde.inputs import as_texts
from sonde.learn.calibration import decide
from sonde.learn.targets import Targets
from sonde.rows import score


class Classifying(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]
    """Base of classifiers that learn from labelled texts; see `FineTuning`, `SVM` and `KNN`."""

    # scikit-learn calls them X and y; under our names too they are no metadata to be routed
    __metadata_request__fit: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__score: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__predict: ClassVar = {"texts": metadata_routing.UNUSED}
    __metadata_request__predict_proba: ClassVar = {"texts": metadata_routing.UNUSED}
    __metadata_request__decision_function: ClassVar = {"texts": metadata_routing.UNUSED}

    metric: str = "accuracy"
    """What `score` returns; `FineTuning` has it as a parameter."""
    classes_: np.ndarray
    """(class,) sorted labels, of the type they came in."""
    multilabel_: bool
    """Whether a text may have any number of labels."""
    thresholds_: Float[np.ndarray, " class"] | None = None
    """Of multi-label models: the probability from which a label is given; None: .5 for all."""

    def _know(self, targets: Targets) -> None:
        """Take over the classes and the form in which labels came."""
        self.classes_, self.multilabel_ = targets.classes, targets.multilabel
        self.matrix_labels_ = targets.matrix

    @abstractmethod
    def _probabilities(self, texts: list[str]) -> Float[np.ndarray, "row class"]:
        """Of texts that were checked; single-label rows need not sum to 1."""

    def judged(self, texts: Any) -> tuple[Bool[np.ndarray, "row class"], Float[np.ndarray, "row class"] | None]:
        """Decisions, and probabilities if there are any; of one pass, as `bench` measures it."""
        check_is_fitted(self, "classes_")
        found = self._probabilities(as_texts(texts))
        decided = decide(found, self.multilabel_, self.thresholds_)
        return decided, found if hasattr(self, "predict_proba") else None

    def predict(self, texts: Any) -> Any:
        """The most probable label of each text.

        Returns
        -------
        ndarray (row,) of the type of `classes_`; for multi-label data a list of label lists, or a 0/1 matrix
        (row, class) if the model was trained on one
        """
        decided, _ = self.judged(texts)
        if not self.multilabel_:
            return self.classes_[decided.argmax(axis=1)]
        if self.matrix_labels_:
            return decided.astype(np.int64)
        return [self.classes_[row].tolist() for row in decided]

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """Accuracy (of multi-label data, of whole label sets), or the metric that the classifier aims at."""
        check_is_fitted(self, "classes_")
        return score(self, texts, labels, sample_weight, lambda rows: self.judged(rows)[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags
