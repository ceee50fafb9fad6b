"""JSON rows -> samples: JSONL or one JSON array, of {"question_id", "image", "text", ...}.

A file of another format is refused before anything is loaded. A broken row among sound ones becomes
a sample that carries its problem, so that the rows after it are still answered. Knows no column:
rows.py does.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers import foreign_formats
from trimtok_cli.readers.rows import Rows, Rules, broken
from trimtok_cli.readers.source import Source, late
from trimtok_cli.readers.text import Tape, closing_lines
from trimtok_cli.wording import shortened

# Broken rows at the beginning of a stream after which the run begins all the same.
_STREAM_ROWS = 100

# Broken rows at the beginning of a file after which the file is refused.
_FILE_ROWS = 100_000

# Bytes of a file that may be read at once, to see whether it is one JSON object.
_WHOLE = 1 << 26


class JsonRows:
    """One file or stream of rows; `name` is as messages show it."""

    def __init__(self, path: str, rules: Rules, name: str) -> None:
        self.path = path
        self.name = name
        self.rows = Rows(rules, self.name)
        self.files: tuple[Path | int, ...] = (0,) if path == "-" else (Path(path),)

    def stream(self, stream: Any) -> Source:
        """The source of a stream, which can be read only once.

        It is read at once up to the first sound row, so that a stream without questions is refused
        before a model is loaded.
        """
        tape = Tape(stream, self._look)
        samples = self._samples(iter(tape) if stream is sys.stdin else closing_lines(stream, tape))
        seen: list[Sample] = []
        for sample in samples:
            seen.append(sample)
            if not sample.problem:
                break
            if len(seen) >= _STREAM_ROWS and not self._looks_foreign(tape, seen):
                break
            if len(seen) >= _STREAM_ROWS:
                raise self._refusal(tape, seen[0], len(seen))
        else:
            raise self._refusal(tape, seen[0] if seen else None, len(seen))
        return Source(
            chain(seen, late(samples, self.name)), None, self.files, root=self.rows.rules.root
        )

    def file(self) -> Source:
        """The source of a regular file.

        It is read to the first sound row, counted to the end, and read again as samples are asked
        for.
        """
        with open(self.path, "rb") as file:
            tape = Tape(file, self._look)
            first_lines = list(islice((line for line in map(_content, tape) if line), 20))
            is_open = first_lines and foreign_formats.is_unfinished_object(first_lines[0])
            if is_open and self._is_document(first_lines):
                raise UsageError(
                    foreign_formats.refusal(self.name, foreign_formats.document_format(tape.head))
                )
            file.seek(0)
            tape = Tape(file, self._look)
            lines = iter(tape)
            samples = self._samples(lines)
            first = None
            total = 0
            for sample in islice(samples, _FILE_ROWS):
                first = first or sample
                total += 1
                if not sample.problem:
                    break
            else:
                raise self._refusal(tape, first, total)
            if first_lines[0].startswith("["):
                rows = [*self._array(self._bytes())]
                return Source(rows, len(rows), self.files, root=self.rows.rules.root)
            total += sum(1 for line in lines if _content(line))
            return Source(self._again(total, tape), total, self.files, root=self.rows.rules.root)

    def _again(self, total: int, counted: Tape) -> Iterator[Sample]:
        """The rows, read again. One more, failed row follows where the file has changed."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closing_lines closes it)
        except OSError as error:
            yield Sample(
                id=self.name,
                question="",
                problem=f"{self.name} cannot be read any more ({error.strerror})",
            )
            return
        tape = Tape(file, self._look, awaited=(counted.size, counted.crc))
        number = 0
        for sample in late(self._samples(closing_lines(file, tape)), self.name):
            yield sample
            number += 1
        if not tape.met:
            problem = (
                f"{self.name} was changed while it was read: it had {total} rows, and "
                f"{number} were read; run it again"
            )
            yield Sample(id=self.name, question="", problem=problem)

    def _samples(self, lines: Iterator[bytes]) -> Iterator[Sample]:
        """One sample a row. Rows are numbered from 0, lines from 1."""
        number = 0
        for line_number, line in enumerate(lines, start=1):
            text = _content(line)
            if not number and text.startswith("["):
                yield from self._array(line + b"".join(lines))
                return
            if text:
                yield self._parsed(line, number, f"line {line_number}")
                number += 1

    def _array(self, text: bytes) -> Iterator[Sample]:
        """One sample for each entry of a JSON array. UsageError where it is none."""
        try:
            rows = json.loads(_content(text, "strict"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise UsageError(
                f"{self.name} starts like a JSON array but is not one ({reason}); repair it "
                "or write JSONL"
            ) from None
        for number, row in enumerate(rows):
            yield self.rows.sample(row, number, f"row {number + 1}")

    def _parsed(self, line: bytes, number: int, place: str) -> Sample:
        try:
            row = json.loads(_content(line, "strict"), object_pairs_hook=_once)
        except UnicodeDecodeError:
            return broken(self.name, place, " is not UTF-8 text; save the file as UTF-8")
        except (ValueError, RecursionError) as error:
            return broken(self.name, place, f" is not valid JSON ({getattr(error, 'msg', error)})")
        return self.rows.sample(row, number, place)

    def _look(self, head: bytes) -> None:
        """Raises UsageError where the first bytes are no text."""
        if format := foreign_formats.binary_format(head):
            raise UsageError(foreign_formats.refusal(self.name, format))

    def _bytes(self) -> bytes:
        return Path(self.path).read_bytes()

    def _is_document(self, first_lines: list[str]) -> bool:
        """Whether the file is one JSON object over several lines.

        A large file is judged by its first lines alone.
        """
        if os.path.getsize(self.path) > _WHOLE:
            return not any(foreign_formats.is_object(line) for line in first_lines[1:])
        return len(first_lines) > 1 and foreign_formats.is_object(_content(self._bytes()))

    def _looks_foreign(self, tape: Tape, seen: list[Sample]) -> bool:
        """Whether a stream is of another format, by its first line or by every row in `seen`."""
        return bool(foreign_formats.text_format(_first(tape))) or all(
            "looks like" in sample.problem for sample in seen
        )

    def _refusal(self, tape: Tape, first: Sample | None, count: int) -> UsageError:
        """The error for a file whose first `count` rows are all broken; `first` is the first."""
        if first is None:
            return UsageError(f"{self.name} holds no questions; {foreign_formats.WANTED}")
        line = _first(tape)
        format = foreign_formats.text_format(line)
        if not format and count > 1 and foreign_formats.is_unfinished_object(line):
            format = foreign_formats.document_format(tape.head)
        if format:
            return UsageError(foreign_formats.refusal(self.name, format))
        return UsageError(f"no row of {self.name} can be answered; the first: {first.problem}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. ValueError for a name that stands twice.

    JSON would take the last value of the name and forget the other.
    """
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shortened(twice, 40)!r} stands twice in one object")
    return unique


def _content(line: bytes, errors: str = "replace") -> str:
    """The line as text, without the blanks around it and a byte order mark.

    The mark stands at the beginning of a file, and so inside a file that was joined from several.
    """
    return line.decode("utf-8", errors).strip().removeprefix("\ufeff").strip()


def _first(tape: Tape) -> str:
    """The first line that is not blank; "" where there is none."""
    return next((line for line in map(_content, tape.head.split(b"\n")) if line), "")
