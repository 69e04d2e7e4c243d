"""Calibration: whether a probability of 90% is right in 90% of the cases.

calibration   Subject -> reliability diagram, verdict, and its figures as a table
"""

from typing import Any

from sonde.learn import metrics
from sonde.show.report.charts import Axis, Curve, chart
from sonde.show.report.intervals import wilson
from sonde.show.report.markup import Markup, count, element, figure, interval, joined, percent, table
from sonde.show.report.subject import Subject


def calibration(subject: Subject) -> Markup:
    """The bins of the expected calibration error."""
    judged = subject.judged
    bins = metrics.reliability(judged.truth, judged.probabilities, multilabel=subject.multilabel)
    what = "labels" if subject.multilabel else "rows"
    rows = [_row(one) for one in bins]
    heads = ["probability", "mean", "right", "right, 95%", what]
    figures = table("The same in figures, the least sure first", heads, rows)
    drawn = element("div", _diagram(bins, what), element("div", figures), class_="beside")
    return joined([element("p", _verdict(subject)), drawn])


def _verdict(subject: Subject) -> str:
    error, bound = subject.measured["ece"], subject.measured["ece_95"]
    start = (
        f"Probabilities are off by {figure(error)} in the mean (expected calibration error, 15 bins of equally many). "
        f"A perfectly calibrated model would stay below {figure(bound)} in 95% of cases"
    )
    if error <= bound:
        return f"{start}: nothing here speaks against the probabilities."
    return f"{start}: the probabilities are off by more than chance."


def _diagram(bins: list[dict[str, Any]], what: str) -> Markup:
    points = [(one["confidence"], one["right"] / one["decisions"]) for one in bins]
    ranges = [wilson(one["right"], one["decisions"]) for one in bins]
    said = "; ".join(f"at {percent(a)} right in {percent(b)}" for a, b in points)
    x, y = (Axis(title, 0, 1, "{:.0%}".format) for title in ("probability", "right"))
    curves = [Curve([(0, 0), (1, 1)], "guide"), Curve(points, dots=True, line=False, ranges=ranges)]
    caption = (
        f"Each dot is a bin of equally many {what}; whiskers are Wilson's 95% intervals. On the thin line a "
        "probability is what it says; below it the model is too sure."
    )
    return chart("reliability", "Reliability diagram", said, x, y, curves, caption)


def _row(one: dict[str, Any]) -> list[str]:
    right, decisions = one["right"], one["decisions"]
    return [
        interval(one["least"], one["most"]),
        percent(one["confidence"]),
        percent(right / decisions),
        interval(*wilson(right, decisions)),
        count(decisions),
    ]
