"""Files that are whole or absent: documents moved into place, and lines that are never cut."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


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
    temporary = beside(path, "tmp")
    try:
        with create(temporary) as file:
            put(file, text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    except BaseException:
        discard(temporary)
        raise


class Lines:
    """A new file of lines. A line is written whole or, after an OSError, not at all.

    A killed process loses no line that was written.
    """

    def __init__(self, path: Path) -> None:
        self.file = create(path)
        self.end = 0

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

    def close(self) -> None:
        self.file.close()


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
