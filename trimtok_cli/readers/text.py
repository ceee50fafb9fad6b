"""Bytes -> lines, for lists of names and for question files: a file is opened once, read once, and
never waited for in vain.

Names are bytes to the system, and are decoded as the system does; rows are UTF-8. Knows no row.
"""

import io
import os
import select
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

from trimtok_cli.errors import UsageError

# Bytes of a file that are looked at to tell what it is.
HEAD = 1 << 16

# Bytes of one row.
LONGEST = 1 << 28

# Seconds that a named pipe may stay silent before anything was written to it.
PATIENCE = 10.0

# Bytes of one name.
_LONGEST_NAME = 1 << 16


def open_bytes(path: str) -> BinaryIO:
    """The file, open, to be read once.

    OSError where it cannot be opened, UsageError for a named pipe that nothing writes to.
    """
    is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
    # The pipe of a shell's <(...) has no name of its own, and always has a writer.
    if is_pipe and os.path.exists(os.path.realpath(path)):
        return _open_pipe(path)
    return open(path, "rb")


def is_regular(path: str) -> bool:
    """Whether a path is that of a regular file, which can be read twice."""
    return stat.S_ISREG(os.stat(path).st_mode)


def _open_pipe(path: str) -> BinaryIO:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not select.select([handle], [], [], PATIENCE)[0]:
        os.close(handle)
        raise UsageError(
            f"{path} is a named pipe to which nothing was written for {PATIENCE:g} seconds; "
            "start its writer first"
        )
    os.set_blocking(handle, True)
    return os.fdopen(handle, "rb")


class Tape:
    """The lines of a stream as bytes, to be walked once, and a record of what was read.

    head: the first 64 kB; size: bytes so far; crc: their checksum; met: whether the reading was
    once at `awaited`, a size and its checksum. `look` is given the first bytes before the first
    line is whole, and may raise. UsageError for a row of 256 MB or more.
    """

    def __init__(
        self, stream: Any, look: Callable[[bytes], None], awaited: tuple[int, int] | None = None
    ) -> None:
        self.stream = stream
        self.look = look
        self.awaited = awaited
        self.head = b""
        self.size = 0
        self.crc = 0
        self.met = False

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines():
            if len(self.head) < HEAD:
                self.head += line[: HEAD - len(self.head)]
            self.size += len(line)
            self.crc = zlib.crc32(line, self.crc)
            self.met = self.met or (self.size, self.crc) == self.awaited
            yield line

    def _lines(self) -> Iterator[bytes]:
        file = byte_stream(self.stream)
        if file is None:
            yield from (_encoded(line) for line in self.stream)
            return
        first = [file.readline(HEAD)]
        if _may_be_binary(first[0]):  # a PNG's mark goes on behind a line's end
            first.append(file.readline(HEAD))
        self.look(b"".join(first))
        if not first[-1].endswith(b"\n"):
            first[-1] += file.readline(LONGEST)
        for line in chain(first, iter(partial(file.readline, LONGEST), b"")):
            if len(line) >= LONGEST:
                raise UsageError(
                    f"a row is longer than {LONGEST >> 20} MB: this is no file of questions, "
                    "one on each line"
                )
            if line:
                yield line


def names(stream: Any, look: Callable[[bytes], None]) -> Iterator[tuple[str, bool]]:
    """(name, exact) of each entry of a list.

    exact: NULs stand between the entries (`find -print0`), so every other character is part of the
    name. `look` is given the first bytes, and may raise.
    """
    file = byte_stream(stream)
    if file is None:
        yield from ((line.removesuffix("\n").removesuffix("\r"), False) for line in stream)
        return
    read = getattr(file, "read1", file.read)
    left = chunk = read(HEAD)
    while chunk and len(left) < HEAD and b"\n" not in left and b"\0" not in left:
        chunk = read(HEAD)
        left += chunk
    look(left)
    # A stray NUL in a list of lines is that line's fault alone.
    exact = left.count(b"\0") > left.count(b"\n")
    mark = b"\0" if exact else b"\n"
    endless = False  # the entry is longer than any name: its beginning stands for it
    while chunk:
        *entries, left = left.split(mark)
        if endless and entries:
            entries.pop(0)
            endless = False
        yield from ((_name(entry, exact), exact) for entry in entries)
        if len(left) > _LONGEST_NAME and not endless:
            yield _name(left, exact), exact
            endless = True
        chunk = read(HEAD)
        left = chunk if endless else left + chunk
    if left and not endless:
        yield _name(left, exact), exact


def _may_be_binary(line: bytes) -> bool:
    return any(byte < 9 or byte > 127 for byte in line[:16]) and line.endswith(b"\n")


def _name(entry: bytes, exact: bool) -> str:
    return os.fsdecode(entry if exact else entry.removesuffix(b"\r"))


def byte_stream(stream: Any) -> Any:
    """The binary stream behind `stream`; None where there is only text (a StringIO, a list)."""
    file = getattr(stream, "buffer", stream)
    return file if hasattr(file, "readline") and not isinstance(file, io.TextIOBase) else None


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "surrogatepass")


def closing_lines(file: BinaryIO, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines; the file is closed behind the last of them."""
    with file:
        yield from lines
