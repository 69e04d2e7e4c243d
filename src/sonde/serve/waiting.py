"""Requests that wait for a model, and the one thread that answers them.

Job      what one request waits for
Full     too much waits already; says when to come again
Worker   a bounded queue, and a thread that calls a model once for all who wait for it

Whoever comes while the model is idle is read at once, alone. Those who come while it reads are read together next, up
to a budget of tokens. A client that asks for one text after another comes back as soon as it is answered: those who
wait let it join them, for a fifth of the last call at most. Without that, clients fall into two groups that take turns.
A job of many texts is read in several turns, between which others have theirs, so that a file of a thousand texts does
not hold up a single one.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sonde.errors import InputError
from sonde.serve.models import Answer, Model
from sonde.serve.settings import Settings

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
"""Of English in the usual vocabularies. Only the share of a call depends on it: batches are made of true tokens."""

SPECIAL_TOKENS = 3
"""Beside those of the text, so that empty texts cost something too."""

RECENT = 0.2
"""Weight of the last call in the estimate of speed: a handful of calls forgets an unusual one."""

TELLING = 0.5
"""Of a whole call: a smaller one tells what a call costs, not how fast texts are read where many wait."""

OWN_TOKENS = 200
"""What a job's own call, such as an explanation, costs beside its tokens."""

PATIENCE = 0.2
"""Of the last call: how long those who wait let those whom it answered come back."""

LONGEST_RETRY_SECONDS = 60

LAST_SECONDS = 10
"""For the end of the thread. Who waited has been answered or given up before; only a call that nobody needs, or one
that hangs, can still be running."""


class Full(Exception):
    """Too much waits already."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"come again in {seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class Job:
    """What one request waits for; made and awaited in the event loop, filled by the worker."""

    model: Model
    """Asked; a reload does not change that."""
    texts: list[str]
    """To be read."""
    call: Callable[[], Any] | None = None
    """Something else to do for these texts, by itself, instead of reading them."""
    future: "asyncio.Future[Any]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """An `Answer`, or what `call` gave."""
    done: int = 0
    """Texts that are read."""
    parts: list[Answer] = field(default_factory=list)
    """Their answers."""
    abandoned: bool = False
    """Nobody waits any more: too late, or the connection is gone."""
    counted: bool = False
    """It takes room in the queue."""
    begun: float | None = None
    """When its first text was read, on the clock of `time.perf_counter`."""
    made: float = field(default_factory=time.perf_counter)
    """When it came."""

    def __post_init__(self) -> None:
        """Count once what it will cost."""
        self.costs = [_tokens(text, self.model.most_tokens) for text in self.texts]
        self.characters = sum(map(len, self.texts))
        self.tokens = sum(self.costs) + (OWN_TOKENS if self.call else 0)

    @property
    def kind(self) -> tuple[str, bool]:
        """What is as fast as this one: the same model, asked for the same kind of thing."""
        return self.model.name, self.call is not None

    @property
    def waited(self) -> float:
        """Seconds until its first text was read; until now, if that is still to come."""
        return (self.begun or time.perf_counter()) - self.made


Slice = tuple[Job, int, int]
"""Some consecutive texts of a job."""


class Worker:
    """A bounded queue and its thread.

    Parameters
    ----------
    settings : Settings
    observe : callable
        Told after each call: the model, how many texts it read, and for how many seconds.
    """

    def __init__(self, settings: Settings, observe: Callable[[Model, int, float], None] = lambda *_: None) -> None:
        self._settings = settings
        self._observe = observe
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sonde-worker", daemon=True)
        self._speeds: dict[tuple[str, bool], float] = {}
        self._due: Counter[tuple[str, bool]] = Counter()
        self.texts = self.characters = self.tokens = 0
        self.busy_since: float | None = None
        self._returning = 0
        self._patient_until = 0.0

    # ------------------------------------------------------- the event loop's side

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end; a model that hangs is left behind."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(LAST_SECONDS)

    def put(self, job: Job) -> None:
        """Let a job wait, or raise `Full`."""
        with self._wake:
            self._drop_abandoned()  # nobody waits for those: they must not keep others out
            if self._is_too_much(job):
                raise Full(min(max(math.ceil(self._seconds()), 1), LONGEST_RETRY_SECONDS))
            self._count(job, 1)
            self._jobs.append(job)
            self._returning -= 1
            self._wake.notify()

    def stuck_seconds(self) -> float:
        """For how long the present call has been running; infinity if the thread is dead."""
        if not self._thread.is_alive():
            return math.inf
        since = self.busy_since
        return 0.0 if since is None else time.perf_counter() - since

    def _is_too_much(self, job: Job) -> bool:
        """Past the bounds, or so much that the answer would come too late. An idle worker takes whatever is allowed."""
        if not self._jobs and not self.texts:
            return False
        bounds = self._settings
        return (
            self.texts + len(job.texts) > bounds.queue_texts
            or self.characters + job.characters > bounds.queue_characters
            or self._seconds(job) > bounds.answer_seconds
        )

    def _seconds(self, more: Job | None = None) -> float:
        """How long what waits will take, and one job more, as far as speeds are known."""
        due = self._due + Counter({more.kind: more.tokens} if more else {})
        return sum(tokens / self._speeds[kind] for kind, tokens in due.items() if kind in self._speeds)

    def _count(self, job: Job, sign: int) -> None:
        """Let a job take room in the queue, or give it back, once: it may be dropped in the middle of its call."""
        if job.counted == (sign > 0):
            return
        job.counted = sign > 0
        self.texts += sign * len(job.texts)
        self.characters += sign * job.characters
        self.tokens += sign * job.tokens
        self._due[job.kind] += sign * job.tokens

    # ----------------------------------------------------------- the thread's side

    def _run(self) -> None:
        while (slices := self._next()) is not None:
            self.busy_since = started = time.perf_counter()
            try:
                finished = self._call(slices) if slices else []
            except Exception as error:  # a defect of ours: those who wait are told, the thread goes on
                logger.exception("a call of the worker failed")
                finished = [(job, error) for job, _, _ in slices]
            self.busy_since = None
            self._finish(finished, time.perf_counter() - started)

    def _next(self) -> list[Slice] | None:
        """Wait for jobs; what to read in one call, or None to end."""
        with self._wake:
            while not self._jobs and not self._stopping:
                self._wake.wait()
            self._let_join()
            self._drop_abandoned()
            if not self._jobs:
                return None if self._stopping else []
            return self._take()

    def _let_join(self) -> None:
        """Give those who were answered just now the time to ask again, unless enough waits for a whole call."""
        while self._returning > 0 and not self._stopping and self._jobs and self._jobs[0].call is None:
            left = self._patient_until - time.perf_counter()
            if left <= 0 or self.tokens >= self._jobs[0].model.call_tokens:
                return
            self._wake.wait(left)

    def _drop_abandoned(self) -> None:
        gone = [job for job in self._jobs if job.abandoned]
        for job in gone:
            self._count(job, -1)
        self._leave(gone)

    def _leave(self, jobs: list[Job]) -> None:
        if jobs:
            left = set(jobs)
            self._jobs = deque(job for job in self._jobs if job not in left)

    def _take(self) -> list[Slice]:
        """The oldest job, and what else waits for its model, up to the budget; unfinished jobs go to the back."""
        first = self._jobs[0]
        if first.call is not None:
            return [(self._jobs.popleft(), 0, len(first.texts))]
        room = first.model.call_tokens
        slices: list[Slice] = []
        for job in [job for job in self._jobs if job.model is first.model and job.call is None]:
            stop = job.done
            while stop < len(job.texts) and (job.costs[stop] <= room or (not slices and stop == job.done)):
                room -= job.costs[stop]
                stop += 1
            if stop == job.done:
                break
            slices.append((job, job.done, stop))
        self._leave([job for job, _, _ in slices])
        self._jobs.extend(job for job, _, stop in slices if stop < len(job.texts))
        return slices

    def _call(self, slices: list[Slice]) -> list[tuple[Job, Any]]:
        """Jobs that are finished now, each with its result or its error."""
        started = time.perf_counter()
        for job, _, _ in slices:
            job.begun = job.begun or started
        first = slices[0][0]
        if first.call is not None:
            result = _attempt(first.call)
            if not isinstance(result, Exception):
                self._learn_speed(first.kind, first.tokens, time.perf_counter() - started)
            return [(first, result)]
        texts = [text for job, start, stop in slices for text in job.texts[start:stop]]
        answer = _attempt(lambda: first.model.answer(texts))
        if isinstance(answer, Exception):
            return self._one_by_one(slices, answer)
        seconds, tokens = time.perf_counter() - started, sum(sum(job.costs[start:stop]) for job, start, stop in slices)
        if tokens >= TELLING * first.model.call_tokens:
            self._learn_speed(first.kind, tokens, seconds)
        self._observe(first.model, len(texts), seconds)
        return self._spread(slices, answer)

    def _spread(self, slices: list[Slice], answer: Answer) -> list[tuple[Job, Any]]:
        row = 0
        for job, start, stop in slices:
            rows = slice(row, row + stop - start)
            job.parts.append(answer.take(rows))
            job.done = stop
            row += stop - start
        return [(job, Answer.joined(job.parts)) for job, _, stop in slices if stop == len(job.texts)]

    def _one_by_one(self, slices: list[Slice], error: Exception) -> list[tuple[Job, Any]]:
        """A text that a model cannot read, or a lack of memory, is the business of its own request alone."""
        if len(slices) == 1:
            return [(slices[0][0], error)]
        return [pair for one in slices for pair in self._call([one])]

    def _learn_speed(self, kind: tuple[str, bool], tokens: int, seconds: float) -> None:
        speed, known = tokens / max(seconds, 1e-6), self._speeds.get(kind)
        self._speeds[kind] = speed if known is None else (1 - RECENT) * known + RECENT * speed

    def _finish(self, finished: list[tuple[Job, Any]], seconds: float) -> None:
        """Hand results over to the loops that wait for them, after a call of so many seconds."""
        if not finished:
            return
        with self._wake:
            self._returning, self._patient_until = len(finished), time.perf_counter() + PATIENCE * seconds
            for job, _ in finished:
                self._count(job, -1)
            self._leave([job for job, _ in finished])  # an error in the middle of a job that had gone to the back
        loops = {job.future.get_loop() for job, _ in finished}
        for loop in loops:
            own = [pair for pair in finished if pair[0].future.get_loop() is loop]
            with contextlib.suppress(RuntimeError):  # the loop was closed by a stop that waited no longer
                loop.call_soon_threadsafe(_deliver, own)


def _tokens(text: str, most: int | None) -> int:
    tokens = len(text) // CHARACTERS_PER_TOKEN + SPECIAL_TOKENS
    return tokens if most is None else min(tokens, most)


def _attempt(call: Callable[[], Any]) -> Any:
    """What it gives, or the error that it raised: users' mistakes and defects alike go to whoever asked."""
    try:
        return call()
    except InputError as error:
        return error
    except Exception as error:
        logger.exception("a model failed")
        return error


def _deliver(finished: list[tuple[Job, Any]]) -> None:
    for job, result in finished:
        if job.abandoned or job.future.done():  # an error that nobody asks for would be logged as never retrieved
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
