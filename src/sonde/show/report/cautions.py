"""Cautions: what makes the figures of a test doubtful, before anyone believes them.

cautions   Subject -> sentences and tables on known texts, repeated texts, truncation and labels
repeats    Subject -> groups of rows whose texts read the same
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from sonde.learn.splitting import text_keys
from sonde.show.report.intervals import wilson
from sonde.show.report.markup import Markup, count, element, interval, joined, percent, table
from sonde.show.report.subject import Subject

SHOWN = 10
"""Groups, labels and row numbers that are listed; all are counted."""

EXCERPT = 120
"""Characters of a text in a table."""


def cautions(subject: Subject) -> Markup:
    """One item each, or a sentence that there is nothing to say."""
    found = [*_known(subject), *_repeated(subject), *_cut(subject), *_labels(subject), *_few(subject)]
    if not found:
        return element(
            "p",
            "Nothing found: no text of the test stands in the training or validation rows or twice in the test, none "
            "was cut, every row has a label that the model knows.",
        )
    return joined([element("ul", found, class_="cautions"), _conflicts(subject)])


def repeats(subject: Subject) -> list[list[int]]:
    """Groups of two rows or more whose texts are equal but for case, white space and Unicode form."""
    groups: dict[int, list[int]] = {}
    for row, key in enumerate(text_keys(subject.judged.texts).tolist()):
        groups.setdefault(key, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def shortened(text: str, room: int = EXCERPT) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * room].split())
    return line if len(line) <= room and len(text) <= 4 * room else f"{line[:room]}…"


def _known(subject: Subject) -> Iterator[Markup]:
    known = subject.judged.known
    if not known.any():
        return
    rows = int(known.sum())
    said = (
        f"{count(rows, 'text')} of {subject.rows:,} ({percent(rows / subject.rows)}) stand in the training or "
        "validation rows too. "
    )
    new = ~known
    if new.any():
        right = int(subject.right[new].sum())
        said += (
            f"On the {count(int(new.sum()), 'other')} the model is right in {percent(right / int(new.sum()))} "
            f"({interval(*wilson(right, int(new.sum())))}): that is the figure to believe. {_numbers(subject, known)}"
        )
    else:
        said += "Every one of them: this is no test, the figures flatter the model."
    yield _item("Known texts", said)


def _repeated(subject: Subject) -> Iterator[Markup]:
    groups = repeats(subject)
    if groups:
        extra = sum(len(rows) - 1 for rows in groups)
        unlike = len(_unlike(subject, groups))
        said = f"{count(extra, 'row repeats', 'rows repeat')} a text of the test and count again in every figure."
        if unlike:
            said += (
                f" {count(unlike, 'text stands', 'texts stand')} there with different labels: at least one of them is "
                "wrong, whatever the model says."
            )
        yield _item("Repeated texts", said)


def _cut(subject: Subject) -> Iterator[Markup]:
    cut = subject.judged.truncated
    if not cut.any():
        return
    rows, right = int(cut.sum()), int(subject.right[cut].sum())
    said = (
        f"{count(rows, 'text')} ({percent(rows / subject.rows)}) are longer than the model reads and were cut. The "
        f"model is right in {percent(right / rows)} of them"
    )
    if not cut.all():
        said += f", and in {percent(float(subject.right[~cut].mean()))} of the others"
    yield _item("Cut texts", f"{said}. long_text='windows' reads everything.")


def _labels(subject: Subject) -> Iterator[Markup]:
    judged = subject.judged
    if judged.given > subject.rows:
        yield _item("Rows without a label", f"{count(judged.given - subject.rows, 'row')} were left out.")
    if judged.unseen:
        names = [f"{label} ({rows:,})" for label, rows in list(judged.unseen.items())[:SHOWN]]
        more = f" and {len(judged.unseen) - SHOWN:,} more" if len(judged.unseen) > SHOWN else ""
        said = f"The model was not trained on these labels, and their rows count as wrong: {', '.join(names)}{more}."
        yield _item("Unknown labels", said)


def _few(subject: Subject) -> Iterator[Markup]:
    absent = [name for name, rows in zip(subject.classes, subject.truth.sum(axis=0), strict=True) if not rows]
    if absent:
        more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
        yield _item("Classes without a row", f"Nothing is measured on {', '.join(absent[:SHOWN])}{more}.")


def _item(title: str, said: str) -> Markup:
    return element("li", element("strong", f"{title}. "), said)


def _numbers(subject: Subject, some: np.ndarray) -> str:
    rows = [str(subject.number(row)) for row in np.flatnonzero(some)[:SHOWN].tolist()]
    return f"Rows {', '.join(rows)}{' and others' if some.sum() > SHOWN else ''}."


def _unlike(subject: Subject, groups: list[list[int]]) -> list[list[int]]:
    return [rows for rows in groups if len({subject.given(row) for row in rows}) > 1]


def _conflicts(subject: Subject) -> Markup | None:
    unlike = _unlike(subject, repeats(subject))
    if not unlike:
        return None
    rows = [
        [
            ", ".join(str(subject.number(row)) for row in group[:SHOWN]),
            "; ".join(f"{label} ({n})" for label, n in Counter(map(subject.given, group)).most_common(SHOWN)),
            shortened(subject.judged.texts[group[0]]),
        ]
        for group in unlike[:SHOWN]
    ]
    caption = f"Texts that stand in the test with different labels: {len(rows)} of {len(unlike)}"
    return table(caption, ["rows", "labels", "text"], rows, words=3, kind="texts")
