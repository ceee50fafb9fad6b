"""Flat columns of the records, for tables: each has one kind of value, in every row.

A column of the input that holds several kinds becomes text, with JSON for what is none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.read_back import STAGES

_OWN = ("question_id", "prompt", "text", "answer_id", "model_id", "image", "metadata")

_FACTS: dict[str, tuple[str, ...]] = {
    "status": ("status",),
    "error": ("error",),
    "error_class": ("error_class",),
    "finish_reason": ("finish_reason",),
    "cut_off": ("flags", "cut_off"),
    "loops": ("flags", "loops"),
    "method": ("method",),
    "setting": ("setting", "name"),
    "prompt_tokens": ("usage", "prompt_tokens"),
    "prompt_tokens_dense": ("usage", "prompt_tokens_dense"),
    "completion_tokens": ("usage", "completion_tokens"),
    "visual_tokens": ("visual", "tokens"),
    "visual_tokens_kept": ("visual", "kept"),
    **{f"{stage}_ms": ("timing_ms", stage) for stage in STAGES},
    "width": ("media", "width"),
    "height": ("media", "height"),
    "warnings": ("warnings",),
    "run": ("run",),
    "key": ("key",),
}

# Whole numbers up to here are exact as floats.
_EXACT = 1 << 53


@dataclass(frozen=True)
class Column:
    """A column: its name, its kind (int, float, bool or str), and how a record is read for it."""

    name: str
    kind: type
    raw: Callable[[Record], Any]

    def value(self, record: Record) -> Any:
        """The value of the column's kind; None if the record has none."""
        value = self.raw(record)
        if value is None or self.kind in (int, bool):
            return value
        if self.kind is float:
            return float(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def columns(answers: Answers) -> list[Column]:
    """The columns of all records; reads every record once."""
    found: dict[str, tuple[Callable[[Record], Any], set[type]]] = {
        name: (_own(name), set()) for name in ("question_id", "image", "prompt", "text")
    }
    found |= {name: (_fact(way), set()) for name, way in _FACTS.items()}
    found |= {name: (_own(name), set()) for name in ("model_id", "answer_id")}
    names: dict[str, str] = {}
    for record in answers.records():
        for key in record:
            if key not in _OWN and key not in names:
                names[key] = _free(key, found)
                found[names[key]] = (_own(key), set())
        for raw, kinds in found.values():
            kinds.add(_kind(raw(record)))
    return [Column(name, _common(kinds), raw) for name, (raw, kinds) in found.items()]


def _free(name: str, taken: dict[str, Any]) -> str:
    while name in taken:
        name = f"input_{name}"
    return name


def _own(name: str) -> Callable[[Record], Any]:
    return lambda record: record.get(name)


def _fact(way: tuple[str, ...]) -> Callable[[Record], Any]:
    def raw(record: Record) -> Any:
        value: Any = record["metadata"]
        for part in way:
            value = (value or {}).get(part)
        return value

    return raw


def _kind(value: Any) -> type:
    """The kind of a value: None's own, int, float, bool or str; list for whatever needs JSON."""
    if value is None or isinstance(value, (bool, str, float)):
        return type(value)
    return int if isinstance(value, int) and abs(value) <= _EXACT else list


def _common(kinds: set[type]) -> type:
    kinds = kinds - {type(None)}
    if kinds == {int, float}:
        return float
    (kind,) = kinds if len(kinds) == 1 else (str,)
    return str if kind is list else kind
