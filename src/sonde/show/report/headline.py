"""The headline: the figures that are asked for first, each with how far chance may have moved it.

headline   Subject -> cards, and sentences that set them beside what one would expect
"""

from functools import partial

from sonde.learn import metrics
from sonde.show.report.intervals import DRAWS, Measure, around, newcombe, resampled, wilson
from sonde.show.report.markup import Markup, Shown, count, element, figure, joined, percent
from sonde.show.report.subject import Subject


def headline(subject: Subject) -> Markup:
    """Cards of figures, and what they compare with."""
    cards = _of_sets(subject) if subject.multilabel else _of_labels(subject)
    judged = subject.judged
    within = around(metrics.row_losses(judged.truth, judged.probabilities, multilabel=subject.multilabel))
    unit = "nats a label" if subject.multilabel else "nats a text"
    between = _within(*within, figure) if within else ""
    cards.append(_card("Log loss", figure(subject.measured["log_loss"]), between, unit))
    cards.append(_calibration(subject))
    classes = count(len(subject.classes), "label" if subject.multilabel else "class", _plural(subject))
    cards.append(_card("Test rows", count(subject.rows), classes, ""))
    how = (
        "Confidence intervals (CI) take the rows as if they were drawn one by one: Wilson's for shares of rows, "
        f"percentiles of up to {DRAWS:,} bootstrap draws for F1 (by Wilson's where they are all alike), 1.96 "
        "standard errors for the log loss."
    )
    return joined([element("dl", cards, class_="cards"), _compared(subject), element("p", how, class_="hint")])


def _plural(subject: Subject) -> str:
    return "labels" if subject.multilabel else "classes"


def _of_labels(subject: Subject) -> list[Markup]:
    right = wilson(int(subject.right.sum()), subject.rows)
    f1 = resampled(_macro_f1(subject), subject.truth, subject.decided)
    return [
        _card("Accuracy", percent(subject.measured["accuracy"]), _within(*right), ""),
        _card("Macro F1", figure(subject.measured["macro_f1"]), _within(*f1, figure), "every class counts the same"),
    ]


def _macro_f1(subject: Subject) -> Measure:
    """Counting, as the figure does, the labels that the model does not know."""
    return partial(metrics.macro_f1, foreign=len(subject.judged.unseen))


def _of_sets(subject: Subject) -> list[Markup]:
    whole = wilson(int(subject.right.sum()), subject.rows)
    cards = []
    for title, name, measure in (
        ("Micro F1", "micro_f1", metrics.micro_f1),
        ("Macro F1", "macro_f1", _macro_f1(subject)),
    ):
        missed = subject.judged.unknown if name == "micro_f1" else None
        low, high = resampled(measure, subject.truth, subject.decided, unknown=missed)
        cards.append(_card(title, figure(subject.measured[name]), _within(low, high, figure), ""))
    cards.append(_card("Whole set right", percent(subject.measured["subset_accuracy"]), _within(*whole), ""))
    cards.append(_card("Mean average precision", figure(subject.measured["mean_average_precision"]), "", "over labels"))
    return cards


def _calibration(subject: Subject) -> Markup:
    error, bound = subject.measured["ece"], subject.measured["ece_95"]
    verdict = "within chance" if error <= bound else "more than chance"
    return _card("Calibration error", figure(error), verdict, f"95% of perfect models stay below {figure(bound)}")


def _within(low: float, high: float, shown: Shown = percent) -> Markup:
    """An interval whose ends stay on one line."""
    return joined(["95% CI ", element("span", f"{shown(low).removesuffix('%')}–{shown(high)}", class_="whole")])


def _card(title: str, value: str, between: str | Markup, note: str) -> Markup:
    """A figure with what it lies between and what it is."""
    more = [element("span", part, class_="hint") for part in (between, note) if part]
    return element("div", element("dt", title), element("dd", element("strong", value), more))


def _compared(subject: Subject) -> Markup | None:
    """What one would expect without this model, and what training promised."""
    if subject.multilabel:
        return None
    rows = subject.truth.sum(axis=0)
    most = int(rows.argmax())
    always = (
        f"Whoever always says {subject.classes[most]!r}, the most frequent class here, is right in "
        f"{percent(float(rows[most]) / subject.rows)} of the rows."
    )
    return element("p", always, " ", _promised(subject))


def _promised(subject: Subject) -> str | None:
    held = subject.summary["out_of_fold"]
    if held["accuracy"] is None:
        return None
    promised = held["accuracy"]
    low, high = newcombe(promised * held["rows"], held["rows"], int(subject.right.sum()), subject.rows)
    said = f"In training, out of fold, the model was right in {percent(promised)} of {count(held['rows'], 'row')}"
    if low > 0:
        return f"{said}: more than here, so these texts are harder than the training texts, or other ones."
    if high < 0:
        return f"{said}: less than here; are these rows easier, or known to the model?"
    return f"{said}, which agrees with this test."
