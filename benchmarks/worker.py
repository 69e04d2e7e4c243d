"""Another process that turns texts into vectors on request and times itself: a contender that shares nothing with ours.

Worker        asks the other process
working       starts it, and ends it
answer        what it does, until there are no more requests
Unavailable   why there is none

Requests and answers are JSON, one a line; vectors go through a file.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class Unavailable(Exception):
    """The packages cannot be had, or do not work here."""


class Worker:
    """The other process."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._folder = process, folder

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request and wait for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable(f"the worker stopped: {last_line(self._folder / 'worker.log')}")
        return json.loads(answer)

    def timed(self, texts: Sequence[str]) -> dict[str, float]:
        """Wall-clock and processor seconds of one reading, by the worker's clocks."""
        found: dict[str, float] = self.ask({"texts": list(texts)})
        return found

    def vectors(self, texts: Sequence[str]) -> Any:
        """The vectors (row, dim)."""
        path = self._folder / "vectors.npy"
        self.ask({"texts": list(texts), "out": str(path)})
        return np.load(path)


@contextmanager
def working(words: Sequence[str]) -> Iterator[Worker]:
    """Start a process that answers, wait until it does, and end it."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        with (home / "worker.log").open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            process: subprocess.Popen[str] = subprocess.Popen(list(words), **pipes)  # type: ignore[call-overload]
            try:
                worker = Worker(process, home)
                worker.ask({"texts": ["ready"]})
                yield worker
            finally:
                process.kill()
                process.communicate()


def last_line(log: Path) -> str:
    """The last line of a log, which names the error."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def answer(encode: Callable[[list[str]], Any], compared: Callable[[list[str]], Any] | None = None) -> None:
    """Answer requests with how long `encode` took for their texts, and where vectors are asked for, write them.

    Parameters
    ----------
    encode : function
        Texts -> (row, dim).
    compared : function, optional
        What gives the vectors, if not `encode`.
    """
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        vectors = encode(request["texts"])
        found = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        if "out" in request:
            np.save(request["out"], np.asarray(vectors if compared is None else compared(request["texts"])))
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
