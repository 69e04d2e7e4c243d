"""Coverage: how often the model is wrong if it answers only where it is sure.

coverage   Subject -> the risk-coverage curve, and a few of its points
"""

import numpy as np

from sonde.learn.abstention import risk_coverage
from sonde.show.report.charts import Axis, Curve, chart, thinned
from sonde.show.report.markup import Markup, Shown, element, figure, joined, percent, table
from sonde.show.report.subject import Subject


def coverage(subject: Subject) -> Markup:
    """Left out, with a sentence, where a text has any number of labels."""
    if subject.multilabel:
        return element("p", "Models that give any number of labels do not abstain; label sets bound what they miss.")
    points = subject.measured["risk_coverage"]
    rows = [[percent(p["coverage"]), percent(p["error"]), figure(p["threshold"])] for p in points]
    found = table("What answering less brings", ["answered", "wrong", "from probability"], rows, words=0)
    hint = (
        "Thresholds that are read off here promise nothing for other texts; predict --target-error picks one on rows "
        "that were held out in training."
    )
    side = element("div", found, element("p", hint, class_="hint"))
    return joined([_said(subject), element("div", _drawn(subject), side, class_="beside")])


def _said(subject: Subject) -> Markup:
    error, area = 1 - subject.measured["accuracy"], subject.measured["aurc"]
    if not error:
        return element("p", "No answer is wrong: there is nothing to gain by answering less.")
    half = subject.measured["risk_coverage"][0]
    said = (
        f"If the model answers the surer half of the texts alone, {percent(half['error'])} of the answers are wrong "
        f"instead of {percent(error)}. The area under the curve is {figure(area)}; answers withheld at random would "
        f"leave {figure(error)}."
    )
    return element("p", said)


def _drawn(subject: Subject) -> Markup:
    curve = risk_coverage(subject.judged.probabilities.max(axis=1), subject.right)
    points = list(zip(curve.coverage.tolist(), curve.risk.tolist(), strict=True))
    error = float(curve.risk[-1])
    settled = curve.coverage >= 0.05  # with the first few texts the share jumps
    top = max(float(np.max(curve.risk[settled])), error, 0.01) * 1.1
    clipped = [(a, min(b, top)) for a, b in thinned(points)]
    x, y = Axis("answered, the surest first", 0, 1, "{:.0%}".format), Axis("wrong answers", 0, top, _fine(top))
    said = (
        f"The error falls from {percent(error)} with all texts answered to {percent(curve.at(0.5)['error'])} with half."
    )
    caption = "Share of wrong answers, by the share of texts that is answered. Dashed: texts withheld at random."
    curves = [Curve([(0, error), (1, error)], "second"), Curve(clipped, "first")]
    return chart("coverage-curve", "Risk-coverage curve", said, x, y, curves, caption)


def _fine(top: float) -> Shown:
    return "{:.0%}".format if top > 0.05 else "{:.1%}".format
