"""How good a classifier is on labelled rows that it has not seen.

evaluate   classifier, texts, labels -> a report as plain data
judge      classifier, texts, labels -> Judged: every row with its truth and its probabilities
measure    Judged -> the report
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from sklearn.utils.validation import check_is_fitted

from sonde.classifier import TextClassifier
from sonde.errors import warn
from sonde.learn import metrics
from sonde.learn.abstention import risk_coverage
from sonde.learn.calibration import to_probabilities
from sonde.learn.splitting import text_keys
from sonde.rows import as_tested

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Shares of answered texts at which the report gives the error; below a half a classifier is hardly of use."""


def evaluate(classifier: TextClassifier, texts: Any, labels: Any) -> dict[str, Any]:
    """Measure a fitted classifier.

    Parameters
    ----------
    classifier : TextClassifier
    texts : sequence of str
    labels : as in `TextClassifier.fit`
        Rows without a label are left out; labels that the model does not know count as wrong. Names given with
        `--label-names` and the labels they stand for are both understood.

    Returns
    -------
    dict
        `accuracy`, `macro_f1`, `log_loss` (nats), `ece` (15 equal-mass bins), `ece_95` (what a perfectly calibrated
        model of the same confidences stays below in 95% of cases), `n`, `truncated_rows`, `mean_depth` (layers that a
        text ran through), `mean_average_precision` and `roc_auc` (of each class against all others, averaged),
        `per_class` (the same of each, with precision, recall, f1, support); for models of one label a text, `aurc` and
        `risk_coverage` (coverage, error, threshold at a few coverages); for multi-label models, `micro_f1`,
        `subset_accuracy`.

    Warns
    -----
    SondeWarning
        missing_labels, unseen_labels, seen_in_training, truncated_rows and those about odd texts.
    """
    return measure(classifier, judge(classifier, texts, labels))


@dataclass(frozen=True)
class Judged:
    """Labelled rows, and what a classifier says of them."""

    rows: Int64[np.ndarray, " row"]
    """Places of the rows among the texts that were given; those without a label are left out."""
    given: int
    """How many texts were given."""
    texts: list[str]
    """One text a row."""
    labels: Any
    """As given: one a row, a list a row, or a 0/1 matrix with a row each."""
    truth: Float32[np.ndarray, "row class"]
    """1 where a row has a class; nowhere for a label that the model does not know."""
    unknown: Int64[np.ndarray, " row"]
    """How many such labels a row has."""
    probabilities: Float[np.ndarray, "row class"]
    """What the classifier says."""
    truncated: Bool[np.ndarray, " row"]
    """Whether the model did not see the whole of a text."""
    depths: Int64[np.ndarray, " row"]
    """Layers that each text ran through."""
    known: Bool[np.ndarray, " row"]
    """Whether a text stands in the training or validation rows too."""
    unseen: dict[Any, int]
    """Labels that the model does not know, with their rows, most frequent first."""
    seconds: float
    """That reading and scoring took."""

    @property
    def strange(self) -> Bool[np.ndarray, " row"]:
        """Whether a row has a label that the model does not know."""
        return self.unknown > 0


def judge(classifier: TextClassifier, texts: Any, labels: Any) -> Judged:
    """Score labelled rows; arguments, errors and warnings as of `evaluate`."""
    check_is_fitted(classifier, "classes_")
    rows = as_tested(classifier, texts, labels)
    assert rows.targets.unknown is not None, "labels were held against known classes"
    known = np.isin(text_keys(rows.texts), classifier.train_keys_)
    warn_known_texts(known)
    started = time.perf_counter()
    parts = list(classifier.stream(rows.texts))
    logits = np.concatenate([part.logits for part in parts])  # row class
    return Judged(
        rows=np.flatnonzero(rows.here),
        given=len(rows.here),
        texts=rows.texts,
        # a Series counts by its index
        labels=list(rows.labels) if getattr(rows.labels, "ndim", 1) == 1 else rows.labels,
        truth=rows.targets.indicator,
        unknown=rows.targets.unknown,
        probabilities=to_probabilities(logits, classifier.multilabel_),
        truncated=np.concatenate([part.truncated for part in parts]),
        depths=np.concatenate([part.depths for part in parts]),
        known=known,
        unseen=dict(rows.targets.unseen),
        seconds=time.perf_counter() - started,
    )


def measure(classifier: TextClassifier, judged: Judged) -> dict[str, Any]:
    """The figures of `evaluate`, of rows that were judged."""
    taken = {"truncated_rows": int(judged.truncated.sum()), "mean_depth": float(judged.depths.mean())}
    return _report(classifier, judged, taken)


def _report(classifier: TextClassifier, judged: Judged, taken: dict[str, Any]) -> dict[str, Any]:
    truth, probabilities = judged.truth, judged.probabilities
    multilabel = classifier.multilabel_
    decided = classifier.decide(probabilities)
    report: dict[str, Any] = {
        "n": len(truth),
        "accuracy": metrics.accuracy(truth, decided, strange=judged.strange),
        "macro_f1": metrics.macro_f1(truth, decided, foreign=len(judged.unseen)),
        "log_loss": metrics.log_loss(truth, probabilities, multilabel=multilabel),
        "ece": metrics.expected_calibration_error(truth, probabilities, multilabel=multilabel),
        "ece_95": metrics.calibrated_error(probabilities, multilabel=multilabel),
        **taken,
    }
    if not multilabel:
        curve = risk_coverage(probabilities.max(axis=1), np.asarray((decided & (truth > 0)).any(axis=1)))
        report["aurc"] = curve.area
        report["risk_coverage"] = [curve.at(coverage) for coverage in COVERAGES]
    else:
        report["micro_f1"] = metrics.micro_f1(truth, decided, unknown=judged.unknown)
        report["subset_accuracy"] = report["accuracy"]
    table = metrics.per_class(classifier.classes_, truth, decided, probabilities)
    report["mean_average_precision"] = metrics.mean_of(table, "average_precision") or 0.0
    report["roc_auc"] = metrics.mean_of(table, "roc_auc")
    report["per_class"] = table
    return report


def warn_known_texts(known: Bool[np.ndarray, " row"]) -> None:
    """Say how many test rows stand in the training or validation rows too."""
    if known.any():
        warn(
            f"{int(known.sum())} of {len(known)} texts stand in the training or validation rows too; figures on them "
            "flatter the model.",
            "seen_in_training",
            int(known.sum()),
        )
