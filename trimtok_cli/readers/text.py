"""Bytes to lines, for lists of names and question files: each is opened once, read once, and never
waited for in vain.

Knows no format of rows. Names are bytes to the system, so they are decoded as the system does; rows
are UTF-8.
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

HEAD = 1 << 16  # so much of a file is looked at to tell what it is

LONGEST = 1 << 28  # bytes of one row

PATIENCE = 10.0  # seconds that a named pipe may stay silent before anything was written to it

_LONGEST_NAME = 1 << 16


def open_bytes(path: str) -> BinaryIO:
    """The file, to be read once. OSError where it cannot be opened, UsageError for a named pipe
    that nothing writes to.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode) and os.path.exists(
        os.path.realpath(path)
    ):  # a shell's <(...) has no name of its own
        return _open_pipe(path)
    return open(path, "rb")


def is_regular(path: str) -> bool:
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
    """Lines of bytes, and what passed of them: `head` (the first 64 kB), `size` in bytes and their
    checksum `crc`.

    look: is shown the first bytes before the first line is whole, and may raise. awaited: a size
    and its checksum; `met` tells whether they were passed. Walked once.
    """

    def __init__(
        self, stream: Any, look: Callable[[bytes], None], awaited: tuple[int, int] | None = None
    ) -> None:
        self.stream, self.look, self.awaited = stream, look, awaited
        self.head, self.size, self.crc, self.met = b"", 0, 0, False

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines():
            if len(self.head) < HEAD:
                self.head += line[: HEAD - len(self.head)]
            self.size, self.crc = self.size + len(line), zlib.crc32(line, self.crc)
            self.met = self.met or (self.size, self.crc) == self.awaited
            yield line

    def _lines(self) -> Iterator[bytes]:
        file = binary(self.stream)
        if file is None:
            yield from (_encoded(line) for line in self.stream)
            return
        first = [file.readline(HEAD)]
        if _is_binary(first[0]):
            first.append(file.readline(HEAD))  # a PNG's mark goes on behind a line's end
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
    """(name, exact) of each entry; exact where NULs stand between them (`find -print0`), so that
    nothing of it is punctuation.
    """
    file = binary(stream)
    if file is None:
        yield from ((line.removesuffix("\n").removesuffix("\r"), False) for line in stream)
        return
    read = getattr(file, "read1", file.read)
    left = chunk = read(HEAD)
    while chunk and len(left) < HEAD and b"\n" not in left and b"\0" not in left:
        chunk = read(HEAD)
        left += chunk
    look(left)
    exact = left.count(b"\0") > left.count(
        b"\n"
    )  # a stray NUL in a list of lines is that line's fault alone
    mark = b"\0" if exact else b"\n"
    endless = False  # the entry is longer than any name: its beginning stands for it
    while chunk:
        *whole, left = left.split(mark)
        yield from ((_name(each, exact), exact) for each in whole[endless and bool(whole) :])
        endless = endless and not whole
        if len(left) > _LONGEST_NAME and not endless:
            yield _name(left, exact), exact
            endless = True
        chunk = read(HEAD)
        left = chunk if endless else left + chunk
    if left and not endless:
        yield _name(left, exact), exact


def _is_binary(line: bytes) -> bool:
    return any(byte < 9 or byte > 127 for byte in line[:16]) and line.endswith(b"\n")


def _name(entry: bytes, exact: bool) -> str:
    return os.fsdecode(entry if exact else entry.removesuffix(b"\r"))


def binary(stream: Any) -> Any:
    """The stream's bytes, or None where it has only text (a StringIO, a list of lines)."""
    file = getattr(stream, "buffer", stream)
    return file if hasattr(file, "readline") and not isinstance(file, io.TextIOBase) else None


def _encoded(line: str) -> bytes:
    return line.encode("utf-8", "surrogatepass")


def closing_lines(file: BinaryIO, lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines, and the file closed behind the last of them."""
    with file:
        yield from lines
