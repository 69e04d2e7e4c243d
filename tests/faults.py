"""Faults of the file system, injected at the n-th call that changes it.

Faults          patches the calls by which files come to be, are renamed and go
faults_at_each  fault at call 1, 2, 3, ... until a job runs through
kills_at_each   the same with SIGKILL, each time in a process of its own

What is patched is what sonde calls: `io.open` for writing and the writes of its files, and os.mkdir, rename, replace,
unlink, rmdir, utime, chmod, fsync, open, write, and the exchange of two names. A write that fails has written half.
"""

import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sonde.tables import atomic

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "utime", "chmod", "fsync", "open", "write")
MOST_CALLS = 400
"""No job of these tests makes more: one that never runs through is caught."""


class Faults:
    """Count the calls while the context is open, and let the `at`-th one fail.

    Parameters
    ----------
    at : int
        Which call, from 1; 0 for none.
    what : str
        "ENOSPC", "EIO", ...: the call fails so; "short": of a write, half is taken, as the system may; "kill".
    only : str, optional
        Count these calls only.
    """

    def __init__(self, at: int, what: str, only: str | None = None) -> None:
        self.at, self.what, self.only = at, what, only
        self.count = 0
        self.calls: list[str] = []
        self._patch = pytest.MonkeyPatch()

    @property
    def fired(self) -> bool:
        return 0 < self.at <= self.count

    def __enter__(self) -> "Faults":
        for name in CALLS:
            self._patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        self._patch.setattr(io, "open", self._opened(io.open))
        swap = atomic._swapper()
        if swap is not None:
            self._patch.setattr(atomic, "_swapper", lambda: self._wrapped("exchange", swap))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def strike(self, name: str) -> bool:
        """Whether this call fails; raises or kills by itself where nothing of it can be done by half."""
        if self.only not in (None, name):
            return False
        self.count += 1
        self.calls.append(name)
        if self.count != self.at:
            return False
        if name == "write":
            return True
        self.fail()
        return False

    def fail(self) -> None:
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what != "short":
            number = getattr(errno, self.what)
            raise OSError(number, os.strerror(number))

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*given: Any, **more: Any) -> Any:
            if name == "open" and not given[1] & (os.O_WRONLY | os.O_RDWR):
                return call(*given, **more)
            if self.strike(name):
                handle, data = given
                done = call(handle, data[: len(data) // 2])
                self.fail()
                return done
            return call(*given, **more)

        return made

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        faults = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                if not faults.strike("write"):
                    return super().write(data)
                done = super().write(bytes(data)[: len(data) // 2])
                faults.fail()
                return done

        def made(file: Any, mode: str = "r", buffering: int = -1, *text: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+"):
                return call(file, mode, buffering, *text, **more)
            self.strike("open")
            raw = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))  # type: ignore[arg-type]
            return raw if "b" in mode else io.TextIOWrapper(raw, *text, **more)

        return made


def faults_at_each(job: Callable[[], object], what: str, only: str | None = None) -> Iterator[tuple[Faults, Any]]:
    """(faults, what the job raised or None) for a fault at call 1, 2, ..., until none was reached."""
    for at in range(1, MOST_CALLS):
        raised = None
        with Faults(at, what, only) as faults:
            try:
                job()
            except Exception as error:
                raised = error
        if not faults.fired:
            assert raised is None, raised
            return
        yield faults, raised
    raise AssertionError("the job never ran through")


def kills_at_each(job: Callable[[], object]) -> Iterator[int]:
    """The number of the call at which a process that does the job was killed: 1, 2, ..., until one ran through."""
    for at in range(1, MOST_CALLS):
        child = os.fork()
        if not child:
            status = 1
            try:
                with Faults(at, "kill"):
                    job()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "the job failed by itself"
            return
        yield at
    raise AssertionError("the job never ran through")
