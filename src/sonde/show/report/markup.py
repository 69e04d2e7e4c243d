"""Markup: the one way in which anything gets onto the page.

Markup     text that is markup already
element    a tag, what it holds, its attributes
joined     several things one after another
printable  characters that browsers act upon, written out
percent, figure, count, interval, signed   numbers as they are shown
table, titled   columns of cells; their caption
scrolled   what may be wider than the page
clipped    a long name without its middle
slug       a name that may stand in an id

Whatever is not `Markup` is escaped, and `Markup` is made here alone: what stands in texts and labels stays text.
"""

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

BREAKING = {"Cc", "Cs", "Co", "Cn"}
"""Unicode categories that HTML forbids or UTF-8 cannot write: controls, lone surrogates, what is not assigned."""

TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")
"""Marks that turn the direction of what follows: a text must not reorder the page around it."""

LINES = {"\n", "\t"}
"""Controls that are text."""

VOID = {"meta", "br"}
"""Tags without an end."""

Shown = Callable[[float], str]
"""How a number is written."""

NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *content: Any, **attributes: Any) -> Markup:
    """A tag with its content, all of it escaped that is not `Markup`.

    Parameters
    ----------
    tag : str
    content : str, number, Markup, None, or iterables of these
        None is nothing.
    attributes
        `class_` is written `class`, `aria_label` `aria-label`; None leaves one out, True writes its bare name.
    """
    assert NAME.fullmatch(tag), "tags are ours"
    opened = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Markup(opened if tag in VOID else f"{opened}{joined(content)}</{tag}>")


def joined(content: Iterable[Any]) -> Markup:
    """Several things one after another."""
    return Markup("".join(map(_one, content)))


def _one(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, Markup):
        return content
    if isinstance(content, Iterable) and not isinstance(content, str):
        return joined(content)
    return html.escape(printable(str(content)))


def _attribute(name: str, value: Any) -> str:
    name = name.rstrip("_").replace("_", "-")
    assert NAME.fullmatch(name) and not name.startswith("on"), "attributes are ours, and none of them runs anything"
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(printable(str(value)))}"'


def printable(text: str) -> str:
    """Controls, lone surrogates and marks of direction as Python writes them; all else as it is."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if _acts(c) else c for c in text.replace("\r\n", "\n"))


def _acts(character: str) -> bool:
    return character in TURNING or (character not in LINES and unicodedata.category(character) in BREAKING)


def percent(share: float) -> str:
    """`95.3%`; what is possible is shown neither as impossible nor as certain."""
    if 0 < share < 0.001:
        return "< 0.1%"
    if 0.999 < share < 1 - 1e-9:  # sums of shares are 1 but for rounding
        return "> 99.9%"
    return f"{100 * share:.1f}%"


def figure(value: float) -> str:
    """Three digits behind the point."""
    return f"{value:.3f}"


def count(number: float, one: str = "", many: str | None = None) -> str:
    """`1 row`, `1,200 rows`."""
    unit = "" if not one else f" {one}" if number == 1 else f" {many or one + 's'}"
    return f"{number:,}{unit}"


def interval(low: float, high: float, shown: Shown = percent) -> str:
    """From the lowest to the highest."""
    return f"{shown(low)} to {shown(high)}"


def signed(value: float) -> str:
    """`+0.25`, `−1.50`."""
    return f"{'−' if value < 0 else '+'}{abs(value):.2f}"


def clipped(text: str, room: int) -> str:
    """A name of at most so many letters, its middle left out: names often begin alike."""
    return text if len(text) <= room else f"{text[: room // 2]}…{text[len(text) - (room - room // 2 - 1) :]}"


def table(
    caption: Any, heads: Sequence[str], rows: Iterable[Sequence[Any]], *, words: int = 1, kind: str = ""
) -> Markup:
    """A table that scrolls by itself where it is too wide.

    Parameters
    ----------
    caption : text or Markup
    heads : sequence of str
    rows : iterable of sequences
        The first cell heads its row.
    words : int
        How many columns hold words; the others stand to the right.
    kind : str
        Class of the table.
    """
    kinds = [None if i < words else "number" for i in range(len(heads))]
    head = element("tr", [element("th", h, scope="col", class_=k) for h, k in zip(heads, kinds, strict=True)])
    body = [
        element(
            "tr",
            element("th", row[0], scope="row", class_=kinds[0]),
            [element("td", cell, class_=k) for cell, k in zip(row[1:], kinds[1:], strict=True)],
        )
        for row in rows
    ]
    whole = element("table", titled(caption), element("thead", head), element("tbody", body), class_=kind)
    return scrolled(whole)


def titled(caption: Any) -> Markup:
    """The caption of a table, which stays in sight where the table scrolls."""
    return element("caption", element("span", caption))


def scrolled(content: Markup, label: str = "Table") -> Markup:
    """Content that may be wider than the page and then scrolls, also by keyboard."""
    return element("div", content, class_="scroll", tabindex="0", role="group", aria_label=f"{label}, scrolls sideways")


def slug(text: str) -> str:
    """A name that may stand in an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
