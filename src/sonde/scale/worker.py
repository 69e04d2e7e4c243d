"""Worker: the main function of a process that does parts for another one.

serve_parts   receive parts, do them, send what came of them
"""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

from sonde.errors import SondeError
from sonde.scale.attempt import attempt
from sonde.scale.work import Work

BEAT_SECONDS = 0.5
"""A worker speaks at most this often: a sign of life, not a load."""


def serve_parts(work: Work, channel: Connection, environment: Mapping[str, str], threads: int) -> None:
    """Run in a process of its own until the other end closes.

    Sends ("ready",), ("beat", rows), ("done", Outcome) or ("refused", error), in which the job ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ.update(environment)  # this process is ours alone, and nothing heavy is imported yet
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the other end is gone: so is the work
        try:
            import torch

            torch.set_num_threads(threads)
            do = work.open()
            channel.send(("ready",))
            while True:
                start, texts = channel.recv()
                channel.send(("done", attempt(do, texts, start, _Pulse(channel))))
        except SondeError as error:
            channel.send(("refused", error))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # it cannot travel if its class takes other arguments than a sentence
            channel.send(("refused", RuntimeError(f"{type(error).__name__}: {error}")))


class _Pulse:
    """Sends how many rows are done, now and then."""

    def __init__(self, channel: Connection) -> None:
        self.channel = channel
        self.rows = 0
        self.last = time.monotonic()

    def __call__(self, rows: int) -> None:
        self.rows += rows
        if time.monotonic() - self.last > BEAT_SECONDS:
            self.channel.send(("beat", self.rows))
            self.rows, self.last = 0, time.monotonic()
