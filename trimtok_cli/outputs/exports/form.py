"""What all formats share: what the user wants of them, rows that are left out, and the report.

Knows no format.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.whole_files import put, writing

_AT_ONCE = 1 << 18  # bytes of rows that are written in one call

FAILED = "failed"


class LeftOut(Exception):
    """A record that a format has no row for; the message says why, in a few words."""


@dataclass(frozen=True)
class Wanted:
    """What the user wants of formats.

    prefix, suffix: stand around every caption, in formats for training. full_names: a sidecar's
    name keeps the picture's ending. replace: files that trimtok did not write may be replaced.
    tree: the folder in which sidecars lie as the pictures do in theirs; None is beside the
    pictures.
    """

    prefix: str = ""
    suffix: str = ""
    full_names: bool = False
    replace: bool = False
    tree: Path | None = None

    def caption(self, record: Record) -> str:
        """The answer with prefix and suffix, on one line. LeftOut if there is none."""
        answer = answered(record)
        return " ".join(f"{self.prefix}{answer}{self.suffix}".split())


@dataclass
class Made:
    """What became of the records in one format: rows written, and those left out, by reason."""

    place: str
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        left = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        parts = [f"{self.rows} in {self.place}", *([f"left out: {left}"] * bool(left))]
        return "; ".join((*parts, *self.notes))


class OneEach:
    """One text for each picture or question, as a format has it.

    format: its name for --format. file: what it is called in a sentence.
    """

    def __init__(self, format: str, file: str) -> None:
        self.format, self.file = format, file
        self._before: dict[object, int] = {}

    def check(self, key: object, text: str, name: str) -> None:
        """Notes the text of a key. LeftOut for the same once more; UsageError for another one."""
        if key not in self._before:
            self._before[key] = hash(text)
        elif self._before[key] == hash(text):
            raise LeftOut("that stand there already")
        else:
            raise UsageError(
                f"--format {self.format}: {name} has several answers, and {self.file} holds one "
                "for each; choose another format, such as csv."
            )


def succeeded(record: Record) -> bool:
    return bool(record["metadata"]["status"] == "ok")


def answered(record: Record) -> str:
    """The answer on one line. LeftOut if the sample failed, or the answer is empty."""
    if not succeeded(record):
        raise LeftOut(FAILED)
    if answer := " ".join(str(record["text"]).split()):
        return answer
    raise LeftOut("with an empty answer")


def whole_number(value: object) -> int | None:
    """A whole number, or one that a text writes; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return None


def write_rows(
    answers: Answers,
    target: Path,
    row: Callable[[Record], str],
    *,
    head: str = "",
    between: str = "",
    tail: str = "",
) -> Made:
    """Writes a file of one text for each record, whole or not at all.

    A lone surrogate, from a file name that is not UTF-8, becomes an escape. Raises OSError.
    """
    made = Made(str(target))

    def texts() -> Iterator[str]:
        yield head
        for record in answers.records():
            try:
                text = row(record)
            except LeftOut as reason:
                made.left_out[str(reason)] += 1
                continue
            yield f"{between}{text}" if made.rows else text
            made.rows += 1
        yield tail

    with writing(target) as file:
        for block in _blocks(texts()):
            put(file, block)
    return made


def _blocks(texts: Iterable[str]) -> Iterator[bytes]:
    block = bytearray()
    for text in texts:
        block += text.encode("utf-8", "backslashreplace")
        if len(block) >= _AT_ONCE:
            yield bytes(block)
            block.clear()
    yield bytes(block)
