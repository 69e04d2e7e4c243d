"""Cluster: parts done by actors of Ray Data, each with a model of its own, on this machine or many.

Cluster     parts in, outcomes out
connected   Ray, as it runs already, at an address, or started here for as long as it is needed
actors      what Ray is told of such actors

The actors read their parts from the file themselves: a text file is gone through once by each, forwards. Results come
back to the process that asked, which alone writes: an actor or a machine that goes leaves nothing half done.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sonde import errors
from sonde.errors import InputError, ReadingError, SondeError, need
from sonde.scale.attempt import Beat, Do, attempt
from sonde.scale.outcome import Outcome
from sonde.scale.parts import Part
from sonde.scale.processes import TRIES, threads_of
from sonde.scale.work import Work
from sonde.scale.workers import Workers

LOCAL_CPUS = 0.5
"""Of a processor that an actor asks for on a Ray started here: with whole ones, as many actors as processors leave none
for Ray's own tasks, which then wait for ever (2.60, `repartition` before two actors)."""


class Cluster:
    """Actors of Ray Data.

    Parameters
    ----------
    work : Work
        What they do.
    workers : Workers
        How many, where, and what each asks for.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    """

    def __init__(self, work: Work, workers: Workers) -> None:
        need("ray.data", "ray")
        self.work, self.workers = work, workers
        self._stack = ExitStack()
        self._own = False

    def __enter__(self) -> Self:
        self._own = self._stack.enter_context(connected(self.workers.address))
        self._stack.enter_context(_quiet())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, source: Path, text: str, parts: Sequence[Part], beat: Beat) -> Iterator[tuple[Part, Outcome | str]]:
        """Do all parts; those that killed their actors come back with a sentence.

        Raises
        ------
        SondeError
            That an actor met.
        ReadingError
            Ray cannot start the actors, or keeps losing them.
        """
        if not parts:
            return
        import ray.data
        from ray.exceptions import RayError

        left = {part.number: part for part in parts}
        items = [{"number": part.number, "start": part.start, "rows": part.rows} for part in parts]
        threads = threads_of(self.workers.count) if self._own else None
        constructor = (self.work, source.resolve(), text, threads, _ledger())
        workers = replace(self.workers, count=min(self.workers.count, len(parts)))
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor, batch_size=1, fn_constructor_args=constructor, **actors(workers, self._own)
        )
        try:
            for row in answers.iter_rows():
                found = _received(row["found"])
                part = left.pop(row["number"])
                if isinstance(found, Outcome):
                    beat(part.rows)
                yield part, found
        except RayError as error:
            said = " ".join(str(error).split())
            raise ReadingError(f"Ray could not go on: {type(error).__name__}: {said:.300}") from error
        assert not left


class Actor:
    """One model and its part of the file."""

    def __init__(self, work: Work, source: Path, text: str, threads: int | None, ledger: Any) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.ledger = ledger
        self.do: Do | None = None
        self.refused: Exception | None = None
        self.texts = _Forwards(source, text)
        try:
            self.do = work.open()
        except Exception as error:  # it is told with the first part: an actor that does not start is started again
            self.refused = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do one part, unless it has killed those who tried."""
        import ray

        (number,), (start,), (rows,) = (batch[name].tolist() for name in ("number", "start", "rows"))
        if ray.get(self.ledger.begin.remote(number)) > TRIES:
            return {"number": [number], "found": [json.dumps({"lost": f"{TRIES} actors that read it died"})]}
        try:
            if self.do is None:
                assert self.refused is not None
                raise self.refused
            texts = self.texts.take(start, rows)
            told = {"outcome": attempt(self.do, texts, start, lambda _: None).record()}
        except Exception as error:
            told = {"error": {"kind": type(error).__name__, "sentence": str(error)}}
        return {"number": [number], "found": [json.dumps(told)]}


class _Forwards:
    """The texts of a file, stretch after stretch; going back begins anew."""

    def __init__(self, source: Path, text: str) -> None:
        self.source, self.text = source, text
        self.at = 0
        self.held: list[str] = []
        self.stream: Iterator[list[str]] | None = None

    def take(self, start: int, rows: int) -> list[str]:
        if self.stream is None or start < self.at:
            self.stream, self.at, self.held = self._stretches(), 0, []
        while self.at + len(self.held) < start + rows:
            if self.at + len(self.held) <= start:
                self.at, self.held = self.at + len(self.held), []
            self.held += next(self.stream)
        begin = start - self.at
        taken = self.held[begin : begin + rows]
        self.at, self.held = start + rows, self.held[begin + rows :]
        return taken

    def _stretches(self) -> Iterator[list[str]]:
        from sonde.tables import iter_tables, text_column

        for table in iter_tables(self.source, columns=[self.text]):
            yield text_column(table, self.text)


class Ledger:
    """Counts how often each part was begun, where it survives those who begin it.

    Ray Data does the work of a dead actor again without end, and has no lasting option that bounds it.
    """

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """How often this part was begun, this time included."""
        self.begun[number] += 1
        return self.begun[number]


def _ledger() -> Any:
    """A ledger on this machine, which stays as long as the job does."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Ledger).remote()


def _received(told: str) -> Outcome | str:
    """What an actor sent: an outcome, why there is none, or an error, which is raised here."""
    content = json.loads(told)
    if "lost" in content:
        return str(content["lost"])
    if "outcome" in content:
        return Outcome.of(content["outcome"])
    kind, sentence = content["error"]["kind"], content["error"]["sentence"]
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, SondeError):
        raise known(sentence)
    raise RuntimeError(f"{kind}: {sentence}")


def actors(workers: Workers, own: bool) -> dict[str, Any]:
    """What `map_batches` is told of actors that hold a model: how many, and what they ask for."""
    from ray.data import ActorPoolStrategy

    cpus = workers.cpus if workers.cpus is not None else LOCAL_CPUS if own else 1.0
    return {
        "compute": ActorPoolStrategy(size=workers.count, max_tasks_in_flight_per_actor=1),
        "num_cpus": cpus,
        **({"num_gpus": workers.gpus} if workers.gpus else {}),
    }


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Connect to Ray unless that is done; gives whether Ray was started here, and stops what was."""
    import ray

    if ray.is_initialized():
        yield False
        return
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(address=address or "local", **(quiet if address is None else {"logging_level": logging.WARNING}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise InputError(f"Ray is not reached {where}: {' '.join(str(error).split()):.200}") from error
    try:
        yield address is None
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray says little while we tell how far we are, and nothing on standard output, which belongs to results."""
    from ray.data import DataContext

    context, log = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])
