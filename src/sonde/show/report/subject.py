"""What a report is about.

Subject    a classifier, the rows that it was judged on, and their figures
describe   classifier, texts, labels -> Subject
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from sonde.classifier import TextClassifier
from sonde.evaluation import Judged, judge, measure
from sonde.learn.metrics import is_right


@dataclass(frozen=True)
class Subject:
    """A classifier, the rows that it was judged on, and their figures."""

    name: str
    """What the model is called."""
    classifier: TextClassifier
    """Fitted."""
    judged: Judged
    """Every labelled row."""
    measured: dict[str, Any]
    """As `evaluate` gives it."""

    @property
    def multilabel(self) -> bool:
        """Whether a text may have any number of labels."""
        return bool(self.classifier.multilabel_)

    @property
    def summary(self) -> dict[str, Any]:
        """What the classifier remembers of its training."""
        return dict(self.classifier.summary_)

    @cached_property
    def classes(self) -> list[str]:
        """Labels as they are shown."""
        return [str(label) for label in self.classifier.classes_.tolist()]

    @cached_property
    def truth(self) -> Bool[np.ndarray, "row class"]:
        """Labels that are given."""
        return self.judged.truth > 0

    @cached_property
    def decided(self) -> Bool[np.ndarray, "row class"]:
        """Labels that the model gives."""
        return np.asarray(self.classifier.decide(self.judged.probabilities))

    @cached_property
    def right(self) -> Bool[np.ndarray, " row"]:
        """Rows all of whose labels are right."""
        return is_right(self.truth, self.decided, self.judged.strange)

    @cached_property
    def foreign(self) -> Bool[np.ndarray, " row"]:
        """Rows whose one label the model does not know."""
        return np.asarray(~self.truth.any(axis=1)) if not self.multilabel else np.zeros(self.rows, dtype=bool)

    @cached_property
    def given_ids(self) -> Int64[np.ndarray, " row"]:
        """The class of each row; -1 where the model does not know it. One label a text only."""
        assert not self.multilabel, "rows have any number of classes"
        return np.where(self.foreign, -1, self.truth.argmax(axis=1)).astype(np.int64)

    @property
    def rows(self) -> int:
        """Labelled rows."""
        return len(self.judged.texts)

    def number(self, row: int) -> int:
        """The row of the table that was given, counted from 1, its head aside."""
        return int(self.judged.rows[row]) + 1

    def given(self, row: int) -> str:
        """The label or labels of a row, as they are shown."""
        if not self.multilabel:
            return str(self.judged.labels[row])
        return self._listed(self.truth[row])

    def said(self, row: int) -> str:
        """What the model says of a row, likewise."""
        return self._listed(self.decided[row])

    def _listed(self, indicator: Bool[np.ndarray, " class"]) -> str:
        return ", ".join(self.classes[k] for k in np.flatnonzero(indicator)) or "no label"


def describe(classifier: TextClassifier, texts: Any, labels: Any, name: str) -> Subject:
    """Judge and measure; errors and warnings as of `evaluate`."""
    judged = judge(classifier, texts, labels)
    return Subject(name, classifier, judged, measure(classifier, judged))
