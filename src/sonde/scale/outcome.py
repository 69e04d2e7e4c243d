"""Outcome: what came of some rows, as it travels between processes and lies on disk.

Outcome   the new columns of some rows, counts, rows that failed, warnings
Failure   a row for which there is nothing, and why
joined    outcomes of consecutive rows -> one
lost      rows of which nothing is known -> an outcome
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A row for which there is nothing."""

    row: int
    """Its number in the file, from 1."""
    reason: str
    """A sentence."""


@dataclass(frozen=True)
class Outcome:
    """What came of some consecutive rows."""

    rows: int
    """How many."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """The columns that are added, a cell a row, None where a row failed; values that JSON holds."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was counted, such as texts that were cut."""
    failed: list[Failure] = field(default_factory=list)
    """Rows that failed, in order."""
    warnings: list[tuple[str, str, int]] = field(default_factory=list)
    """Sentence, code and count of each warning."""

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Outcome":
        """What `record` gave; KeyError or TypeError if it is something else."""
        found = cls(
            int(record["rows"]),
            dict(record["columns"]),
            dict(record["counts"]),
            [Failure(int(one["row"]), str(one["reason"])) for one in record["failed"]],
            [(str(sentence), str(code), int(count)) for sentence, code, count in record["warnings"]],
        )
        if any(len(column) != found.rows for column in found.columns.values()):
            raise TypeError("columns of different lengths")
        return found


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of consecutive ones."""
    names = dict.fromkeys(name for one in outcomes for name in one.columns)
    columns = {name: [cell for one in outcomes for cell in one.columns.get(name, [None] * one.rows)] for name in names}
    counts: Counter[str] = Counter()
    for one in outcomes:
        counts.update(one.counts)
    failed = [failure for one in outcomes for failure in one.failed]
    warnings = [warning for one in outcomes for warning in one.warnings]
    return Outcome(sum(one.rows for one in outcomes), columns, dict(counts), failed, warnings)


def lost(start: int, reason: str) -> Outcome:
    """The one row behind `start` rows, of which nothing is known but why."""
    return Outcome(1, failed=[Failure(start + 1, reason)])
