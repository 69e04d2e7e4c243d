"""Can its probabilities be trusted? Calibration, label sets, abstention and texts of unknown classes on the five sets.

run          fit `auto` on each set, whole and without a quarter of its classes; write docs/results/trust.{json,md}
halvings     label sets calibrated on one half of the test rows and tested on the other, many times over
to_markdown  the page, from the JSON alone

Every finished cell is kept in the JSON file at once: a run that is stopped goes on where it was.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from sonde.bench import machine, rejection
from sonde.bench.cells import table, write_json, write_page
from sonde.bench.datasets import DataSet, chosen, in_order, read_split, title
from sonde.bench.machine import Stopwatch
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.evaluation import evaluate
from sonde.learn.conformal import conformal_scores, predict_sets
from sonde.learn.targets import Targets, encode_against
from sonde.plan import BUNDLE
from sonde.progress import track

RECIPE = "auto"
BACKBONE = BUNDLE
ALPHAS = (0.1, 0.05)
TARGETS = (0.1, 0.05, 0.02)
HALVINGS = 50
"""Random halves of the test rows, each calibrating the other."""

SLACK = 0.01
"""What the calibration error may exceed the value that chance alone leaves a perfectly calibrated model."""

SHIFTED = {"sst2": "trained on phrases, tested on sentences: reported, not judged"}
"""Sets whose held-out rows are not like their test rows, which no calibration on them can know."""


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Fill every cell and write the page; arguments as in `bench.tables.run` (`models` is not needed)."""
    names, path = chosen(data, only), Path(out) / "trust.json"
    content = _known(path, rows)
    with track("trust", len(names) * (1 + rejection.QUARTERS), "cells") as advance:
        for name in names:
            train, test = (read_split(data, name, split).take(rows) for split in ("train", "test"))
            for key, measure in _cells(name, train, test, cache):
                if key not in content["cells"]:
                    content["cells"][key] = _quietly(measure)
                    _keep(path, content)
                advance(1)
    return write_page(path, to_markdown(content))


def _known(path: Path, rows: int | None) -> dict[str, Any]:
    """What an earlier run with as many rows has finished."""
    fresh: dict[str, Any] = {"rows_limit": rows, "recipe": RECIPE, "cells": {}}
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else fresh
    return found if all(found[name] == fresh[name] for name in ("rows_limit", "recipe")) else fresh


def _keep(path: Path, content: dict[str, Any]) -> None:
    content["machine"] = machine.describe()
    write_json(path, content)


def _cells(name: str, train: DataSet, test: DataSet, cache: Any) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Keys of the cells of a set, each with what measures it."""
    yield name, lambda: _trust(train, test, cache)
    for place, unknown in enumerate(rejection.quarters(train.labels)):
        yield (
            f"{name}|without {place}",
            lambda unknown=unknown: rejection.measure(  # type: ignore[misc]
                train, test, unknown, _classifier(cache), BACKBONE, cache
            ),
        )


def _classifier(cache: Any) -> TextClassifier:
    return TextClassifier(RECIPE, (BACKBONE,), cache=cache)


def _quietly(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # rare classes and cut texts stand in the other tables
        return measure()


def _trust(train: DataSet, test: DataSet, cache: Any) -> dict[str, Any]:
    """Everything about one fitted model but unknown classes."""
    watch = Stopwatch()
    classifier = _classifier(cache).fit(train.texts, train.labels)
    fitted = watch.read()
    probabilities = classifier.predict_proba(test.texts)
    targets = encode_against(test.labels, classifier.classes_, False)
    report = evaluate(classifier, test.texts, test.labels)
    return {
        "train_rows": len(train.texts),
        "fit": fitted,
        "report": {name: value for name, value in report.items() if name != "per_class"},
        "conformal": [_conformal(probabilities, targets, classifier.conformal_scores_, alpha) for alpha in ALPHAS],
        "abstention": [_abstention(probabilities, targets, classifier, target) for target in TARGETS],
    }


def _conformal(
    probabilities: Float[np.ndarray, "row class"], targets: Targets, scores: Float[np.ndarray, " scored"], alpha: float
) -> dict[str, Any]:
    """Coverage and size with calibration on halves of the test rows, and with the calibration of training."""
    sets = predict_sets(probabilities, scores, alpha, allow_empty=True)
    covered = _covered(sets, targets)
    interval = binomtest(int(covered.sum()), len(covered)).proportion_ci()
    trained = {
        "rows": len(scores),
        "coverage": float(covered.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "size": float(sets.sum(axis=1).mean()),
        "never_empty_size": float(predict_sets(probabilities, scores, alpha).sum(axis=1).mean()),
    }
    return {"alpha": alpha, "halvings": halvings(probabilities, targets, alpha), "train": trained}


def halvings(probabilities: Float[np.ndarray, "row class"], targets: Targets, alpha: float) -> dict[str, float]:
    """Mean over random halvings: coverage, its standard deviation, mean size, share of empty sets."""
    rng, found = np.random.default_rng(0), []
    for _ in range(HALVINGS):
        halves = np.array_split(rng.permutation(len(probabilities)), 2)
        for half, other in (halves, halves[::-1]):  # what one half owes to luck the other has too little of
            scores = conformal_scores(probabilities[half], targets.take(half))
            sets = predict_sets(probabilities[other], scores, alpha, allow_empty=True)
            sizes = sets.sum(axis=1)
            found.append((_covered(sets, targets.take(other)).mean(), sizes.mean(), (sizes == 0).mean()))
    coverage, size, empty = np.mean(found, axis=0).tolist()
    return {"coverage": coverage, "deviation": float(np.std(found, axis=0)[0]), "size": size, "empty": empty}


def _covered(sets: Bool[np.ndarray, "row class"], targets: Targets) -> Bool[np.ndarray, " row"]:
    return np.asarray((sets & (targets.indicator > 0)).any(axis=1))


def _abstention(
    probabilities: Float[np.ndarray, "row class"], targets: Targets, classifier: TextClassifier, target: float
) -> dict[str, Any]:
    """What a target error chosen in training comes to on the test rows."""
    threshold = classifier.answer_threshold(target_error=target)
    answered = probabilities.max(axis=1) >= threshold
    right = _covered(classifier.decide(probabilities), targets)
    return {
        "target": target,
        "threshold": threshold if answered.any() else None,
        "rows": len(classifier.conformal_scores_),
        "answered": float(answered.mean()),
        "error": float((~right[answered]).mean()) if answered.any() else None,
    }


# -------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    cells = {name: content["cells"][name] for name in in_order(key for key in content["cells"] if "|" not in key)}
    limit = content["rows_limit"]
    trial = f"**A trial: at most {limit:,} rows of each split.** " if limit else ""
    parts = [
        "# Can the probabilities be trusted?",
        f"{trial}Written by `sonde bench trust`: recipe `{content['recipe']}`, all-MiniLM-L6-v2; every figure comes "
        "from `trust.json` beside this page. What the words mean: [probabilities.md](../probabilities.md).",
        machine.sentence(content["machine"]),
        "## Calibration",
        _calibration(cells),
        "## Label sets",
        _label_sets(cells),
        "## Abstention",
        _risk_coverage(cells),
        _target_errors(cells),
        "## Texts of unknown classes",
        rejection.to_markdown(content["cells"]),
    ]
    return "\n\n".join(parts) + "\n"


def _calibration(cells: Mapping[str, Any]) -> str:
    rows = []
    for name, cell in cells.items():
        report = cell["report"]
        kept = "yes" if report["ece"] <= report["ece_95"] + SLACK else "no"
        values = [f"{report[key]:.4f}" for key in ("accuracy", "log_loss", "ece", "ece_95")]
        rows.append([title(name), f"{cell['train_rows']:,}", f"{report['n']:,}", *values, SHIFTED.get(name, kept)])
    heads = [
        "set",
        "training rows",
        "test rows",
        "accuracy",
        "log loss",
        "ECE",
        "95% value",
        f"ECE at most that + {SLACK:g}",
    ]
    return (
        "ECE: 15 bins of equal mass. 95% value: what the ECE of a perfectly calibrated model with these confidences "
        "stays below in 95% of 1,000 draws of the labels.\n\n" + table(heads, rows)
    )


def _label_sets(cells: Mapping[str, Any]) -> str:
    rows = []
    for name, cell in cells.items():
        for found in cell["conformal"]:
            half, train = found["halvings"], found["train"]
            rows.append([
                title(name), f"{found['alpha']:g}",
                f"{half['coverage']:.4f} ({half['deviation']:.3f})",
                "yes" if abs(half["coverage"] - 1 + found["alpha"]) <= SLACK else "no",
                f"{half['size']:.2f}", f"{half['empty']:.1%}",
                f"{train['coverage']:.4f} [{train['low']:.3f}, {train['high']:.3f}]",
                f"{train['rows']:,}", f"{train['size']:.2f}", f"{train['never_empty_size']:.2f}",
            ])  # fmt: skip
    heads = ["set", "alpha", "coverage (deviation)", "within 1 point", "mean size", "empty", "coverage, trained [95%]",
             "calibrating rows", "mean size", "mean size, never empty"]  # fmt: skip
    return (
        "Left: calibrated on one half of the test rows, tested on the other, and the reverse; mean of "
        f"{HALVINGS} random halvings. "
        "Right: calibrated in training, on the fold that chose nothing, tested on all test rows; the binomial interval "
        "is that of the test rows alone. Empty sets are allowed but in the last column.\n\n" + table(heads, rows)
    )


def _risk_coverage(cells: Mapping[str, Any]) -> str:
    wanted = [f"{p['coverage']:.0%}" for p in next(iter(cells.values()))["report"]["risk_coverage"]] if cells else []
    rows = [
        [title(n), *(f"{p['error']:.4f}" for p in cell["report"]["risk_coverage"]), f"{cell['report']['aurc']:.4f}"]
        for n, cell in cells.items()
    ]
    return "Error among the answers, when so many of the texts are answered, the surest first; and its mean over all " \
        "coverages.\n\n" + table(["set", *wanted, "area"], rows)  # fmt: skip


def _target_errors(cells: Mapping[str, Any]) -> str:
    rows = [
        [title(name), f"{found['target']:g}", f"{found['rows']:,}", _or_dash(found["threshold"], ".4f"),
         f"{found['answered']:.1%}", _or_dash(found["error"], ".4f")]
        for name, cell in cells.items() for found in cell["abstention"]
    ]  # fmt: skip
    heads = ["set", "target error", "calibrating rows", "threshold", "answered", "error among the answers"]
    return "Thresholds chosen in training for a target error, on the test rows.\n\n" + table(heads, rows)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
