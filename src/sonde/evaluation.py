"""How good a classifier is on labelled rows that it has not seen.

evaluate   classifier, texts, labels -> a report as plain data
"""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sonde.classifier import TextClassifier
from sonde.errors import DataError, warn
from sonde.inputs import as_texts, present
from sonde.learn import metrics
from sonde.learn.abstention import risk_coverage
from sonde.learn.calibration import to_probabilities
from sonde.learn.splitting import text_keys
from sonde.learn.targets import encode_against, unseen

NAMED_LABELS = 5
"""Labels that a warning names; the report counts all."""

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
        text ran through), `per_class`; for models of one label a text, `aurc` and `risk_coverage` (coverage, error,
        threshold at a few coverages); for multi-label models, `micro_f1`, `subset_accuracy`, `mean_average_precision`.

    Warns
    -----
    SondeWarning
        missing_labels, unseen_labels, seen_in_training, truncated_rows and those about odd texts.
    """
    check_is_fitted(classifier, "classes_")
    rows = as_texts(texts)
    here = present(labels, len(rows))
    if not here.all():
        warn(f"{int((~here).sum())} rows have no label and are left out.", "missing_labels", int((~here).sum()))
        labels = [label for label, keep in zip(labels, here, strict=True) if keep]
        rows = [text for text, keep in zip(rows, here, strict=True) if keep]
    if not rows:
        raise DataError("There are no labelled rows to evaluate on.")
    labels = _named(labels, classifier.label_names_)
    targets = encode_against(labels, classifier.classes_, classifier.multilabel_)
    _warn_unseen(classifier, labels)
    _warn_known_texts(classifier, rows)
    parts = list(classifier.stream(rows))
    logits = np.concatenate([part.logits for part in parts])  # row class
    probabilities = to_probabilities(logits, classifier.multilabel_)
    taken = {
        "truncated_rows": sum(int(part.truncated.sum()) for part in parts),
        "mean_depth": float(np.concatenate([part.depths for part in parts]).mean()),
    }
    return _report(classifier, targets.indicator, probabilities, taken)


def _report(
    classifier: TextClassifier, truth: np.ndarray, probabilities: np.ndarray, taken: dict[str, Any]
) -> dict[str, Any]:
    multilabel = classifier.multilabel_
    decided = classifier.decide(probabilities)
    report: dict[str, Any] = {
        "n": len(truth),
        "accuracy": metrics.accuracy(truth, decided),
        "macro_f1": metrics.macro_f1(truth, decided),
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
        report["micro_f1"] = metrics.micro_f1(truth, decided)
        report["subset_accuracy"] = metrics.subset_accuracy(truth, decided)
        report["mean_average_precision"] = metrics.mean_average_precision(truth, probabilities)
    report["per_class"] = metrics.per_class(classifier.classes_, truth, decided)
    return report


def _named(labels: Any, names: dict[str, str]) -> Any:
    if not names or getattr(labels, "ndim", 1) != 1:
        return labels
    return [[names.get(str(x), x) for x in v] if isinstance(v, list | tuple) else names.get(str(v), v) for v in labels]


def _warn_unseen(classifier: TextClassifier, labels: Any) -> None:
    strange = unseen(labels, classifier.classes_, classifier.multilabel_)
    if strange:
        count = sum(strange.values())
        shown = ", ".join(f"{label!r} ({rows})" for label, rows in list(strange.items())[:NAMED_LABELS])
        more = f" and {len(strange) - NAMED_LABELS} more" if len(strange) > NAMED_LABELS else ""
        warn(
            f"{count} rows have labels that the model never saw; counted as wrong: {shown}{more}.",
            "unseen_labels",
            count,
        )


def _warn_known_texts(classifier: TextClassifier, texts: list[str]) -> None:
    known = int(np.isin(text_keys(texts), classifier.train_keys_).sum())
    if known:
        warn(
            f"{known} of {len(texts)} texts stand in the training rows too; figures on them flatter the model.",
            "seen_in_training",
            known,
        )
