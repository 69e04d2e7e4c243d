"""Losses: what training tried, and how it went.

losses   Subject -> a chart for each part that was trained, or a sentence
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sonde.show.report.charts import Axis, Curve, chart, spanned, thinned
from sonde.show.report.markup import Markup, element, figure, slug
from sonde.show.report.subject import Subject

KINDS = ("first", "second", "third")
"""Of the lines of one chart; a learner tries no more than three ways."""

NAMED = 5
"""Penalties that all have their place on the axis."""

Plain = Mapping[str, Any]


def losses(subject: Subject) -> Markup:
    """Loss by epoch of networks, loss by penalty of regressions, as the model remembers them."""
    drawn = list(_charts(subject.summary["learner"], ()))
    if not drawn:
        return element("p", "Left out: this model remembers no losses of its training.")
    return element("div", drawn, class_="charts")


def _charts(summary: Plain, path: tuple[str, ...]) -> Iterator[Markup]:
    """Those of a learner, then those of its parts."""
    if "history" in summary:
        yield _epochs(summary, path)
    tried = [one for one in summary.get("path", []) if "C" in one]
    if len(tried) > 1:
        yield _penalties(summary, tried, path)
    for name in ("parts", "head"):
        inner = summary.get(name)
        if isinstance(inner, Mapping):
            for part, own in inner.items() if name == "parts" else [(name, inner)]:
                if isinstance(own, Mapping):
                    yield from _charts(own, (*path, str(part)))


def _epochs(summary: Plain, path: tuple[str, ...]) -> Markup:
    """Training and validation loss after each epoch."""
    train, watched = summary["history"]["train"], summary["history"]["validation"]
    curves = [list(enumerate(train, 1)), [(e, loss) for e, loss in enumerate(watched, 1) if loss is not None]]
    x = Axis("epoch", 1, max(len(train), 2))
    y = Axis("loss", *spanned([loss for curve in curves for _, loss in curve]), "{:.3g}".format)
    said = f"Training loss from {figure(train[0])} to {figure(train[-1])}."
    caption = f"{_name(path, 'Network')}: dashed, the training loss with dropout on"
    drawn = [Curve(thinned(curves[0]), "second"), Curve(thinned(curves[1]), "first")]
    if curves[1]:
        best = min(curves[1], key=lambda point: point[1])
        said += f" Validation loss lowest, {figure(best[1])}, after epoch {best[0]}."
        caption += f"; solid, the validation loss, lowest after epoch {best[0]} (dot)"
        drawn.append(Curve([best], "third", dots=True))
    return chart(_key("epochs", path), "Loss by epoch", said, x, y, drawn, f"{caption}.")


def _penalties(summary: Plain, tried: list[Plain], path: tuple[str, ...]) -> Markup:
    """Out-of-fold loss of each penalty that was tried; the chosen one has a dot."""
    ways = list(dict.fromkeys(one.get("share") for one in tried))
    lines = [sorted((one["C"], one["log_loss"]) for one in tried if one.get("share") == way) for way in ways]
    both = [loss for line in lines for _, loss in line]
    penalties = [c for line in lines for c, _ in line]
    some = tuple(sorted(set(penalties)))
    ticks = some if len(some) <= NAMED else ()
    x = Axis("C, weaker penalty to the right", some[0], some[-1], logarithmic=True, ticks=ticks)
    y = Axis("log loss, out of fold", *spanned(both), "{:.3g}".format)
    chosen = next((one for one in tried if _chosen(one, summary)), None)
    said = f"Lowest out-of-fold log loss: {figure(min(both))}."
    curves = [Curve(line, kind, dots=len(line) < 2) for line, kind in zip(lines, KINDS, strict=False)]
    caption = f"{_name(path, 'Regression')}: log loss out of fold, by penalty"
    if len(ways) > 1:
        named = (f"{style}, {way:g}" for style, way in zip(("solid", "dashed", "dotted"), ways, strict=False))
        caption += f". Share of characters beside words: {'; '.join(named)}"
    if chosen:
        curves.append(Curve([(chosen["C"], chosen["log_loss"])], "third", dots=True))
        caption += f". Chosen (dot): C = {chosen['C']:g}"
    return chart(_key("penalties", path), "Loss by penalty", said, x, y, curves, f"{caption}.")


def _chosen(one: Plain, summary: Plain) -> bool:
    return bool(one["C"] == summary.get("C") and one.get("share") == summary.get("share"))


def _name(path: tuple[str, ...], default: str) -> str:
    return f"Part {' / '.join(path)!r}" if path else default


def _key(kind: str, path: tuple[str, ...]) -> str:
    return slug("-".join((kind, *path)))
