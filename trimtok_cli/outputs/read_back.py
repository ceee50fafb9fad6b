"""A record's line, read back: whose answer it is, and what run.json counts of it.

A line that a record has just as `record.py` orders it is matched as bytes, some ten times faster
than JSON is parsed: a night's run has a million lines. Any other line is parsed. Knows no file.
"""

import json
import re
from binascii import unhexlify
from dataclasses import fields
from typing import Any, NamedTuple

from trimtok_cli.data import Seconds

STAGES = tuple(field.name for field in fields(Seconds))


class NoRecord(ValueError):
    """A line of JSON that is no record with a key."""


class Line(NamedTuple):
    """What one line says: the key of its sample, its run, and its part in the counts.

    ms: the milliseconds of each of STAGES.
    """

    key: bytes
    run: str
    failed: bool
    finish: str
    generated: int
    visual: int
    kept: int
    warned: bool
    ms: tuple[float, ...]


def read_line(line: bytes) -> Line:
    """The line as numbers. Raises NoRecord, or ValueError if it is not whole."""
    match = _RECORD.fullmatch(line)
    return _parsed(line) if match is None else _matched(match)


def _matched(match: re.Match[bytes]) -> Line:
    status, finish, generated, visual, kept, *ms, warnings, run, key = match.groups()
    return Line(
        unhexlify(key),
        run.decode(),
        status != b"ok",
        finish.decode(),
        int(generated),
        int(visual),
        int(kept),
        warnings != b"[]",
        tuple(map(float, ms)),
    )


def _parsed(line: bytes) -> Line:
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    row = json.loads(line)
    try:
        facts: dict[str, Any] = row["metadata"]
        key = bytes.fromhex(facts["key"])
        if not key:
            raise NoRecord("it has no key")
        return Line(
            key=key,
            run=str(facts["run"]),
            failed=facts["status"] != "ok",
            finish=str(facts["finish_reason"]),
            generated=int(facts["usage"]["completion_tokens"]),
            visual=int(facts["visual"]["tokens"]),
            kept=int(facts["visual"]["kept"]),
            warned=bool(facts["warnings"]),
            ms=tuple(float(facts["timing_ms"][stage]) for stage in STAGES),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NoRecord(f"it is no record ({error})") from error


# The bytes of a record. Nothing is tried twice (*+), so a line takes one pass.

_TEXT = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'

_TEXTS = rf"\[(?:{_TEXT}(?:, {_TEXT})*+)?+\]"

_NUMBER = r"[-+.\de]++"

_NUMBERS = r"\[[-+.\de, ]*+\]"

_PAIRS = rf"\[(?:{_NUMBERS}(?:, {_NUMBERS})*+)?+\]"


def _object(**members: str) -> str:
    return r"\{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + r"\}"


_METADATA = _object(
    status='"(ok|error)"',
    error=_TEXT,
    error_class=_TEXT,
    finish_reason='"([a-z]++)"',
    flags=_object(cut_off="(?:true|false)", loops="(?:true|false)"),
    method=_TEXT,
    setting=_object(name=_TEXT, keep=_TEXT, changes=_TEXT),
    usage=_object(prompt_tokens=r"\d++", prompt_tokens_dense=r"\d++", completion_tokens=r"(\d++)"),
    visual=_object(
        tokens=r"(\d++)",
        kept=r"(\d++)",
        grid=_NUMBERS,
        frames=r"\d++",
        layer_mean=_NUMBER,
        stages=_PAIRS,
    ),
    timing_ms=_object(**dict.fromkeys(STAGES, f"({_NUMBER})"), batch_size=r"\d++"),
    media=_object(width=r"\d++", height=r"\d++", mode=_TEXT, exif_orientation=r"\d++"),
    video=_object(decoder=_TEXT, duration=_NUMBER, frames=r"\d++", frame_times=_NUMBERS),
    prompt_sent=_TEXT,
    warnings=f"({_TEXTS})",
    run='"([0-9a-f]++)"',
    key='"([0-9a-f]{32})"',
)

_FIRST = _object(
    question_id=rf"(?:{_TEXT}|{_NUMBER})",
    prompt=_TEXT,
    text=_TEXT,
    answer_id=_TEXT,
    model_id=_TEXT,
    image=rf"(?:{_TEXT}|{_TEXTS})",
    metadata=_METADATA,
).removesuffix(r"\}")

# Further columns of the input come last and may hold anything: those lines are parsed.
_RECORD = re.compile(rf"{_FIRST}\}}\n".encode())
