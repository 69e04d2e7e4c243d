"""Work with odd rows, for workers that must get over them: light enough to be opened in a second.

Odd       a text -> its capitals; some texts raise, kill, hang, or kill once
rows      texts, some of them odd
KILL, HANG, RAISE, ONCE, REFUSE, WAIT   what makes a text odd
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILL, HANG, RAISE, ONCE, REFUSE = "kill me", "hang me", "raise me", "kill me once", "refuse me"
WAIT = "wait for three workers"


@dataclass(frozen=True)
class Odd:
    """What `sonde.scale.work` calls work."""

    folder: Path
    """Keeps a file for each text that has killed once, and one for each worker."""
    pause: float = 0.0
    """Seconds that each part takes."""
    device: str = "cpu"
    """As real work has it."""

    def open(self) -> Callable[[list[str]], tuple[dict[str, list[Any]], dict[str, int]]]:
        """Say that a worker began, and give the function."""
        (self.folder / f"worker-{os.getpid()}").touch()
        return self.do

    def do(self, texts: list[str]) -> tuple[dict[str, list[Any]], dict[str, int]]:
        """Capitals, and how many characters there were."""
        time.sleep(self.pause)
        for text in texts:
            _act(text, self.folder)
        return {"label": [text.upper() for text in texts]}, {"characters": sum(map(len, texts))}


def _act(text: str, folder: Path) -> None:
    from sonde.errors import DataError

    if text == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if text == ONCE and not (folder / "once").exists():
        (folder / "once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if text == HANG:
        time.sleep(3600)
    while text == WAIT and len(list(folder.glob("worker-*"))) < 3:
        time.sleep(0.1)
    if text == RAISE:
        raise ValueError("this text cannot be read")
    if text == REFUSE:
        raise DataError("this file is no good")


def rows(count: int, **odd: int) -> list[str]:
    """So many plain texts; those at the rows that are named, from 0, are odd: `rows(8, KILL=3)`."""
    found = [f"text {row}" for row in range(count)]
    for name, row in odd.items():
        found[row] = globals()[name]
    return found
