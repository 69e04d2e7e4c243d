"""Job: what is done of a long prediction, kept beside its output until all is done.

Job         a folder OUT.parts, one file a part; a run that was stopped goes on from it
identity    what makes a file this file and no other

`job.json` says whose parts these are. Every file appears whole or not at all and carries a checksum; one that is
damaged is done again. One run at a time holds the folder, by a lock that ends with its process.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sonde.errors import ArgumentError, DataError
from sonde.progress import announce
from sonde.scale.outcome import Outcome
from sonde.scale.parts import Part
from sonde.tables import write_atomically

PARTS = "part-*.json"


def identity(path: Path) -> dict[str, Any]:
    """Path, size and time of change."""
    state = path.stat()
    return {"path": str(path.resolve()), "bytes": state.st_size, "changed_ns": state.st_mtime_ns}


class Job:
    """The parts of one output.

    Parameters
    ----------
    out : path
        The output; the parts lie in OUT.parts beside it.
    about : mapping
        JSON values that make it this job: input, model, options. Parts of another job are dropped.
    parts : sequence of Part

    Raises
    ------
    ArgumentError
        OUT.parts is something else, or another run is at work on it.
    DataError
        The folder cannot be written.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], parts: Sequence[Part]) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.about = json.loads(json.dumps(about))
        self.parts = parts
        self.done: set[int] = set()
        self._lock: IO[Any] | None = None

    def __enter__(self) -> Self:
        self._check()
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written ({error.strerror}); it keeps what is done.") from error
        if not _locked(self._lock):
            self._lock.close()
            raise ArgumentError(f"Another run is at work on {self.out}; wait for it, or give another --out.")
        try:
            self._begin()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
        if kind is None or not any(self.folder.glob(PARTS)):  # nothing is left to go on from
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            announce(f"what is done is kept in {self.folder}: the same command goes on from there")

    @property
    def left(self) -> list[Part]:
        """Parts that are not done."""
        return [part for part in self.parts if part.number not in self.done]

    def keep(self, part: Part, outcome: Outcome) -> None:
        """Write what came of a part."""
        assert outcome.rows == part.rows
        content = json.dumps(outcome.record())
        with write_atomically(self._path(part)) as file:
            file.write(f"{zlib.crc32(content.encode()):08x}\n{content}\n")
        self.done.add(part.number)

    def outcomes(self) -> Iterator[Outcome]:
        """What came of every part, in order."""
        for part in self.parts:
            outcome = self._read(part)
            if outcome is None:
                raise DataError(f"{self._path(part)} was damaged while the job ran. Run the same command again.")
            yield outcome

    def _check(self) -> None:
        strange = self.folder.exists() and (not self.folder.is_dir() or not _is_ours(self.folder))
        if strange:
            raise ArgumentError(f"{self.folder} is not a folder of parts, which would lie there. Give another --out.")
        if not self.out.parent.is_dir():
            raise DataError(f"{self.out} cannot be written: the folder {self.out.parent} does not exist.")

    def _begin(self) -> None:
        head = self.folder / "job.json"
        known: Any = None
        with suppress(OSError, ValueError):
            known = json.loads(head.read_text(encoding="utf-8"))
        if known == self.about:
            self.done = {part.number for part in self.parts if self._read(part) is not None}
            rows = sum(part.rows for part in self.parts if part.number in self.done)
            announce(f"going on: {rows:,} of {sum(part.rows for part in self.parts):,} rows were done before")
            return
        if known is not None:
            announce(f"{self.folder} is of another input, model or option: begun anew")
        for path in self.folder.glob(PARTS):
            path.unlink()
        with write_atomically(head) as file:
            file.write(json.dumps(self.about, indent=1))

    def _path(self, part: Part) -> Path:
        return self.folder / f"part-{part.number:08d}.json"

    def _read(self, part: Part) -> Outcome | None:
        """What was kept of a part; None if nothing, or not what was written."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            checksum, _, content = self._path(part).read_text(encoding="utf-8").partition("\n")
            content = content.removesuffix("\n")
            outcome = Outcome.of(json.loads(content))
            if checksum == f"{zlib.crc32(content.encode()):08x}" and outcome.rows == part.rows:
                return outcome
        return None


def _is_ours(folder: Path) -> bool:
    return all(p.name in ("lock", "job.json") or p.name.startswith(("part-", ".sonde.tmp-")) for p in folder.iterdir())


def _locked(file: IO[Any]) -> bool:
    """Take the lock that ends with this process, if nobody has it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock; there, two runs at once are not told apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network disk that knows no locks
        return True
    return True
