"""Depth: what fewer layers would do.

depth   Subject -> accuracy of each exit of a cascade, or the loss of stc with fewer layers, or a sentence
"""

from typing import Any

import numpy as np
from jaxtyping import Float64

from sonde.learn import learning, metrics
from sonde.learn.calibration import to_probabilities
from sonde.learn.cascade import Cascade
from sonde.scoring import blocks_of
from sonde.show.report.charts import Axis, Curve, chart, spanned
from sonde.show.report.intervals import wilson
from sonde.show.report.markup import Markup, count, element, figure, interval, joined, percent, table
from sonde.show.report.subject import Subject

SAMPLED = 2000
"""Rows that are read to the end for every exit: shares of them are known to two points, in bounded time."""

TRIED = {"log_loss": "log loss", "accuracy": "accuracy", "macro_f1": "macro F1"}
"""Figures by which depths are compared, by name."""


def depth(subject: Subject) -> Markup:
    """What the kind of model has to say of its depth."""
    learner: dict[str, Any] = subject.summary["learner"]
    mean = subject.measured["mean_depth"]
    cascade = learning.as_cascade(subject.classifier.model_)
    if cascade is not None:
        return _exits(subject, cascade, learner["exits"])
    if "eta" in learner:
        return _shallower(learner, mean)
    if not subject.classifier.backbones_:
        return element("p", "Left out: this model reads no backbone, hence no layers.")
    said = (
        f"Left out: this model has one exit; every text ran through {mean:g} layers. The recipe stc chooses a depth, "
    )
    return element("p", said, "and with --exit-loss lets texts leave at several.")


def _exits(subject: Subject, cascade: Cascade, known: dict[str, Any]) -> Markup:
    """Accuracy of every head by itself, beside what the texts made of them."""
    rows = _sample(subject.rows)
    right = _of_each(subject, cascade, rows)  # exit
    depths = cascade.depths.tolist()
    first = [(d, r / len(rows)) for d, r in zip(depths, right.tolist(), strict=True)]
    second = list(zip(depths, known.get("accuracy_of_each", ()), strict=False))
    low, high = spanned([y for _, y in first + second], 0.1)
    x = Axis("layers", depths[0], depths[-1] if depths[-1] > depths[0] else depths[0] + 1, ticks=tuple(depths))
    y = Axis("accuracy", max(low, 0.0), min(high, 1.0), "{:.0%}".format if high - low > 0.05 else "{:.1%}".format)
    said = "; ".join(f"{d} layers: {percent(a)}" for d, a in first)
    caption = (
        f"Accuracy of the head at each depth by itself. Solid: {count(len(rows), 'row')} of this test; dashed: out of "
        "fold, in training."
    )
    curves = [Curve(second, "second"), Curve(first, "first", dots=True)]
    drawn = chart("depth-curve", "Accuracy against depth", said, x, y, curves, caption)
    left = f"after {subject.measured['mean_depth']:.2f} layers in the mean, of {depths[-1]}"
    start = element("p", f"Texts leave as soon as a head is sure: {left}.")
    return joined([start, element("div", drawn, _leavers(subject, depths), class_="beside")])


def _leavers(subject: Subject, depths: list[int]) -> Markup:
    """How many rows left where, and how right they were."""
    rows = []
    for d in depths:
        here = subject.judged.depths == d
        n, right = int(here.sum()), int(subject.right[here].sum())
        shares = [percent(right / n), interval(*wilson(right, n))] if n else ["–", "–"]
        rows.append([f"{d}", count(n), percent(n / subject.rows), *shares])
    return table("Where the texts left", ["layers", "texts", "share", "right", "right, 95%"], rows, words=0)


def _sample(rows: int) -> list[int]:
    if rows <= SAMPLED:
        return list(range(rows))
    return sorted(np.random.default_rng(0).permutation(rows)[:SAMPLED].tolist())


def _of_each(subject: Subject, cascade: Cascade, rows: list[int]) -> Float64[np.ndarray, " exit"]:
    """How many of the rows the head of each exit gets right."""
    from sonde.read.extract import extract
    from sonde.read.sources import open_store

    classifier = subject.classifier
    sources = classifier.sources()
    texts = [subject.judged.texts[row] for row in rows]
    truth, strange = subject.judged.truth[rows], subject.judged.strange[rows]
    right = np.zeros(len(cascade.exits))
    blocks = list(blocks_of(cascade, sources).values())
    for window in extract(texts, sources, blocks, open_store(classifier.cache), total=len(texts)):
        here = slice(window.start, window.start + window.rows)
        for stage in range(len(cascade.exits)):
            logits = cascade.at(stage, window.blocks, window.rows)[0] / np.float32(classifier.temperature_)  # row class
            decided = classifier.decide(to_probabilities(logits, classifier.multilabel_))
            right[stage] += metrics.is_right(truth[here], decided, strange[here]).sum()
    return right


def _shallower(learner: dict[str, Any], mean: float) -> Markup:
    """What other depths did out of fold, in the figure by which stc chose its own."""
    name = next((one for one in TRIED if learner["tried"] and one in learner["tried"][0]), "")
    tried = {one["layers"]: one[name] for one in learner["tried"] if one["eta"] == learner["eta"]}
    start = f"Every text ran through {mean:g} layers. "
    if len(tried) < 2:
        return element("p", f"{start}No other depth was tried in training.")
    points = sorted(tried.items())
    x = Axis("layers", points[0][0], points[-1][0], ticks=tuple(k for k, _ in points))
    y = Axis(f"{TRIED[name]}, out of fold", *spanned(list(tried.values()), 0.1), "{:.3g}".format)
    said = "; ".join(f"{k} layers: {figure(value)}" for k, value in points)
    chosen = [(k, value) for k, value in points if k == learner["layers"]]
    curves = [Curve(points, dots=True), Curve(chosen, "third", dots=True)]
    caption = f"Heads on the first layers alone: {TRIED[name]}, out of fold. The large dot was chosen."
    drawn = chart("depth-curve", "What fewer layers would do", said, x, y, curves, caption)
    how = "The depth was chosen in training, out of fold: the fewest layers that are as good as any."
    return joined([element("p", start, how), drawn])
