"""Crews: who does the parts, and what happens to those that nobody could do.

Crew        what all of them are: parts in, outcomes out
Alone       this process
open_crew   what a user asks for -> a crew
done        parts -> their outcomes, each whole; rows that kill whoever reads them are found and named
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sonde.scale.attempt import Beat, Do, attempt
from sonde.scale.outcome import Outcome, joined, lost
from sonde.scale.parts import Part, texts_of
from sonde.scale.processes import Processes
from sonde.scale.work import Work
from sonde.scale.workers import Workers

PIECES = 8
"""A part that killed its workers is cut into so many: four rounds find a row among 4,096, each costs two workers."""


class Crew(Protocol):
    """Does parts."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, source: Path, text: str, parts: Sequence[Part], beat: Beat) -> Iterator[tuple[Part, Outcome | str]]:
        """Do parts of a file, in any order; a sentence instead of an outcome for one that killed whoever read it."""
        ...


class Alone:
    """The process itself, a part after the other."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._do: Do | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do = None

    def run(self, source: Path, text: str, parts: Sequence[Part], beat: Beat) -> Iterator[tuple[Part, Outcome | str]]:
        """Do one part after the other."""
        for part, texts in texts_of(source, text, parts):
            self._do = self._do or self.work.open()
            yield part, attempt(self._do, texts, part.start, beat)


def open_crew(work: Work, workers: Workers) -> Crew:
    """The process itself, several, or a cluster; `MissingExtraError` if that needs Ray, and it is not there."""
    if workers.engine == "ray":
        from sonde.scale.cluster import Cluster

        return Cluster(work, workers)
    return Alone(work) if workers.count == 1 else Processes(work, workers)


def done(crew: Crew, source: Path, text: str, parts: Sequence[Part], beat: Beat) -> Iterator[tuple[Part, Outcome]]:
    """Do all parts, in any order, each whole.

    Parts that killed their workers come last: they are cut into pieces, and these again, until the rows that do it
    stand alone.
    """
    killers: list[Part] = []
    for part, found in crew.run(source, text, parts, beat):
        if isinstance(found, Outcome):
            yield part, found
        elif part.rows == 1:
            beat(1)
            yield part, lost(part.start, found)
        else:
            killers.append(part)
    if not killers:
        return
    pieces = [(owner, piece) for owner in killers for piece in _pieces(owner)]
    numbered = [Part(number, piece.start, piece.rows) for number, (_, piece) in enumerate(pieces)]
    found_of: dict[int, list[tuple[Part, Outcome]]] = {}
    for piece, outcome in done(crew, source, text, numbered, beat):
        owner = pieces[piece.number][0]
        gathered = found_of.setdefault(owner.number, [])
        gathered.append((piece, outcome))
        if sum(one.rows for one, _ in gathered) == owner.rows:
            yield owner, joined([one for _, one in sorted(gathered, key=lambda entry: entry[0].start)])


def _pieces(part: Part) -> list[Part]:
    step = -(-part.rows // PIECES)
    return [Part(0, part.start + at, min(step, part.rows - at)) for at in range(0, part.rows, step)]
