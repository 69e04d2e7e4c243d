"""The paper's picture: which neurons of which layers a model uses, and how much (arXiv 2311.15983, figure of neurons).

strata   the layers in the terminal: one line a block
draw     the same as SVG, plain XML
picture  the same as an element of a page
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from sonde.show.terminal import facts, table, visible

Blocks = Sequence[Mapping[str, Any]]

STRIP = 32
"""Places of the strip in the terminal: it leaves room for names and figures in 100 columns."""

SHADES = " ░▒▓█"
"""From no weight to the most of any place."""

PLACE, ROW, LEFT, TOP, BAR = 5, 18, 230, 64, 80
"""Of the SVG, in pixels: width of a place, height of a row, room for names, for the title, the longest bar."""

INK = "#1f6fb5"
"""Of whatever has weight."""


def strata(blocks: Blocks) -> None:
    """Print one line a block: neurons kept, share of the weight, and where in the layer the weight lies."""
    if not blocks:
        return
    strips = [_joined(block["stretches"], STRIP) for block in blocks]
    most = max(map(max, strips))
    rows = []
    for block, strip in zip(blocks, strips, strict=True):
        drawn = "".join(SHADES[math.ceil(weight / most * (len(SHADES) - 1))] for weight in strip)
        rows.append([_name(block), block["pooling"], _kept(block), f"{block['share']:.1%}", f"|{drawn}|"])
    table(["layer", "pooling", "neurons", "weight", "where in the layer"], rows)
    facts({SHADES[-1]: f"{most:.2%} of the weight in one of {STRIP} places"})


def _joined(stretches: Sequence[float], places: int) -> list[float]:
    """The weights of fewer, longer stretches."""
    size = -(-len(stretches) // places)
    return [sum(stretches[start : start + size]) for start in range(0, len(stretches), size)]


def draw(blocks: Blocks, title: str) -> str:
    """Layers x neurons as an SVG document.

    One row a block, the first of the model at the bottom; a stretch of neurons is the stronger the more weight it has,
    and tells its neurons to whoever points at it. To the right, the share of each block and how many neurons it keeps.

    Parameters
    ----------
    blocks : sequence of mapping
        As `explanation.map_layers` gives them, at least one.
    title : str

    Returns
    -------
    str
        XML without scripts, images, or styles from elsewhere.
    """
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{picture(blocks, title)}\n'


def picture(blocks: Blocks, title: str) -> str:
    """The `svg` element of `draw` by itself; what is not `.paper` may be coloured anew by a page."""
    places = len(blocks[0]["stretches"])
    right, bottom = LEFT + places * PLACE, TOP + ROW * len(blocks)
    width, height = right + BAR + 180, bottom + 56
    body = [
        f"<title>{_xml(title)}</title>",
        f'<rect class="paper" width="{width}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 24, title, 'font-size="15"'),
        _text(16, TOP - 10, "layer"),
        _text(LEFT, TOP - 10, "the stronger, the more of the model's squared weight"),
        _text(right + 12, TOP - 10, "share of the weight, neurons"),
    ]
    most = max(max(block["stretches"]) for block in blocks)
    largest = max(block["share"] for block in blocks)
    for row, block in enumerate(blocks, 1):
        body += _row(block, most, bottom - ROW * row)
        body += _share(block, largest, right + 12, bottom - ROW * row)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {style}>'
    return "\n".join([head, *body, *_axes(blocks, bottom, right), "</svg>"])


def _row(block: Mapping[str, Any], most: float, y: int) -> list[str]:
    """The name of a block and its stretches."""
    name = f"{_name(block)} {block['pooling']}".strip()
    body = [_text(LEFT - 10, y + 13, name, 'text-anchor="end"')]
    axis, places = block["axis"], len(block["stretches"])
    for place, weight in enumerate(block["stretches"]):
        if weight <= 0:
            continue
        first, last = -(-place * axis // places), -(-(place + 1) * axis // places) - 1
        box = f'x="{LEFT + place * PLACE}" y="{y + 2}" width="{PLACE}" height="{ROW - 4}"'
        shade = f'fill="{INK}" fill-opacity="{max(weight / most, 0.05):.2f}"'  # what has weight is seen
        body.append(f"<rect {box} {shade}><title>{_xml(name)}, neurons {first} to {last}: {weight:.2%}</title></rect>")
    return body


def _share(block: Mapping[str, Any], largest: float, x: int, y: int) -> list[str]:
    """The bar of a block's share, and its figures."""
    length = BAR * block["share"] / largest
    bar = f'<rect x="{x}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}" fill="{INK}"/>'
    return [bar, _text(round(x + 6 + length), y + 13, f"{block['share']:.1%}, {_kept(block)}")]


def _axes(blocks: Blocks, bottom: int, right: int) -> list[str]:
    """Both axes; the lower one counts neurons if all layers have as many, else hundredths of a layer."""
    axes = {block["axis"] for block in blocks}
    end = axes.pop() if len(axes) == 1 else None
    what = "neuron" if end else "neuron, in hundredths of the layer"
    body = [
        f'<path d="M {LEFT} {TOP} V {bottom} H {right}" fill="none" stroke="#222222"/>',
        _text((LEFT + right) // 2, bottom + 44, what, 'text-anchor="middle"'),
    ]
    for part in range(5):
        x = LEFT + (right - LEFT) * part // 4
        body.append(f'<path d="M {x} {bottom} v 5" stroke="#222222"/>')
        body.append(_text(x, bottom + 20, str((end or 100) * part // 4), 'text-anchor="middle"'))
    return body


def _kept(block: Mapping[str, Any]) -> str:
    return f"{block['kept']:,}" + (f" of {block['width']:,}" if block["width"] else "")


def _name(block: Mapping[str, Any]) -> str:
    """The site, with the backbone's number where there may be several."""
    return str(block["site"]) if not block["backbone"] else f"{block['backbone']}/{block['site']}"


def _text(x: int, y: int, words: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" {style}" if style else ""}>{_xml(words)}</text>'


def _xml(words: str) -> str:
    """Escaped, and free of characters that XML does not know."""
    return escape(visible(words).replace("\n", " "))
