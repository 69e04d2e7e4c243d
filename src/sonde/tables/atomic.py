"""Atomic: a file that appears under its name only when it is complete.

write_atomically   written beside its target, flushed, renamed
exchange           two names swapped in one step
sync_folder        the names in a folder flushed to the disk
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from sonde.errors import ArgumentError, DataError
from sonde.tables.strays import is_dead, remove, temporary_name

DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""Full, or broken: what no other call of ours would say, so that other errors inside the block pass unchanged."""
CANNOT_SWAP = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What systems and file systems say that know no exchange; what else is wrong, a plain rename says again."""


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when complete; after an error, what stood there still stands.

    The bytes go to a hidden temporary file in the same folder (`.sonde.tmp-*`; what a killed process leaves there is
    removed by the next writer), are flushed to the disk, and take the name in one step. An existing file passes on its
    permissions; a symbolic link keeps pointing at the file it names.

    Parameters
    ----------
    path : str or path
        The file to write.
    mode : {"w", "wb"}
        Text (UTF-8, line ends as written) or bytes.

    Raises
    ------
    DataError
        The folder does not exist or may not be written, `path` is a folder, or the disk is full or broken.
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
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        free = shutil.disk_usage(target.parent).free
        raise DataError(
            f"{path} could not be written: {error.strerror}, {free:,} bytes are free in {target.parent}. "
            f"Make room or choose another disk; nothing was changed there."
        ) from error
    finally:
        remove(temporary)


def _temporary(path: Path, target: Path) -> Path:
    """Create the temporary file, with the permissions that any new file gets."""
    if target.is_dir():
        raise DataError(f"{path} is a folder; name the file to write.")
    if target.exists() and not target.is_file():
        raise DataError(f"{path} is a device or a pipe, which a file would take the place of; name a file to write.")
    if not target.parent.is_dir():
        raise DataError(f"{path} cannot be written: the folder {target.parent} does not exist. Create it first.")
    for stray in target.parent.glob(".sonde.tmp-*"):
        if is_dead(stray):
            remove(stray)
    temporary = temporary_name(target, ".sonde")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror} in {target.parent}.") from error
    return temporary


def check_writable(path: str | os.PathLike[str]) -> None:
    """Say before hours of work what `write_atomically` would say after them; folders are made.

    Raises
    ------
    DataError
        As `write_atomically`.
    """
    target = Path(path).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror} ({error.filename}).") from error
    remove(_temporary(Path(path), target))


def sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, where the file system lets folders be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step; False where the system or the file system cannot.

    Raises
    ------
    OSError
        The system can, and did not.
    """
    swap = _swapper()
    if swap is None:
        return False
    if swap(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT_SWAP:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _swapper() -> Callable[[bytes, bytes], int] | None:
    """`renameat2` of Linux, `renamex_np` of macOS; Python has neither."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        here, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return lambda one, other: int(library.renameat2(here, one, here, other, exchanged))
    if hasattr(library, "renamex_np"):
        swapped = 2  # RENAME_SWAP
        return lambda one, other: int(library.renamex_np(one, other, swapped))
    return None
