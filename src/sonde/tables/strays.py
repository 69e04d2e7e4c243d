"""Strays: what a writer that was killed left behind, told from what a living one is writing.

temporary_name   a name beside a file or folder that says who writes: host, process, a mark of the process, a number
is_dead          whether the writer of such a name is no more
remove           a file or folder, if possible

Process numbers are used again, hence the mark; another machine's processes cannot be asked, hence an age.
"""

import hashlib
import os
import platform
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

STRAY_SECONDS = 3600.0
"""A temporary file of another machine is dead after an hour: shards and models are written in seconds. A clock that
goes back makes it younger, never older."""

HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
MARK = secrets.token_hex(4)


def temporary_name(path: Path, prefix: str = "") -> Path:
    """A name in the folder of `path` that nobody else uses; hidden, with `.tmp-` in it."""
    return path.parent / f"{prefix}.tmp-{HOST}-{os.getpid()}-{MARK}-{time.monotonic_ns()}"


def is_dead(stray: Path) -> bool:
    """Whether nobody writes under this temporary name any more."""
    try:
        age = time.time() - stray.lstat().st_mtime
        host, process, mark, _ = stray.name.rpartition(".tmp-")[2].split("-")
        number = int(process)
    except OSError:
        return False
    except ValueError:
        return age > STRAY_SECONDS
    if age > STRAY_SECONDS:
        return True
    if host != HOST or os.name == "nt":  # there is no harmless way to ask Windows
        return False
    return mark != MARK if number == os.getpid() else not _is_alive(number)


def remove(path: Path) -> None:
    """Remove a file or folder, if that is possible; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
