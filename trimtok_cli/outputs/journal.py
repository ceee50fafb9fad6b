"""The answers file as the journal of its run: what is answered, what failed, and in which order.

Lines are only ever appended. A line without its end is one that a killed run was writing; it is
dropped, and its sample is answered again. An item that failed before and succeeds now has two
lines, until `settle` puts one line for each sample into the input's order. Knows no model.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.read_back import Lines, NoRecord, read_lines
from trimtok_cli.outputs.whole_files import beside, create, discard, move, put

_AT_ONCE = 1 << 20  # bytes of lines that are copied in one call

_READ_AT_ONCE = 1 << 18  # bytes of lines that are read together, and fit a processor's cache

_RESTART = "--existing overwrite starts from the beginning, and another --out leaves it as it is"


class Journal:
    """The lines of an answers file, by the keys of their samples.

    starts: key -> where its line begins, the one that counts: success before failure, and of two
    failures the last. failed: the keys of samples that failed. lines, end: how many lines there
    are, and their bytes, without a torn last one. left: how many samples `pending` passed over that
    have no answer yet.

    new: the run begins with this file, so that its lines come in order, and only failures are kept
    in memory.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path, self.new = path, new
        self.starts: dict[bytes, int] = {}
        self.failed: set[bytes] = set()
        self.lines = self.end = self.left = 0
        self.order: list[bytes] = []

    def read(self, run: str, count: Callable[[Lines], None]) -> None:
        """Reads the file; `count` is given the lines of answers, once for each sample.

        Raises UsageError for a line in the middle that is torn, and for a file of something else
        than the records of `run`.
        """
        with self.path.open("rb") as file:
            self.read_from(file, run, count)

    def read_from(self, file: BinaryIO, run: str, count: Callable[[Lines], None]) -> None:
        """As `read`, from the open file."""
        seen = 0
        for block in _whole_lines(file):
            if self.end < seen:
                raise self._torn(self.lines + 1)
            try:
                lines = self.read_lines(block)
            except NoRecord as error:
                raise self._foreign(self.lines + error.place + 1) from None
            for place, name in enumerate(lines.runs):
                if name != run:
                    raise self._foreign(self.lines + place + 1)
            count(lines.chosen(self._add_all(lines)))
            seen += len(block)
            if self.end < seen and b"\n" in block[self.end - seen : -1]:
                raise self._torn(self.lines + 1)

    def _add_all(self, lines: Lines) -> list[bool]:
        """Notes lines; for each, whether it is an answer, and the first to its sample."""
        answers = []
        for size, key, failed in zip(lines.sizes, lines.keys, lines.failed, strict=True):
            answers.append(self._add(key, self.end, failed) and not failed)
            self.end += size
        return answers

    def read_lines(self, block: bytes) -> Lines:
        """The lines of a block, up to the first that is torn. Raises NoRecord."""
        return read_lines(block)

    def _torn(self, number: int) -> UsageError:
        return UsageError(
            f"--out: line {number} of {self.path} is torn, and lines follow it, so the file was "
            f"damaged after it was written: remove that line; or {_RESTART}."
        )

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"--out: {self.path} cannot be gone on with: its line {number} is not of the run that "
            f"the run.json beside it tells of; {_RESTART}."
        )

    def add(self, result: Result, start: int) -> None:
        """Notes the line of a result, which was appended at byte `start`."""
        if result.error or not self.new:
            self._add(bytes.fromhex(result.sample.key), start, bool(result.error))

    def _add(self, key: bytes, start: int, failed: bool) -> bool:
        """Notes a line; False if an answer to the same sample stands before it."""
        self.lines += 1
        if key in self.starts and key not in self.failed:
            return False
        self.starts[key] = start
        (self.failed.add if failed else self.failed.discard)(key)
        return True

    def pending(
        self, samples: Iterable[Sample], *, keep_failed: bool = False, only_failed: bool = False
    ) -> Iterator[Sample]:
        """The samples that are to be answered now; notes the order of all samples."""
        for sample in samples:
            key = bytes.fromhex(sample.key)
            self.order.append(key)
            if key not in self.starts:
                self.left += only_failed
                if not only_failed:
                    yield sample
            elif key in self.failed and not keep_failed:
                yield sample

    def strangers(self, samples: Iterable[Sample]) -> set[bytes]:
        """The keys of answers to none of the samples. Failures are nothing to be kept."""
        return self.starts.keys() - self.failed - {bytes.fromhex(each.key) for each in samples}

    def record(self, key: bytes) -> dict[str, Any]:
        """The record of a sample, read from the file."""
        with self.path.open("rb") as file:
            file.seek(self.starts[key])
            found: dict[str, Any] = json.loads(file.readline())
            return found

    def failures(self) -> list[dict[str, Any]]:
        """A short record of each failed sample, in the order of the samples."""
        place = {key: number for number, key in enumerate(self.order)}
        keys = sorted(self.failed, key=lambda key: (place.get(key, len(place)), self.starts[key]))
        return [_short(self.record(key)) for key in keys]

    def forget_unmet(self) -> None:
        """Forgets failures of samples that `pending` has not met, at the end of all samples."""
        for key in () if self.new else self.failed.difference(self.order):
            self.failed.remove(key)
            del self.starts[key]

    def cut(self) -> None:
        """Removes a torn last line."""
        if self.path.stat().st_size > self.end:
            os.truncate(self.path, self.end)

    def settle(self) -> bool:
        """Puts one line for each sample into the order in which `pending` met the samples.

        Answers to samples that it has not met follow as they stand. The file is written anew only
        if it is not so already, and whole or not at all; returns whether it was.
        """
        if self.new:
            return False
        met = dict.fromkeys(key for key in self.order if key in self.starts)
        starts = [self.starts[key] for key in met]
        starts += sorted(start for key, start in self.starts.items() if key not in met)
        if len(starts) == self.lines and all(a < b for a, b in pairwise(starts)):
            return False
        new = beside(self.path, "new")
        try:
            with self.path.open("rb") as old, create(new) as file:
                for block in _blocks(old, starts):
                    put(file, block)
                os.fsync(file.fileno())
            move(new, self.path)
        except BaseException:
            discard(new)
            raise
        return True


def _short(record: dict[str, Any]) -> dict[str, Any]:
    """The line of errors.jsonl: which sample failed, and why."""
    facts = record["metadata"]
    return {
        **{name: record[name] for name in ("question_id", "image", "prompt")},
        **{name: facts[name] for name in ("error_class", "error", "key")},
    }


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The file in blocks of whole lines; the last may end in a torn one."""
    parts: list[bytes] = []
    while block := file.read(_READ_AT_ONCE):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join((*parts, block[:end]))
            parts.clear()
        parts.append(block[end:])
    if any(parts):
        yield b"".join(parts)


def _blocks(file: Any, starts: Iterable[int]) -> Iterator[bytes]:
    """The lines of a file that begin at these bytes, many at a time."""
    block = bytearray()
    for start in starts:
        file.seek(start)
        block += file.readline()
        if len(block) >= _AT_ONCE:
            yield bytes(block)
            block.clear()
    yield bytes(block)
