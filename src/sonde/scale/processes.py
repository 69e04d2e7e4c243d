"""Processes: parts done by several processes of this machine; one that dies or hangs costs its part a second try.

Processes   a pool: parts in, outcomes out, in the order in which they are done
devices_of  the GPUs that each process sees

Processes are spawned, not forked: torch's threads and CUDA do not survive a fork. Each gets its share of the cores, and
of the GPUs by CUDA_VISIBLE_DEVICES.
"""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sonde.errors import ReadingError, choose
from sonde.progress import announce
from sonde.scale.attempt import Beat
from sonde.scale.outcome import Outcome
from sonde.scale.parts import Part, texts_of
from sonde.scale.work import Work
from sonde.scale.worker import serve_parts
from sonde.scale.workers import Workers

TRIES = 2
"""A part whose worker died is done again by another; if that dies too, the part is at fault."""

MOST_DEATHS = 8
"""After so many deaths in a row, without one part done between them, a worker is given one text alone: if that ends it
too, it is not the rows but the machine or the model."""

GRACE_SECONDS = 5.0
"""What a worker has to end by itself before it is killed."""


LONGEST_WAIT = 3600.0
"""Systems take no timeout of a month."""


@dataclass
class _Task:
    part: Part
    texts: list[str]
    tries: int = 0
    trial: bool = False
    """One text alone, to tell odd rows from a machine or a model that does nothing."""

    def alone(self) -> "_Task":
        """A text of this part, neither short nor long, as a trial."""
        text = sorted(self.texts, key=len)[len(self.texts) // 2]
        return _Task(Part(self.part.number, self.part.start + self.texts.index(text), 1), [text], trial=True)


class _Worker:
    """One process, and what it is at."""

    def __init__(self, number: int, work: Work, environment: dict[str, str], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.channel: Connection
        self.channel, theirs = context.Pipe()
        self.process = context.Process(
            target=serve_parts, args=(work, theirs, environment, threads), daemon=True, name=f"sonde-worker-{number}"
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.task: _Task | None = None
        self.told = 0
        self.heard = time.monotonic()

    def give(self, task: _Task) -> None:
        """Assign a part. It is sent once the worker can take it: more than a pipe holds would wait for its model."""
        self.task, self.told, self.heard = task, 0, time.monotonic()
        if self.ready:
            self.send()

    def send(self) -> None:
        assert self.task is not None
        self.channel.send((self.task.part.start, self.task.texts))

    def end(self, kill: bool = False) -> None:
        self.channel.close()
        if kill:
            self.process.kill()
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Processes:
    """A pool of processes.

    Parameters
    ----------
    work : Work
        What they do.
    workers : Workers
        How many, and after how many seconds of silence one is killed.
    """

    def __init__(self, work: Work, workers: Workers) -> None:
        self.work, self.timeout = work, workers.timeout
        self.environments = devices_of(workers.count, work.device)
        self.threads = threads_of(workers.count)
        self.workers: list[_Worker] = []
        self.deaths = 0
        self.done: _Task | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.end(kill=kind is not None)
        self.workers = []

    def run(self, source: Path, text: str, parts: Sequence[Part], beat: Beat) -> Iterator[tuple[Part, Outcome | str]]:
        """Do all parts; a part that killed its workers comes back with a sentence instead of an outcome.

        Raises
        ------
        SondeError
            That a worker met: the input or the model is wrong.
        ReadingError
            Workers die whatever they are given.
        """
        waiting = texts_of(source, text, parts)
        again: deque[_Task] = deque()
        while True:
            self._hand_out(waiting, again)
            busy = [worker for worker in self.workers if worker.task]
            if not busy:
                return
            for worker in self._heard(busy):
                task = worker.task
                outcome: Outcome | str | None
                try:
                    outcome = self._listen(worker, beat)
                except (EOFError, OSError):
                    outcome = self._bury(worker, beat, again)
                if outcome is not None and task is not None:
                    yield task.part, outcome

    def _hand_out(self, waiting: Iterator[tuple[Part, list[str]]], again: "deque[_Task]") -> None:
        """Give every idle worker a part; start workers while there are parts for them."""
        for number in range(len(self.environments)):
            worker = next((one for one in self.workers if one.number == number), None)
            if worker is not None and worker.task is not None:
                continue
            task = again.popleft() if again else next((_Task(part, texts) for part, texts in waiting), None)
            if task is None:
                return
            if worker is None:
                worker = _Worker(number, self.work, self.environments[number], self.threads)
                self.workers.append(worker)
            with suppress(OSError):  # it died while idle, which is noticed when it is listened to
                worker.give(task)

    def _heard(self, busy: list[_Worker]) -> list[_Worker]:
        """Wait until one of them speaks, dies, or has been silent for too long."""
        now = time.monotonic()
        left = min(worker.heard + self.timeout - now for worker in busy)
        spoke = set(wait([worker.channel for worker in busy], min(max(left, 0.0), LONGEST_WAIT)))
        now = time.monotonic()
        hanging = [w for w in busy if w.channel not in spoke and now - w.heard >= self.timeout]
        for worker in hanging:
            worker.process.kill()
            worker.process.join()
        return [worker for worker in busy if worker.channel in spoke or worker in hanging]

    def _listen(self, worker: _Worker, beat: Beat) -> Outcome | None:
        """Take one message; the outcome, if it is one. EOFError if the worker is dead."""
        message: tuple[Any, ...] = worker.channel.recv()
        worker.heard = time.monotonic()
        kind = choose("a worker's message", message[0], ("ready", "beat", "done", "refused"))
        if kind == "refused":
            raise message[1]
        if kind == "ready":
            worker.ready = True
            worker.send()
        if kind == "beat":
            worker.told += message[1]
            beat(message[1])
        if kind != "done":
            return None
        assert worker.task is not None
        outcome: Outcome = message[1]
        task, worker.task, self.deaths = worker.task, None, 0
        self.done = self.done or task
        beat(-worker.told if task.trial else task.part.rows - worker.told)
        return None if task.trial else outcome

    def _bury(self, worker: _Worker, beat: Beat, again: "deque[_Task]") -> str | None:
        """Remove a dead worker; its part is done again, or given back with the reason of the death."""
        task, silent = worker.task, time.monotonic() - worker.heard >= self.timeout
        assert task is not None
        worker.end(kill=True)
        self.workers.remove(worker)
        beat(-worker.told)
        why = f"said nothing for {self.timeout:,.0f} s" if silent else f"ended with {_end_of(worker.process.exitcode)}"
        if task.trial:
            raise ReadingError(
                f"{self.deaths} workers in a row died, and another of row {task.part.start + 1:,} alone; it {why}. "
                "Take fewer workers if memory is short (--workers), or more time for each (--worker-timeout)."
            )
        rows = f"rows {task.part.start + 1:,} to {task.part.start + task.part.rows:,}"
        announce(f"worker {worker.number + 1} {why} at {rows}; they are done again")
        self.deaths, task.tries = self.deaths + 1, task.tries + 1
        if self.deaths == MOST_DEATHS:
            announce(f"{MOST_DEATHS} workers in a row died: one text is tried alone. Is memory short (--workers)?")
            again.appendleft((self.done or task).alone())  # one that was read before, if there is any
        if task.tries < TRIES:
            again.append(task)
            return None
        return f"the process that read it {why}"


def devices_of(workers: int, device: str) -> list[dict[str, str]]:
    """What each worker's environment says of GPUs: one of those that this process sees, in turn; nothing on a CPU."""
    if device not in ("auto", "cuda"):
        return [{} for _ in range(workers)]
    import torch

    count = torch.cuda.device_count()
    known = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    names = known or [str(one) for one in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": names[i % count]} if count else {} for i in range(workers)]


def threads_of(workers: int) -> int:
    """Threads of each worker: its share of the cores, or what OMP_NUM_THREADS asks for."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // workers, 1)


def _end_of(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {-code}" + (" (killed; memory may be short)" if code == -9 else "")
