"""The answers file as the journal of its run: what is answered, what failed, and in which order.

Lines are only ever appended. A line without its end is one that a killed run was writing; it is
dropped, and its sample is answered again. An item that failed before and succeeds now has two
lines, until `settle` puts one line for each sample into the input's order. Knows no model.
"""

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, compress, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.line_starts import LineStarts
from trimtok_cli.outputs.read_back import Lines, NoRecord, read_lines
from trimtok_cli.outputs.whole_files import beside, create, discard, move, put

_AT_ONCE = 1 << 20  # bytes of lines that are copied in one call

_READ_AT_ONCE = 1 << 18  # bytes of lines that are read together, and fit a processor's cache

_RESTART = "--existing overwrite starts from the beginning, and another --out leaves it as it is"


class Journal:
    """The lines of an answers file, by the keys of their samples.

    starts: key -> where its line begins, the one that counts: success before failure, and of two
    failures the last. failed: the keys of samples that failed. lines, end: how many lines there
    are, and their bytes, without a torn last one. met: how many samples `pending` has met; left:
    how many of them it passed over that have no answer yet.

    new: the run begins with this file, so that its lines come in order, and only failures are kept
    in memory.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path, self.new = path, new
        self.starts = LineStarts()
        self.failed: set[bytes] = set()
        self.lines = self.end = self.left = self.met = 0
        self._order = array("I")  # numbers of keys; without those of a new file

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
            if not seen:
                more = os.fstat(file.fileno()).st_size * len(lines.sizes) // len(block)
                self.starts.keys_met.make_room(more)
            count(lines.chosen(self._add_all(lines)))
            seen += len(block)
            if self.end < seen and b"\n" in block[self.end - seen : -1]:
                raise self._torn(self.lines + 1)

    def _add_all(self, lines: Lines) -> list[bool]:
        """Notes lines; for each, whether it is an answer, and the first to its sample."""
        sizes = lines.sizes
        begins = list(accumulate(sizes, initial=self.end))
        if not any(lines.failed) and self.starts.add_new(lines.keys, begins[:-1]):
            self.lines, self.end = self.lines + len(sizes), begins[-1]
            return [True] * len(sizes)
        answers = []
        for size, key, failed in zip(sizes, lines.keys, lines.failed, strict=True):
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
            self.met += 1
            if not self.new:
                self._order.append(self.starts.meet(key))
            if key not in self.starts:
                self.left += only_failed
                if not only_failed:
                    yield sample
            elif key in self.failed and not keep_failed:
                yield sample

    def strangers(self, samples: Iterable[Sample]) -> set[bytes]:
        """The keys of answers to none of the samples. Failures are nothing to be kept."""
        known = self.starts.keys_met
        asked = bytearray(len(known))
        for each in samples:
            number = known.find(bytes.fromhex(each.key))
            if number is not None:
                asked[number] = True
        found = compress(range(len(known)), (not each for each in asked))
        return {known[number] for number in found if self.starts.has(number)} - self.failed

    def record(self, key: bytes) -> dict[str, Any]:
        """The record of a sample, read from the file."""
        with self.path.open("rb") as file:
            file.seek(self.starts[key])
            found: dict[str, Any] = json.loads(file.readline())
            return found

    def failures(self) -> list[dict[str, Any]]:
        """A short record of each failed sample, in the order of the samples."""
        keys = (key for key in self.in_order() if key in self.failed) if self.failed else ()
        return [_short(self.record(key)) for key in keys]

    def forget_unmet(self) -> None:
        """Forgets failures of samples that `pending` has not met, at the end of all samples."""
        unmet = {} if self.new else {self.starts.meet(key): key for key in self.failed}
        for number in self._order if unmet else ():
            unmet.pop(number, None)
        for key in unmet.values():
            self.failed.remove(key)
            del self.starts[key]

    def in_order(self) -> Iterator[bytes]:
        """The keys of all lines that count, in the order of `_numbers`."""
        return (self.starts.keys_met[number] for number in self._numbers())

    def _numbers(self) -> Iterator[int]:
        """Numbers of the keys that have a line: as `pending` met them, then as the lines stand."""
        count = len(self.starts.keys_met)
        others = bytearray(map(self.starts.has, range(count)))
        for number in self._order:
            if others[number]:
                others[number] = False
                yield number
        yield from sorted(compress(range(count), others), key=self.starts.at)

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
        starts = array("Q", map(self.starts.at, self._numbers()))
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
