"""Confusion: which classes are taken for which.

confusion   Subject -> the largest confusions, and the matrix as a table, and as a picture where classes are many
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from sonde.show.report.markup import Markup, clipped, count, element, joined, percent, scrolled, table, titled
from sonde.show.report.subject import Subject

WHOLE = 15
"""Classes of a matrix that is shown as one table of figures."""

FOREMOST = 12
"""Of more classes: those with the most errors get figures, the others are taken together."""

PICTURED = 120
"""Classes of the largest picture: a cell is 12 pixels then, and the picture as wide as a large screen."""

LARGEST = 12
"""Confusions that are listed."""

CELL, LETTER, LETTERS = 13, 7, 18
"""Of the picture: side of a cell, width of a letter, letters of a name."""

ACROSS = "by true class (down) and predicted class (across)"
HEAD = 22
"""Letters of a name above or beside a matrix of figures."""

FOREIGN = "label unknown to the model"


def confusion(subject: Subject) -> Markup:
    """Left out, with a sentence, where a text has any number of labels."""
    if subject.multilabel:
        said = "A text has any number of labels here: none is taken for another. Missed and false ones stand in"
        return element("p", said, " ", element("a", "the table of labels", href="#classes"), ".")
    matrix, names = _matrix(subject)
    if len(subject.classes) <= WHOLE:
        return joined([_figures(matrix, names, f"Rows {ACROSS}"), _listed(matrix, names)])
    return joined([_listed(matrix, names), _foremost(matrix, names), _picture(matrix, names)])


def _matrix(subject: Subject) -> tuple[Int64[np.ndarray, "true said"], list[str]]:
    """Rows by truth and prediction; a last row of labels that the model does not know, if there are any."""
    n = len(subject.classes)
    true = np.where(subject.given_ids < 0, n, subject.given_ids)
    cells = np.bincount(true * n + subject.decided.argmax(axis=1), minlength=(n + 1) * n)
    matrix, names = cells.reshape(n + 1, n), [*subject.classes, FOREIGN]
    return (matrix, names) if matrix[-1].any() else (matrix[:-1], names[:-1])


def _listed(matrix: Int64[np.ndarray, "true said"], names: Sequence[str]) -> Markup:
    """The pairs with the most rows off the diagonal."""
    off = matrix.copy()
    np.fill_diagonal(off[: off.shape[1]], 0)
    order = np.argsort(-off, axis=None, kind="stable")[:LARGEST]
    pairs = [(i // off.shape[1], i % off.shape[1]) for i in order.tolist() if off.flat[i]]
    if not pairs:
        return element("p", "No row of one class was taken for another.")
    total = matrix.sum(axis=1)
    rows = [[names[t], names[s], count(int(off[t, s])), percent(off[t, s] / total[t])] for t, s in pairs]
    wrong, there = int(off.sum()), int((off > 0).sum())
    shown = sum(int(off[pair]) for pair in pairs)
    caption = (
        f"The largest confusions: {len(rows)} of {there:,} pairs of classes, {shown:,} of {wrong:,} errors; share of "
    )
    caption += "the true class"
    return table(caption, ["true class", "predicted", "rows", "share"], rows, words=2)


def _figures(matrix: Int64[np.ndarray, "true said"], names: Sequence[str], caption: str) -> Markup:
    """The matrix as a table; shades repeat what the figures say."""
    across = [
        element("th", element("span", clipped(name, HEAD), title=name), scope="col", class_="turned")
        for name in names[: matrix.shape[1]]
    ]
    corner = element("th", element("span", "true class", class_="unseen"), scope="col")
    body = [_figures_row(names[t], t, row) for t, row in enumerate(matrix.tolist())]
    head = element("thead", element("tr", corner, across, element("th", "rows", scope="col", class_="number")))
    shades = "the diagonal is right; the stronger, the larger the share of the true class"
    whole = element("table", titled(f"{caption}; {shades}"), head, element("tbody", body), class_="matrix")
    return scrolled(whole, "Confusion matrix")


def _figures_row(name: str, true: int, row: list[int]) -> Markup:
    total = sum(row)
    cells = [
        element("td", f"{n:,}" if n else "·", class_=f"{'hit' if said == true else 'miss'} w{_step(n, total)}")
        for said, n in enumerate(row)
    ]
    return element(
        "tr",
        element("th", clipped(name, HEAD), scope="row", title=name),
        cells,
        element("td", f"{total:,}", class_="number"),
    )


def _step(n: int, total: int) -> int:
    """0 for nothing, 1 to 9 for shares of the true class."""
    return 0 if not n else min(9, 1 + int(9 * n / total))


def _foremost(matrix: Int64[np.ndarray, "true said"], names: Sequence[str]) -> Markup:
    """The classes with the most errors, missed or wrongly said; the others as one."""
    n = matrix.shape[1]
    wrong = matrix[:n].sum(axis=1) + matrix.sum(axis=0) - 2 * matrix.diagonal()
    first = np.sort(np.argsort(-wrong, kind="stable")[:FOREMOST])
    place = np.full(len(names), len(first))
    place[first] = np.arange(len(first))
    small = np.zeros((len(first) + 1, len(first) + 1), dtype=np.int64)
    np.add.at(small, (place[:, None], place[None, :n]), matrix)
    shown = [*(names[k] for k in first), f"the other {len(names) - len(first)}"]
    caption = f"The {len(first)} classes with the most errors: rows {ACROSS}"
    return joined([_figures(small, shown, caption), element("p", OTHERS, class_="hint")])


OTHERS = "What the others are among themselves, right or wrong, stands in their one cell of the diagonal."


def _picture(matrix: Int64[np.ndarray, "true said"], names: Sequence[str]) -> Markup:
    """All classes: a cell is the stronger, the larger its share of the true class."""
    if matrix.shape[1] > PICTURED:
        return element("p", f"{matrix.shape[1]:,} classes are too many for a picture of all of them.", class_="hint")
    room = 8 + LETTER * min(LETTERS, max(map(len, names)))
    width, height = room + CELL * matrix.shape[1] + 2, room + CELL * len(matrix) + 2
    title = f"Confusion matrix of all {matrix.shape[1]} classes"
    said = "True classes down, predicted ones across. The table of confusions holds the largest cells off the diagonal."
    told = element("title", title, id="picture-title"), element("desc", said, id="picture-said")
    box = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    svg = element(
        "svg", told, _names(names, matrix.shape[1], room), _cells(matrix, names, room), class_="picture", role="img",
        aria_labelledby="picture-title", aria_describedby="picture-said", **box,
    )  # fmt: skip
    caption = "All classes: true ones down, predicted ones across. Squares on the diagonal are right, dots are wrong."
    return element("figure", scrolled(svg, "Picture"), element("figcaption", caption))


def _names(names: Sequence[str], across: int, room: int) -> Iterator[Markup]:
    for i, name in enumerate(names):
        short = clipped(name, LETTERS)
        middle = room + CELL * i + CELL - 3
        yield element("text", short, x=room - 4, y=middle, text_anchor="end")
        if i < across:
            yield element("text", short, transform=f"translate({middle} {room - 4}) rotate(-90)")


def _cells(matrix: Int64[np.ndarray, "true said"], names: Sequence[str], room: int) -> Iterator[Markup]:
    total = matrix.sum(axis=1)
    yield element("rect", x=room, y=room, width=CELL * matrix.shape[1], height=CELL * len(matrix), class_="ground")
    for t, s in np.argwhere(matrix).tolist():
        n, share = int(matrix[t, s]), matrix[t, s] / total[t]
        said = element("title", f"{names[t]}, predicted {names[s]}: {count(n, 'row')}, {percent(share)}")
        x, y, side = room + CELL * s, room + CELL * t, CELL - 1
        shade = f"w{_step(n, int(total[t]))}"
        if t == s:
            yield element("rect", said, x=x, y=y, width=side, height=side, class_=f"hit {shade}")
        else:
            yield element("circle", said, cx=x + side / 2, cy=y + side / 2, r=side / 2 - 1, class_=f"miss {shade}")
