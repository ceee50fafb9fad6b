"""The lock file beside an output: a second run on the same output is refused.

The system's own lock (flock) tells a live run from a killed one. The process number does so on a
system without flock. Knows no format.
"""

import contextlib
import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be removed there, and so is a lock itself
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_AGAIN = 0.1  # seconds between two looks at a lock that another process holds

_START = b'{"pid": '  # of what a lock holds


class Busy(Exception):
    """Raised if another run holds the lock, or another program's file is in the way."""


class Lock:
    """A lock on one output. A killed run leaves its file, which the next run takes over."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, -1

    def take(self) -> None:
        """Takes the lock. Raises Busy, or OSError if the folder cannot be written."""
        while self.file < 0:
            if fcntl is None:
                with contextlib.suppress(FileNotFoundError):
                    self.path.unlink()
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                self._hold(file)
                # The last holder may have removed the file meanwhile: then ours has no name.
                if _same(file, self.path):
                    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n"
                    os.ftruncate(file, 0)
                    os.pwrite(file, text.encode(), 0) if hasattr(os, "pwrite") else os.write(
                        file, text.encode()
                    )
                    self.file = file
            finally:
                if self.file != file:
                    os.close(file)

    def release(self) -> None:
        if self.file >= 0:
            try:
                with contextlib.suppress(OSError):
                    if _same(self.file, self.path):
                        self.path.unlink()
            finally:
                os.close(self.file)
                self.file = -1

    def _hold(self, file: int) -> None:
        holder = self._holder(file)
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        free = True
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise Busy(
                        f"another run ({who}) is writing it"
                        if holder
                        else "another run is about to write it"
                    ) from None
                free = not holder or not _alive(holder["pid"])
        if holder and holder.get("host") != socket.gethostname():
            raise Busy(
                f"another run ({who}) is writing it; if that run is gone, remove {self.path}"
            )
        if not free:
            raise Busy(f"another run ({who}) is writing it")

    def _holder(self, file: int) -> dict[str, Any]:
        """The run that the lock names, or {} for a new file. Busy if the file is not ours."""
        foreign = Busy(f"{self.path} is in the way and is not trimtok's")
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise foreign
        text = os.pread(file, 1000, 0) if hasattr(os, "pread") else os.read(file, 1000)
        if not text:
            return {}
        try:
            found = json.loads(text)
            return {"pid": int(found["pid"]), "host": str(found["host"])}
        except (ValueError, KeyError, TypeError):
            if text.startswith(_START) or _START.startswith(text):
                return {}  # a run was killed while it wrote this
            raise foreign from None


@contextmanager
def waited_for(path: Path, seconds: float) -> Iterator[None]:
    """Holds a lock for a block; waits for another holder. Raises Busy after so many seconds."""
    lock, end = Lock(path), time.monotonic() + seconds
    while True:
        try:
            lock.take()
            break
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(_AGAIN)
    try:
        yield
    finally:
        lock.release()


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return number != os.getpid()
