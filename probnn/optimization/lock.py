"""A lock that ends with the process that holds it, and room for a note that outlives it."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from ..errors import SerializationError
from .table import write_all

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        os.lseek(handle, 1 << 30, os.SEEK_SET)  # a locked byte cannot be read by others: lock one far behind the note
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FileLock:
    """An exclusive lock on a file beside the one it protects; the system drops it when the process dies.

    The file goes when the lock is released. What :meth:`write` left in it stays where the process is killed, for
    the next holder to :attr:`found`.

    Args:
        path: The file of the lock; made if it is not there.
        name: What messages call the file that is protected.

    Raises:
        SerializationError: Another process or object holds the lock, or the file cannot be made.
    """

    def __init__(self, path: str, name: str):
        try:
            self._handle = _acquire(path)
        except BlockingIOError:
            raise SerializationError(
                f"{name}: is in use by another process or History object; end that process or close() that object "
                "first, or use another file"
            ) from None
        except OSError as error:
            raise SerializationError(f"{name}: cannot be locked ({error.strerror}: {path})") from error
        os.lseek(self._handle, 0, os.SEEK_SET)
        with open(self._handle, "rb", closefd=False) as file:
            self.found = file.read()
        self.release = weakref.finalize(self, _release, self._handle, path, os.getpid())

    def write(self, note: bytes) -> None:
        """Replace the note and wait until it is on the disk."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        write_all(self._handle, note)
        os.fsync(self._handle)

    def clear(self) -> None:
        """Empty the note, without waiting for the disk."""
        os.ftruncate(self._handle, 0)


def _acquire(path: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            try:
                _take(handle)
            except (BlockingIOError, PermissionError):
                raise BlockingIOError from None
            # Who held it before may have removed the file between the two lines above: then this is not the lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _release(handle: int, path: str, process: int) -> None:
    if os.getpid() == process:  # a forked child closes its copy only
        with contextlib.suppress(OSError):  # Windows removes no open file: it stays, empty
            os.unlink(path)
    os.close(handle)
