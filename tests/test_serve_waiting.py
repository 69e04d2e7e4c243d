"""The queue and its worker, without HTTP: who is read together, who comes next, what is refused."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import serving  # skips where the extra is not installed

from sonde.errors import DataError
from sonde.serve.models import Answer, Model
from sonde.serve.settings import Settings
from sonde.serve.waiting import Full, Job, Worker


class Reader:
    """Stands for a classifier: the length of each text is its answer; `poison` cannot be read."""

    def __init__(self, seconds: float = 0.0, gate: threading.Event | None = None) -> None:
        self.calls: list[list[str]] = []
        self.seconds, self.gate = seconds, gate

    def answer(self, texts: list[str]) -> Answer:
        self.calls.append(texts)
        time.sleep(self.seconds)
        assert self.gate is None or self.gate.wait(60)
        if "poison" in texts:
            raise ValueError("cannot be read")
        return Answer(
            np.array([[float(len(text))] for text in texts]), np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
        )


def model(reader: Reader, name: str = "m", call_tokens: int = 100) -> Model:
    class Own(Model):
        def answer(self, texts: list[str]) -> Answer:
            return reader.answer(texts)

    return Own(name, None, most_tokens=None, call_tokens=call_tokens, layers_run=0, layers=0)  # type: ignore[arg-type]


def run(play: Callable[[Worker], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
    """Play a scene in a loop of its own, beside a worker."""
    worker = Worker(Settings(**settings))

    async def scene() -> Any:
        try:
            return await asyncio.wait_for(play(worker), 120)
        finally:
            if worker._thread.ident is None:
                worker.start()
            await asyncio.to_thread(worker.stop)

    return asyncio.run(scene())


def lengths(answer: Answer) -> list[float]:
    return answer.probabilities[:, 0].tolist()


def test_who_waits_for_one_model_is_read_together_in_order() -> None:
    reader, other = Reader(), Reader()

    async def play(worker: Worker) -> None:
        one, two = model(reader), model(other, "n")
        jobs = [Job(one, ["a", "bb"]), Job(two, ["x"]), Job(one, ["ccc"])]
        for job in jobs:
            worker.put(job)
        worker.start()
        answers = await asyncio.gather(*(job.future for job in jobs))
        assert [lengths(answer) for answer in answers] == [[1, 2], [1], [3]]

    run(play)
    assert reader.calls == [["a", "bb", "ccc"]] and other.calls == [["x"]]


def test_clients_that_come_back_at_once_are_read_together() -> None:
    """Without patience, the first alone and the two others would take turns for ever."""
    reader = Reader(0.3)

    async def play(worker: Worker) -> None:
        one = model(reader)
        worker.start()

        async def client(name: str) -> None:
            for _ in range(4):
                job = Job(one, [name])
                worker.put(job)
                await job.future

        first = asyncio.create_task(client("first"))
        await asyncio.to_thread(serving.until, lambda: reader.calls)
        await asyncio.gather(first, client("second"), client("third"))

    run(play)
    assert reader.calls[0] == ["first"]
    assert [sorted(call) for call in reader.calls[1:4]] == [["first", "second", "third"]] * 3


def test_who_was_answered_and_does_not_come_back_is_waited_for_a_while_only() -> None:
    reader = Reader(0.5)

    async def play(worker: Worker) -> None:
        one = model(reader)
        worker.start()
        started = time.perf_counter()
        first, second = Job(one, ["a"]), Job(one, ["b"])
        worker.put(first)
        await asyncio.to_thread(serving.until, lambda: reader.calls)
        worker.put(second)
        await asyncio.gather(first.future, second.future)
        assert time.perf_counter() - started >= 1.09, "a fifth of the first call, between two calls of half a second"

    run(play)
    assert reader.calls == [["a"], ["b"]]


def test_a_long_job_lets_others_in_between() -> None:
    """100 tokens a call are 25 texts of 1 + 3 tokens: 60 take three calls; the single text is in the second."""
    reader = Reader()
    ended: list[str] = []

    async def play(worker: Worker) -> None:
        one = model(reader)
        long, short = Job(one, ["abcd"] * 60), Job(one, ["z"])
        for name, job in (("long", long), ("short", short)):
            job.future.add_done_callback(lambda _, name=name: ended.append(name))
            worker.put(job)
        worker.start()
        answers = await asyncio.gather(short.future, long.future)
        assert [lengths(answer) for answer in answers] == [[1], [4] * 60]

    run(play)
    assert [len(call) for call in reader.calls] == [25, 25, 11]
    assert ended == ["short", "long"]
    assert reader.calls[1][0] == "z"


def test_a_text_larger_than_a_call_is_read_alone() -> None:
    reader = Reader()

    async def play(worker: Worker) -> None:
        job = Job(model(reader), ["a" * 4000, "b", "c" * 4000])
        worker.put(job)
        worker.start()
        assert lengths(await job.future) == [4000, 1, 4000]

    run(play)
    assert [[len(text) for text in call] for call in reader.calls] == [[4000], [1], [4000]]


def test_a_text_that_cannot_be_read_is_the_business_of_its_own_request() -> None:
    reader = Reader()

    async def play(worker: Worker) -> None:
        one = model(reader)
        jobs = [Job(one, ["a"]), Job(one, ["poison"]), Job(one, ["ccc"])]
        for job in jobs:
            worker.put(job)
        worker.start()
        done = await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        assert lengths(done[0]) == [1] and lengths(done[2]) == [3]
        assert isinstance(done[1], ValueError)
        assert (worker.texts, worker.characters, worker.tokens) == (0, 0, 0)

    run(play)


def test_calls_of_another_kind_are_made_alone_and_their_errors_are_told() -> None:
    reader = Reader()

    def refuse() -> None:
        raise DataError("No.")

    async def play(worker: Worker) -> None:
        one = model(reader)
        said, refused, read = Job(one, ["a"], lambda: "said"), Job(one, ["b"], refuse), Job(one, ["c"])
        for job in (said, refused, read):
            worker.put(job)
        worker.start()
        assert await said.future == "said"
        with pytest.raises(DataError, match="No"):
            await refused.future
        assert lengths(await read.future) == [1]

    run(play)
    assert reader.calls == [["c"]]


def test_the_queue_is_bounded_in_texts_and_characters() -> None:
    reader = Reader()

    async def play(worker: Worker) -> None:
        one = model(reader)
        first = Job(one, ["a"] * 8)
        worker.put(first)
        with pytest.raises(Full):
            worker.put(Job(one, ["b"] * 3))
        worker.put(Job(one, ["b"] * 2))
        with pytest.raises(Full):
            worker.put(Job(one, [""]))
        worker.start()
        await first.future

    run(play, max_texts=10, queue_texts=10)

    async def wide(worker: Worker) -> None:
        one = model(reader)
        worker.put(Job(one, ["a" * 90]))
        with pytest.raises(Full):
            worker.put(Job(one, ["b" * 11]))
        worker.put(Job(one, ["b" * 10]))
        worker.start()

    run(wide, max_body_bytes=100, queue_characters=100)


def test_what_would_be_answered_too_late_is_refused_with_the_time_to_wait() -> None:
    """400 tokens take .1 s or, on a busy machine, longer: within .5 s at most five such requests are answered."""
    reader = Reader(0.1)

    async def play(worker: Worker) -> None:
        one = model(reader)
        worker.start()
        first = Job(one, ["a" * 388])
        worker.put(first)
        await first.future
        jobs = [Job(one, ["a" * 388]) for _ in range(8)]
        taken = []
        with pytest.raises(Full) as full:
            for job in jobs:
                worker.put(job)
                taken.append(job)
        assert 1 <= len(taken) <= 6 and full.value.seconds >= 1  # the first of them may be read already
        await asyncio.gather(*(job.future for job in taken))

    run(play, answer_seconds=0.5)


def test_what_nobody_waits_for_is_not_read() -> None:
    reader = Reader()

    async def play(worker: Worker) -> None:
        one = model(reader)
        gone, there = Job(one, ["gone"]), Job(one, ["there"])
        worker.put(gone)
        worker.put(there)
        gone.abandoned = True
        worker.start()
        await there.future
        assert worker.texts == 0

    run(play)
    assert reader.calls == [["there"]]


def test_what_nobody_waits_for_keeps_nobody_out() -> None:
    async def play(worker: Worker) -> None:
        one = model(Reader())
        gone, there = Job(one, ["a"] * 10), Job(one, ["b"] * 10)
        worker.put(gone)
        with pytest.raises(Full):
            worker.put(there)
        gone.abandoned = True
        worker.put(there)
        assert worker.texts == 10
        worker.start()
        await there.future

    run(play, max_texts=10, queue_texts=10)


def test_a_job_that_is_given_up_in_the_middle_of_its_call_gives_its_room_back_once() -> None:
    """Its first texts are being read, the others wait again; then the call fails, which ends the job too."""
    gate = threading.Event()
    reader = Reader(gate=gate)

    async def play(worker: Worker) -> None:
        one = model(reader, call_tokens=12)
        gone, there = Job(one, ["poison", *["a"] * 9]), Job(one, ["b"])
        worker.put(gone)
        worker.start()
        await asyncio.to_thread(serving.until, lambda: reader.calls)
        gone.abandoned = True
        worker.put(there)
        assert worker.texts == 1
        gate.set()
        assert lengths(await there.future) == [1]
        assert (worker.texts, worker.characters, worker.tokens) == (0, 0, 0)
        assert not gone.future.done(), "an error that nobody asks for is logged as never retrieved"

    run(play)
    assert [len(call) for call in reader.calls] == [3, 1]


def test_a_stop_answers_what_waits() -> None:
    reader = Reader(0.02)

    async def play(worker: Worker) -> list[Any]:
        one = model(reader, call_tokens=4)
        jobs = [Job(one, [str(i)]) for i in range(10)]
        for job in jobs:
            worker.put(job)
        worker.start()
        await asyncio.to_thread(worker.stop)
        await asyncio.sleep(0.05)
        assert all(job.future.done() for job in jobs)
        return jobs

    worker = Worker(Settings())
    asyncio.run(play(worker))
    assert worker.stuck_seconds() == float("inf")
    assert len(reader.calls) == 10


def test_small_calls_tell_nothing_of_how_fast_many_texts_are_read() -> None:
    reader = Reader(0.1)

    async def play(worker: Worker) -> None:
        one = model(reader, call_tokens=1000)
        worker.start()
        small = Job(one, ["a"])
        worker.put(small)
        await small.future  # 3 tokens in .1 s
        large, beside = Job(one, ["a" * 397] * 50), Job(one, ["b"])
        worker.put(large)  # 5,000 tokens: three minutes at that pace, .5 s in fact
        worker.put(beside)
        await asyncio.gather(large.future, beside.future)

    run(play, answer_seconds=5)


def test_explanations_have_a_pace_of_their_own() -> None:
    reader = Reader()

    async def play(worker: Worker) -> None:
        one = model(reader, call_tokens=12)
        worker.start()
        batch, slow = Job(one, ["a"] * 40), Job(one, ["b"], lambda: time.sleep(0.3))
        for job in (batch, slow):
            worker.put(job)
            await job.future
        taken = []
        with pytest.raises(Full):
            for _ in range(9):
                job = Job(one, ["b"], lambda: time.sleep(0.3))
                worker.put(job)
                taken.append(job)
        assert 1 <= len(taken) <= 5, "more would be answered too late"
        await asyncio.gather(*(job.future for job in taken))

    run(play, answer_seconds=1)
