"""Files that are whole or absent: documents moved into place, and lines that are never cut."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

SYNC_EVERY = 5.0  # seconds; lines of so long may be lost if the machine itself goes down


def beside(path: Path, ending: str) -> Path:
    """The hidden name under which a file is written before it takes its place."""
    return path.with_name(f".{path.name}.{ending}")


def create(path: Path) -> BinaryIO:
    """A new file, opened without a buffer.

    A file that a killed run left under the name is removed first, and a link is never followed.
    """
    discard(path)
    return path.open("xb", buffering=0)


def discard(path: Path) -> None:
    """Removes a file, if it exists and can be removed."""
    with suppress(OSError):
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Writes a document as UTF-8, whole or not at all.

    After an OSError the old file still stands, and nothing is left beside it. A lone surrogate,
    from a file name that is not UTF-8, is written as an escape, which JSON reads back.
    """
    with writing(path) as file:
        put(file, text.encode("utf-8", "backslashreplace"))


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file, without a buffer, that takes the name `path` at the end of the block.

    After an error the old file still stands, and nothing is left beside it.
    """
    temporary = beside(path, "tmp")
    try:
        with create(temporary) as file:
            yield file
            os.fsync(file.fileno())
        move(temporary, path)
    except BaseException:
        discard(temporary)
        raise


def move(temporary: Path, path: Path) -> None:
    """Gives a file that is written its name, at once; another file of that name is replaced."""
    temporary.replace(path)
    with suppress(OSError):  # a folder cannot be opened everywhere
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Lines:
    """A file of lines. A line is written whole or, after an OSError, not at all.

    A killed process loses no line that was written; a machine that goes down loses those of the
    last SYNC_EVERY seconds. end: the file is there, and goes on at this byte; else it is new.
    """

    def __init__(self, path: Path, end: int | None = None) -> None:
        self.file = create(path) if end is None else path.open("r+b", buffering=0)
        self.end = end or 0
        self.synced = time.monotonic()
        if end is not None:
            self.file.truncate(end)
            self.file.seek(end)

    def append(self, line: bytes) -> None:
        """Appends a line. Raises OSError: FileNotFoundError if the file was removed meanwhile."""
        if not os.fstat(self.file.fileno()).st_nlink:
            raise FileNotFoundError
        try:
            put(self.file, line)
        except BaseException:
            with suppress(OSError):
                self.file.truncate(self.end)
                self.file.seek(self.end)
            raise
        self.end += len(line)
        if time.monotonic() - self.synced >= SYNC_EVERY:
            self._sync()

    def close(self) -> None:
        """Closes the file. Raises OSError if the disk did not take all lines."""
        try:
            self._sync()
        finally:
            self.file.close()

    def _sync(self) -> None:
        os.fsync(self.file.fileno())
        self.synced = time.monotonic()


class Printed:
    """Standard output for lines of bytes: UTF-8, whatever the terminal or the locale says.

    Raises OSError if standard output is closed.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def append(self, line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def put(file: BinaryIO, data: bytes) -> None:
    """Writes all of `data`: a nearly full disk takes a part first and refuses the rest."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
