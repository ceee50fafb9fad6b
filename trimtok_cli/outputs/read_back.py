"""Records' lines, read back: whose answers they are, and what run.json counts of them.

Lines that records have just as `record.py` orders them are matched as bytes, many at a time, in a
third of the time that JSON takes: a night's run has a million lines. Any other line is parsed.
Knows no file.
"""

import json
import re
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from io import BytesIO
from itertools import compress
from typing import Any, NamedTuple

from trimtok_cli.data import Seconds
from trimtok_cli.key_table import SIZE

STAGES = tuple(field.name for field in fields(Seconds))


class NoRecord(ValueError):
    """A line of JSON that is no record with a key. place: how many lines stand before it."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place


class Lines(NamedTuple):
    """What lines say, a column for each fact: the keys of their samples, and their part in counts.

    sizes: the bytes of each line. ms: for each of STAGES, the milliseconds of each line.
    """

    sizes: Sequence[int] = ()
    keys: Sequence[bytes] = ()
    runs: Sequence[str] = ()
    failed: Sequence[bool] = ()
    finish: Sequence[str] = ()
    loops: Sequence[bool] = ()
    generated: Sequence[int] = ()
    visual: Sequence[int] = ()
    kept: Sequence[int] = ()
    warned: Sequence[bool] = ()
    ms: tuple[Sequence[float], ...] = ((),) * len(STAGES)

    def chosen(self, which: Sequence[bool]) -> "Lines":
        """The lines at the places where `which` is true."""
        if all(which):
            return self
        *columns, ms = self
        picked: list[Any] = [list(compress(column, which)) for column in columns]
        return Lines._make([*picked, tuple(list(compress(column, which)) for column in ms)])


def read_lines(block: bytes) -> Lines:
    """The lines of a block, up to the first that is torn. Raises NoRecord."""
    for pattern in (_QUICK_RECORD, _RECORD):
        rows = pattern.findall(block)
        whole = sum(len(row[0]) for row in rows) == len(block)
        if rows and whole and len(rows) == block.count(b"\n"):
            with suppress(ValueError):  # a number that is none
                return _matched(rows)
    return _in_columns(list(_each(BytesIO(block))))


def _matched(rows: Sequence[tuple[bytes, ...]]) -> Lines:
    lines, status, finish, loops, generated, visual, kept, *ms, warnings, runs, keys = zip(
        *rows, strict=True
    )
    return Lines(
        sizes=list(map(len, lines)),
        keys=list(map(unhexlify, keys)),
        runs=list(map(bytes.decode, runs)),
        failed=[each != b"ok" for each in status],
        finish=list(map(bytes.decode, finish)),
        loops=[each == b"true" for each in loops],
        generated=list(map(int, generated)),
        visual=list(map(int, visual)),
        kept=list(map(int, kept)),
        warned=[each != b"[]" for each in warnings],
        ms=tuple(list(map(float, each)) for each in ms),
    )


def _each(lines: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
    """The columns of each line, up to the first that is torn."""
    for place, line in enumerate(lines):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            row = None
        if row is None and line != b"null\n":
            return
        try:
            yield len(line), *_parsed(row)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NoRecord(f"it is no record ({error})", place) from error


def _parsed(row: Any) -> tuple[Any, ...]:
    facts: dict[str, Any] = row["metadata"]
    key = bytes.fromhex(facts["key"])
    if len(key) != SIZE:
        raise ValueError("it has no key")
    return (
        key,
        str(facts["run"]),
        facts["status"] != "ok",
        str(facts["finish_reason"]),
        bool(facts.get("flags", {}).get("loops")),
        int(facts["usage"]["completion_tokens"]),
        int(facts["visual"]["tokens"]),
        int(facts["visual"]["kept"]),
        bool(facts["warnings"]),
        tuple(float(facts["timing_ms"][stage]) for stage in STAGES),
    )


def _in_columns(rows: Sequence[tuple[Any, ...]]) -> Lines:
    if not rows:
        return Lines()
    *columns, ms = zip(*rows, strict=True)
    return Lines._make([*columns, tuple(zip(*ms, strict=True))])


# The bytes of a record. Nothing is tried twice (*+), so a line takes one pass.

_PLAIN = r'"[^"\\\n]*+"'

_TEXT = r'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'

# The same, looked for quickly: line ends are counted afterwards, and a quotation mark behind one
# backslash is the text's own. One behind several matches nothing, and is left to _TEXT.

_QUICK_PLAIN = '"[^"]*+"'

_QUICK_TEXT = r'"[^"]*+"(?:(?<=[^\\]\\")[^"]*+")*+(?<!\\")'

_NUMBER = r"[-+.0-9e]++"

_NUMBERS = r"\[[-+.0-9e, ]*+\]"

_PAIRS = rf"\[(?:{_NUMBERS}(?:, {_NUMBERS})*+)?+\]"


def _object(**members: str) -> str:
    return r"\{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + r"\}"


def _pattern(text: str, plain: str) -> re.Pattern[bytes]:
    """What matches a record's line and its end, by how a text and one without escapes match."""
    texts = rf"\[(?:{text}(?:, {text})*+)?+\]"
    metadata = _object(
        status='"([a-z]++)"',
        error=text,
        error_class=plain,
        finish_reason='"([a-z]++)"',
        flags=_object(cut_off="[a-z]++", loops="([a-z]++)"),
        method=plain,
        setting=_object(name=text, keep=plain, changes=text),
        usage=_object(
            prompt_tokens=r"[0-9]++", prompt_tokens_dense=r"[0-9]++", completion_tokens=r"([0-9]++)"
        ),
        visual=_object(
            tokens=r"([0-9]++)",
            kept=r"([0-9]++)",
            grid=_NUMBERS,
            frames=r"[0-9]++",
            layer_mean=_NUMBER,
            stages=_PAIRS,
        ),
        timing_ms=_object(**dict.fromkeys(STAGES, f"({_NUMBER})"), batch_size=r"[0-9]++"),
        media=_object(width=r"[0-9]++", height=r"[0-9]++", mode=plain, exif_orientation=r"[0-9]++"),
        video=_object(decoder=plain, duration=_NUMBER, frames=r"[0-9]++", frame_times=_NUMBERS),
        prompt_sent=text,
        warnings=f"({texts})",
        run='"([0-9a-f]++)"',
        key='"([0-9a-f]{32})"',
    )
    first = _object(
        question_id=rf"(?:{text}|{_NUMBER})",
        prompt=text,
        text=text,
        answer_id=plain,
        model_id=text,
        image=rf"(?:{text}|{texts})",
        metadata=metadata,
    ).removesuffix(r"\}")
    # Further columns of the input come last. Lines with objects among them are parsed.
    value = rf"(?:{text}|{_NUMBER}|true|false|null|{texts}|{_NUMBERS})"
    return re.compile(rf"({first}(?:, {text}: {value})*+\}}\n)".encode())


_RECORD = _pattern(_TEXT, _PLAIN)

_QUICK_RECORD = _pattern(_QUICK_TEXT, _QUICK_PLAIN)
