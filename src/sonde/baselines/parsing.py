"""Parsing: what a language model wrote -> the label that it names, if it names one.

LabelReader   the names of the labels, ready to be found in answers
Found         a label, and where it stands in the answer
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sonde.errors import ArgumentError
from sonde.learn.tokens import UNSPACED

_SPACED = re.compile(rf"[^\W{UNSPACED}]")
_BLANKS = re.compile(r"[\s_-]+")


@dataclass(frozen=True)
class Found:
    """A label that an answer names."""

    label: int
    """Its position in the names."""
    start: int
    """Where the name begins in the answer."""
    stop: int
    """Where it ends."""


class LabelReader:
    """Finds the labels that answers name.

    Case, and the choice between blank, underscore and hyphen inside a name, do not matter. A name counts where it
    stands for itself: not inside a word (in scripts with blanks), and not inside a longer name, so that of "money" and
    "money market" the longer wins.

    Parameters
    ----------
    names : sequence of str
        The names as the prompt shows them.
    marker : str
        What stands before the label on a line of its own, such as "Label:"; may be empty.
    header : str
        What begins the next text, such as "Text:": a model that was not taught to stop invents further texts and
        labels, which are no answer. May be empty.

    Raises
    ------
    ArgumentError
        If a name is blank, or two are the same to a reader of answers.
    """

    def __init__(self, names: Sequence[str], marker: str = "", header: str = "") -> None:
        patterns = [_pattern(name) for name in names]
        if blank := [name for name, pattern in zip(names, patterns, strict=True) if not pattern]:
            raise ArgumentError(f"The label name {blank[0]!r} is blank; give names with label_names={{label: name}}.")
        seen: dict[str, str] = {}
        for name, pattern in zip(names, patterns, strict=True):
            if pattern.casefold() in seen:
                raise ArgumentError(
                    f"The label names {seen[pattern.casefold()]!r} and {name!r} are the same to a reader of answers, "
                    "for whom case, blanks, underscores and hyphens do not count. Tell them apart with label_names."
                )
            seen[pattern.casefold()] = name
        order = sorted(range(len(names)), key=lambda i: -len(patterns[i]))  # at one place, the longest is tried first
        either = "|".join(f"(?P<l{i}>{_bounded(names[i], patterns[i])})" for i in order)
        self._names = re.compile(either, re.IGNORECASE)
        self._marker = re.compile(rf"^[^\w\n]*{_line(marker)}", re.MULTILINE | re.IGNORECASE) if marker else None
        self._header = re.compile(rf"^{_line(header)}", re.MULTILINE | re.IGNORECASE) if header else None

    def read(self, answer: str) -> Found | None:
        """The label that an answer names; None if it names none, or several.

        Behind the marker, if it is there, the first name on the next line with words counts. Else the name with which
        the answer begins, or the only one that it holds.
        """
        header = self._header.search(answer) if self._header else None
        end = header.start() if header else len(answer)
        marker = self._marker.search(answer, 0, end) if self._marker else None
        if marker:
            line = re.compile(r"[^\n]*\w[^\n]*").search(answer, marker.end(), end)
            return self._first(answer, *line.span()) if line else None
        opening = re.compile(r"[\W_]*").match(answer, 0, end)
        first = self._first(answer, 0, end)
        if first is None or (opening and first.start == opening.end()):
            return first
        every = {self._which(found) for found in self._names.finditer(answer, 0, end)}
        return first if len(every) == 1 else None

    def _first(self, answer: str, start: int, stop: int) -> Found | None:
        found = self._names.search(answer, start, stop)
        return Found(self._which(found), *found.span()) if found else None

    @staticmethod
    def _which(found: re.Match[str]) -> int:
        assert found.lastgroup is not None
        return int(found.lastgroup[1:])


def nested(names: Sequence[str]) -> list[str]:
    """The names with which another name begins, as they are written."""
    return [name for name in names if any(other != name and other.startswith(name) for other in names)]


def _pattern(name: str) -> str:
    parts = [re.escape(part) for part in _BLANKS.split(name.strip()) if part]
    return r"[\s_-]+".join(parts)


def _bounded(name: str, pattern: str) -> str:
    """The pattern, where it is no part of a longer word or of one with a hyphen or slash."""
    inner = name.strip(" _-\t\n")
    before = rf"(?<![^\W{UNSPACED}])(?<![^\W{UNSPACED}][-/])" if _SPACED.match(inner[:1]) else ""
    behind = rf"(?![^\W{UNSPACED}])(?![-/][^\W{UNSPACED}])" if _SPACED.match(inner[-1:]) else ""
    return before + pattern + behind


def _line(header: str) -> str:
    """A header as models write it: with or without marks of emphasis around its words."""
    words = re.findall(r"\w+|[^\w\s]+", header)
    return r"[*_ \t]*".join(re.escape(word) for word in words)
