"""LLaVA question rows -> samples: JSONL, or one JSON array, of {"question_id", "image", "text",
...}.

A file of another shape is refused before anything is loaded. A broken row among sound ones becomes
a sample that carries its problem, so that the rows after it are still answered. What a row means is
said in rows.py.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.readers import shapes
from trimtok_cli.readers.rows import Rules, broken
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.text import Tape, closing_lines, is_regular, open_bytes
from trimtok_cli.wording import shortened

_STREAM_ROWS = (
    100  # so many broken rows of a stream are looked at before the run begins all the same
)

_FILE_ROWS = 100_000  # so many of a file before it is refused

_WHOLE = 1 << 26  # bytes of a file that may be read at once, to see whether it is one JSON object


def read_questions(
    path: str,
    *,
    image_root: Path | None = None,
    limit: int | None = None,
    allow_text_only: bool = False,
    allow_outside: bool = False,
) -> Source:
    """Rows of the file `path`, or of stdin for "-". Image names are relative to `image_root`, else
    to the file's folder, and may not leave it without `allow_outside`. allow_text_only: rows
    without a picture are asked as they are.

    UsageError where no row can be answered. Rows of a regular file are counted first and read
    again, as they are asked for.
    """
    # A shell's <(...) is a name in /dev, which is no folder with pictures; so is standard input,
    # even if it is a file.
    opened = path in ("-", "/dev/stdin") or path.startswith(("/dev/fd/", "/proc/"))
    nameless = opened or (path.startswith("/dev/") and not os.path.isfile(path))
    root = image_root or (Path() if nameless else Path(path).parent)
    reading = _Reading(path, Rules(root, allow_text_only, allow_outside))
    if path == "-" and sys.stdin is None:
        raise UsageError("standard input is closed; name a question file")
    try:
        if path == "-":
            return reading.stream(sys.stdin).first(limit)
        if os.path.isdir(path):
            raise UsageError(
                f"{path} cannot be read as questions: it is a folder; use `trimtok caption {path}`"
            )
        return (reading.file() if is_regular(path) else reading.stream(open_bytes(path))).first(
            limit
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{shortened(path)} cannot be read ({reason}); check the question file's name"
        ) from error


class _Reading:
    """One file or stream of rows. has_ids: its first sound row has an id, so a row's number might
    be another row's id.
    """

    def __init__(self, path: str, rules: Rules) -> None:
        self.path, self.name, self.rules = path, "stdin" if path == "-" else shortened(path), rules
        self.files: tuple[Path | int, ...] = (0,) if path == "-" else (Path(path),)
        self.has_ids: bool | None = None

    def stream(self, stream: Any) -> Source:
        """Read once, and at once up to the first sound row: so the stream is known to hold
        questions before a model is loaded.
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
        return Source(chain(seen, self._late(samples)), None, self.files)

    def file(self) -> Source:
        """Read to the first sound row, counted to the end, and read again as samples are asked
        for.
        """
        with open(self.path, "rb") as file:
            tape = Tape(file, self._look)
            begins = list(islice((line for line in map(_content, tape) if line), 20))
            if begins and shapes.unfinished(begins[0]) and self._is_document(begins):
                raise UsageError(shapes.sentence(self.name, shapes.document(tape.head)))
            file.seek(0)
            tape = Tape(file, self._look)
            lines = iter(tape)
            samples = self._samples(lines)
            first, total = None, 0
            for sample in islice(samples, _FILE_ROWS):
                first, total = first or sample, total + 1
                if not sample.problem:
                    break
            else:
                raise self._refusal(tape, first, total)
            if begins[0].startswith("["):
                whole = [*self._array(self._bytes())]
                return Source(whole, len(whole), self.files)
            total += sum(1 for line in lines if _content(line))
            return Source(self._again(total, tape), total, self.files)

    def _again(self, total: int, counted: Tape) -> Iterator[Sample]:
        """The rows, read anew. Where they are not those that were counted, one more row says so and
        fails.
        """
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closing_lines closes it)
        except OSError as error:
            yield Sample(
                id=self.name,
                question="",
                problem=f"{self.name} cannot be read any more ({error.strerror})",
            )
            return
        tape, number = Tape(file, self._look, (counted.size, counted.crc)), 0
        for sample in self._late(self._samples(closing_lines(file, tape))):
            yield sample
            number += 1
        if not tape.met:
            problem = (
                f"{self.name} was changed while it was read: it had {total} rows, and "
                f"{number} were read; run it again"
            )
            yield Sample(id=self.name, question="", problem=problem)

    def _late(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Goes wrong what may with the file while the run goes on: it fails one row, and takes
        nothing from those before.
        """
        try:
            yield from samples
        except (TrimtokError, OSError) as error:
            yield Sample(
                id=self.name,
                question="",
                problem=f"{self.name} cannot be read to its end ({error})",
            )

    def _samples(self, lines: Iterator[bytes]) -> Iterator[Sample]:
        """One sample a row; rows are numbered from 0, lines from 1."""
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
        try:
            rows = json.loads(_content(text, "strict"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
            raise UsageError(
                f"{self.name} starts like a JSON array but is not one ({reason}); repair it "
                "or write JSONL"
            ) from None
        for number, row in enumerate(rows):
            yield self._sample(row, number, f"row {number + 1}")

    def _parsed(self, line: bytes, number: int, place: str) -> Sample:
        try:
            row = json.loads(_content(line, "strict"), object_pairs_hook=_once)
        except UnicodeDecodeError:
            return broken(self.name, place, " is not UTF-8 text; save the file as UTF-8")
        except (ValueError, RecursionError) as error:
            return broken(self.name, place, f" is not valid JSON ({getattr(error, 'msg', error)})")
        return self._sample(row, number, place)

    def _sample(self, row: Any, number: int, place: str) -> Sample:
        has_id = isinstance(row, dict) and any(
            shapes.plain(column) in ("questionid", "id") for column in row
        )
        sample = self.rules.sample(row, self.name, place, place if self.has_ids else number)
        if self.has_ids is None and not sample.problem:
            self.has_ids = has_id
        return sample

    def _look(self, head: bytes) -> None:
        if what := shapes.binary(head):
            raise UsageError(shapes.sentence(self.name, what))

    def _bytes(self) -> bytes:
        return Path(self.path).read_bytes()

    def _is_document(self, begins: list[str]) -> bool:
        """Whether the file is one JSON object on several lines. Of a large file its first lines
        must do.
        """
        if os.path.getsize(self.path) > _WHOLE:
            return not any(shapes.is_object(line) for line in begins[1:])
        return len(begins) > 1 and shapes.is_object(_content(self._bytes()))

    def _looks_foreign(self, tape: Tape, seen: list[Sample]) -> bool:
        return bool(shapes.first_line(_first(tape))) or all(
            "looks like" in sample.problem for sample in seen
        )

    def _refusal(self, tape: Tape, broken: Sample | None, count: int) -> UsageError:
        """What to say of a file none of whose first `count` rows can be answered; `broken` is the
        first of them.
        """
        if broken is None:
            return UsageError(f"{self.name} holds no questions; {shapes.WANTED}")
        line = _first(tape)
        what = shapes.first_line(line) or (
            shapes.document(tape.head) if count > 1 and shapes.unfinished(line) else ""
        )
        if what:
            return UsageError(shapes.sentence(self.name, what))
        return UsageError(f"no row of {self.name} can be answered; the first: {broken.problem}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ. Of a name that stands twice JSON would take the last value and
    forget the other.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shortened(twice, 40)!r} stands twice in one object")
    return found


def _content(line: bytes, errors: str = "replace") -> str:
    """The line without the blanks around it and the byte order mark that a file, or a file joined
    to another, begins with.
    """
    return line.decode("utf-8", errors).strip().removeprefix("\ufeff").strip()


def _first(tape: Tape) -> str:
    """The first line that says something."""
    return next((line for line in map(_content, tape.head.split(b"\n")) if line), "")
