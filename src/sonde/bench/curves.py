"""Curves as an SVG document: lines of figures that a page shows beside its tables.

Line   points under a name
draw   lines and axes -> SVG, plain XML
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 420
LEFT, TOP, RIGHT, BOTTOM = 70, 48, 230, 56
"""Room for the axes, the title and the names of the lines, in pixels."""

INKS = ("#1f6fb5", "#c4501b", "#2f7d32", "#7a3e9d", "#8a6d00", "#a3174f", "#00707a", "#555555")
"""Dark enough for white paper; beyond them, dashes tell lines apart."""
DASHES = ("", "7 4", "2 3")
TICKS = 5


@dataclass(frozen=True)
class Line:
    """Points joined by a line."""

    name: str
    """Written beside it."""
    points: Sequence[tuple[float, float]]
    """x and y, at least one."""


def draw(title: str, x: str, y: str, lines: Sequence[Line]) -> str:
    """A chart on white paper.

    Parameters
    ----------
    title, x, y : str
        What it shows, and what its axes measure.
    lines : sequence of Line
        At least one.

    Returns
    -------
    str
        XML without scripts, images, or styles from elsewhere.
    """
    across = _Scale(*_ends(p[0] for one in lines for p in one.points), LEFT, WIDTH - RIGHT)
    down = _Scale(*_ends(p[1] for one in lines for p in one.points), HEIGHT - BOTTOM, TOP)
    body = [
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 26, title, 'font-size="15"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x, 'text-anchor="middle"'),
        _text(LEFT, TOP - 8, y),
        *_grid(across, down),
    ]
    for number, line in enumerate(lines):
        body += _line(line, number, across, down)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {style}>'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *body, "</svg>", ""])


@dataclass(frozen=True)
class _Scale:
    """Values -> pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (self.stop - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[float]:
        """Round values within."""
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield round(i * step, 12)


def _ends(values: Iterator[float]) -> tuple[float, float]:
    """Lowest and highest value, never equal."""
    every = list(values)
    low, high = min(every), max(every)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(across: _Scale, down: _Scale) -> Iterator[str]:
    for value in down.ticks():
        y = down(value)
        yield f'<path d="M {LEFT} {y:.1f} H {WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", 'text-anchor="end"')
    for value in across.ticks():
        yield _text(across(value), HEIGHT - BOTTOM + 18, f"{value:g}", 'text-anchor="middle"')
    yield f'<path d="M {LEFT} {TOP} V {HEIGHT - BOTTOM} H {WIDTH - RIGHT}" fill="none" stroke="#222222"/>'


def _line(line: Line, number: int, across: _Scale, down: _Scale) -> Iterator[str]:
    """The line with its dots, and its name in the margin."""
    ink, dash = INKS[number % len(INKS)], DASHES[number // len(INKS) % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    places = [(across(x), down(y)) for x, y in line.points]
    path = " L ".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path d="M {path}" fill="none" stroke="{ink}" stroke-width="2"{dashed}/>'
    for (x, y), (a, b) in zip(places, line.points, strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ink}"><title>{a:g}: {b:.4g}</title></circle>'
    y = TOP + 8 + 20 * number
    yield f'<path d="M {WIDTH - RIGHT + 14} {y} h 22" stroke="{ink}" stroke-width="2"{dashed}/>'
    yield _text(WIDTH - RIGHT + 42, y + 4, line.name)


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" {style}" if style else ""}>{escape(words)}</text>'
