"""The page: one file that needs nothing else.

page    Subject -> HTML
PARTS   its parts, in order

No script runs and nothing is fetched: the content security policy forbids both, so that a browser would refuse what
should slip through the escaping.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files

from sonde.bench import machine
from sonde.progress import tracked
from sonde.show.report.calibration import calibration
from sonde.show.report.cautions import cautions
from sonde.show.report.classes import classes
from sonde.show.report.confusion import confusion
from sonde.show.report.costs import costs
from sonde.show.report.coverage import coverage
from sonde.show.report.depth import depth
from sonde.show.report.disputed import Disputed
from sonde.show.report.headline import headline
from sonde.show.report.losses import losses
from sonde.show.report.markup import Markup, count, element, joined
from sonde.show.report.neurons import neurons
from sonde.show.report.subject import Subject

PARTS = (
    ("headline", "At a glance"),
    ("cautions", "Before you believe it"),
    ("confusion", "Confusion"),
    ("classes", "Classes"),
    ("calibration", "Calibration"),
    ("coverage", "Answering less"),
    ("mistakes", "The surest mistakes"),
    ("mislabelled", "Labels that are likely wrong"),
    ("depth", "Accuracy against depth"),
    ("neurons", "Layers and neurons"),
    ("losses", "Losses in training"),
    ("costs", "Cost"),
)
"""Anchor and title."""


def page(subject: Subject) -> Markup:
    """The whole document."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = [
        element("a", "Skip to the report", href="#headline", class_="skip"),
        _head(subject),
        element("nav", element("ul", _links()), aria_label="Parts of this report"),
        element("main", list(_parts(subject))),
        _foot(),
    ]
    html = element("html", _meta(subject, style), element("body", body), lang="en")
    return Markup(f"<!doctype html>\n{html}\n")


def _meta(subject: Subject, style: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{subject.name}: sonde report"),
        element("style", Markup(style)),
    )


def _head(subject: Subject) -> Markup:
    kind = ", any number of labels a text" if subject.multilabel else ""
    about = (
        f"Recipe {subject.summary['recipe']}, trained on {count(subject.summary['rows'], 'row')}{kind}. Judged on "
        f"{count(subject.rows, 'labelled row')}."
    )
    kicker = element("p", "sonde report", class_="kicker")
    return element("header", kicker, element("h1", subject.name), element("p", about))


def _links() -> Iterator[Markup]:
    for key, title in PARTS:
        yield element("li", element("a", title, href=f"#{key}"))


def _parts(subject: Subject) -> Iterator[Markup]:
    """Every part under its heading."""
    disputed = Disputed(subject)
    made: dict[str, Callable[[], Markup]] = {
        "mistakes": disputed.mistakes,
        "mislabelled": disputed.mislabelled,
    }
    plain: dict[str, Callable[[Subject], Markup]] = {
        "headline": headline,
        "cautions": cautions,
        "confusion": confusion,
        "classes": classes,
        "calibration": calibration,
        "coverage": coverage,
        "depth": depth,
        "neurons": neurons,
        "losses": losses,
        "costs": costs,
    }
    for key, title in tracked(PARTS, "reporting", "parts"):
        content = made[key]() if key in made else plain[key](subject)
        head = element("h2", title, id=f"{key}-head")
        yield element("section", head, content, id=key, aria_labelledby=f"{key}-head")


def _foot() -> Markup:
    said = (
        "This page holds texts of the test: pass it on only where these may go. It runs no script and loads nothing. "
        "Rows are counted from 1 in the order of the test, its column names aside."
    )
    return element("footer", joined([element("p", said), element("p", machine.sentence(machine.describe()))]))
