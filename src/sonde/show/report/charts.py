"""Charts as inline SVG: coloured by the page, so that they follow its light and its dark.

Axis      one side of a chart
Curve     points, joined or not
chart     axes and curves -> a figure with title, description and caption
bar       a length beside a number
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sonde.show.report.markup import Markup, Shown, element, joined

WIDTH, HEIGHT = 400, 280
"""Of every chart, in its own units: small, so that its letters stay readable on a telephone."""

LEFT, RIGHT, TOP, BOTTOM = 52, 24, 12, 46
"""Room for the axes, in the same units."""

POINTS = 300
"""Of a curve: more than it has pixels would only make the page heavy."""

TICKS = 5
"""About so many."""


@dataclass(frozen=True)
class Axis:
    """One side of a chart."""

    title: str
    """What it measures, with its unit."""
    low: float
    """Its value at the beginning."""
    high: float
    """Its value at the end; above `low`."""
    shown: Shown = "{:g}".format
    """How values are written."""
    logarithmic: bool = False
    """Whether equal ratios are equally long."""
    ticks: tuple[float, ...] = ()
    """Values that are marked; by default round ones."""

    def place(self, value: float) -> float:
        """Where a value stands, 0 to 1."""
        low, high, at = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)

    def marked(self) -> Sequence[float]:
        """The values that are marked."""
        if self.ticks:
            return self.ticks
        return _powers(self.low, self.high) if self.logarithmic else round_values(self.low, self.high)


@dataclass(frozen=True)
class Curve:
    """Points, joined by a line or not."""

    points: Sequence[tuple[float, float]]
    """x and y."""
    kind: str = "first"
    """Class of the line: `first`, `second` (dashed), `third` (dotted) or `guide` (thin and grey)."""
    dots: bool = False
    """Whether each point is marked."""
    line: bool = True
    """Whether the points are joined."""
    ranges: Sequence[tuple[float, float]] = ()
    """Lowest and highest y of each point, drawn as a whisker."""


def chart(key: str, title: str, said: str, x: Axis, y: Axis, curves: Sequence[Curve], caption: object) -> Markup:
    """A figure.

    Parameters
    ----------
    key : str
        Distinct on the page, for ids.
    title, said : str
        Read aloud in place of the picture: what it is, and what it shows.
    x, y : Axis
    curves : sequence of Curve
        Later ones lie above earlier ones.
    caption : text or Markup
        Says what each line is, by more than its colour.
    """
    names = f"{key}-title", f"{key}-said"
    told = element("title", title, id=names[0]), element("desc", said, id=names[1])
    drawn = [_curve(one, x, y) for one in curves]
    box = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria_labelledby": names[0], "aria_describedby": names[1]}
    picture = element("svg", told, _grid(x, y), drawn, class_="chart", **box)
    return element("figure", picture, element("figcaption", caption))


def round_values(low: float, high: float) -> list[float]:
    """About five round values between two others."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def spanned(values: Sequence[float], pad: float = 0.05) -> tuple[float, float]:
    """The lowest and highest value, with some room, never equal."""
    low, high = min(values), max(values)
    room = pad * (high - low) or abs(high) * pad or 1.0
    return low - room, high + room


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` of the points, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    return [points[int(i)] for i in np.linspace(0, len(points) - 1, POINTS).round()]


def bar(share: float) -> Markup:
    """A length beside a number, which says the same."""
    length = f"{100 * min(max(share, 0.0), 1.0):.1f}"
    back = element("rect", width="100", height="8", class_="track")
    front = element("rect", width=length, height="8", class_="bar")
    return element("svg", back, front, viewBox="0 0 100 8", class_="bar-box", aria_hidden="true")


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, -(-(last - first) // TICKS))
    return [10.0**i for i in range(first, last + 1, step)]


def _across(x: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * x.place(value)


def _down(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y.place(value)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _grid(x: Axis, y: Axis) -> Markup:
    """Lines at round values, what they are, what is measured."""
    floor, parts = HEIGHT - BOTTOM, []
    for value in y.marked():
        at = _n(_down(y, value))
        parts.append(element("path", d=f"M{LEFT} {at}H{WIDTH - RIGHT}", class_="grid"))
        parts.append(element("text", y.shown(value), x=LEFT - 6, y=at, dy="4", text_anchor="end"))
    for value in x.marked():
        at = _n(_across(x, value))
        parts.append(element("path", d=f"M{at} {floor}v4", class_="axis"))
        parts.append(element("text", x.shown(value), x=at, y=floor + 18, text_anchor="middle"))
    middle = (TOP + floor) // 2
    turned = {"transform": f"rotate(-90 12 {middle})", "text_anchor": "middle"}
    parts.append(element("path", d=f"M{LEFT} {floor}H{WIDTH - RIGHT}", class_="axis"))
    parts.append(
        element("text", x.title, x=(LEFT + WIDTH - RIGHT) // 2, y=HEIGHT - 8, text_anchor="middle", class_="name")
    )
    parts.append(element("text", y.title, x=12, y=middle, **turned, class_="name"))
    return joined(parts)


def _curve(curve: Curve, x: Axis, y: Axis) -> Markup:
    places = [(_n(_across(x, a)), _n(_down(y, b))) for a, b in curve.points]
    parts = []
    if curve.line and len(places) > 1:
        parts.append(
            element("path", d="M" + "L".join(" ".join(place) for place in places), class_=f"line {curve.kind}")
        )
    for (across, _), (low, high) in zip(places, curve.ranges, strict=False):
        parts.append(element("path", d=f"M{across} {_n(_down(y, low))}V{_n(_down(y, high))}", class_="whisker"))
    if curve.dots:
        parts += [element("circle", cx=a, cy=b, r="3.5", class_=f"dot {curve.kind}") for a, b in places]
    return joined(parts)
