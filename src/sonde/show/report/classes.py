"""Classes: how good the model is on each.

classes   Subject -> a table, the worst first
"""

from collections.abc import Sequence

from sonde.show.report.charts import bar
from sonde.show.report.intervals import wilson
from sonde.show.report.markup import Markup, count, element, figure, interval, joined, percent, table
from sonde.show.report.subject import Subject


def classes(subject: Subject) -> Markup:
    """Every class with its rows, errors, precision, recall and F1."""
    true, said = subject.truth.sum(axis=0), subject.decided.sum(axis=0)
    both = (subject.truth & subject.decided).sum(axis=0)
    order = sorted(range(len(subject.classes)), key=lambda k: (not true[k], _f1(both[k], true[k], said[k]), -true[k]))
    rows = [_row(subject.classes[k], int(both[k]), int(true[k]), int(said[k])) for k in order]
    what = "label" if subject.multilabel else "class"
    heads = [what, "F1", "rows", "missed", "false", "precision", "recall", "recall, 95%"]
    caption = f"Every {what}, the lowest F1 first"
    hint = (
        f"Missed: rows of the {what} to which the model does not give it. False: rows to which it gives it wrongly. "
        "The interval is Wilson's; a dash stands where there is nothing to divide by."
    )
    return joined([table(caption, heads, rows, kind="classes"), element("p", hint, class_="hint")])


def _row(name: str, both: int, true: int, said: int) -> Sequence[object]:
    f1 = _f1(both, true, said)
    shown = figure(f1) if true + said else "–"
    within = interval(*wilson(both, true)) if true else "–"
    ratios = [percent(both / whole) if whole else "–" for whole in (said, true)]
    return [name, joined([bar(f1), " ", shown]), count(true), count(true - both), count(said - both), *ratios, within]


def _f1(both: float, true: float, said: float) -> float:
    return float(2 * both / (true + said)) if true + said else 0.0
