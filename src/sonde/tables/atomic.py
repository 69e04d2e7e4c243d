"""Atomic: a file that appears under its name only when it is complete.

write_atomically   written beside its target, flushed, renamed
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sonde.errors import ArgumentError, DataError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when complete; after an error, what stood there still stands.

    The bytes go to a hidden temporary file in the same folder (`.sonde-*.tmp`; one may stay behind if the process is
    killed), are flushed to the disk, and take the name in one step. An existing file passes on its permissions; a
    symbolic link keeps pointing at the file it names.

    Parameters
    ----------
    path : str or path
        The file to write.
    mode : {"w", "wb"}
        Text (UTF-8, line ends as written) or bytes.

    Raises
    ------
    DataError
        The folder does not exist or may not be written, `path` is a folder, or the disk is full.
    """
    target = Path(path).resolve()
    if mode not in ("w", "wb"):
        raise ArgumentError(f"mode {mode!r} is unknown; it must be one of: w, wb.")
    temporary = _temporary(Path(path), target)
    try:
        text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        free = shutil.disk_usage(target.parent).free
        raise DataError(
            f"{path} could not be written: {error.strerror}, {free:,} bytes are free in {target.parent}. "
            f"Make room or choose another disk; nothing was changed there."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, target: Path) -> Path:
    """Create the temporary file, with the permissions that any new file gets."""
    if target.is_dir():
        raise DataError(f"{path} is a folder; name the file to write.")
    if not target.parent.is_dir():
        raise DataError(f"{path} cannot be written: the folder {target.parent} does not exist. Create it first.")
    temporary = target.parent / f".sonde-{secrets.token_hex(8)}.tmp"
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror} in {target.parent}.") from error
    return temporary


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, where the file system lets folders be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
