"""MMMU's open questions: is the reference among what an answer names at its key places?

The parts of an answer behind `is`, `so`, `answer` and the like are its key places, and all of it
where there are none. A number is right if it equals the reference at two decimals, a text if it
holds the reference; a reference of one letter must stand beside a blank.
"""

import re
from collections.abc import Sequence

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")

_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer names a reference, else 0."""
    if not answer.strip():
        return 0.0
    wanted = [form for each in references for form in _forms(each)]
    named = [form for part in _parts(answer) for form in _forms(part)]
    for form in named:
        if isinstance(form, float):
            if form in wanted:
                return 1.0
        elif any(isinstance(each, str) and each in form for each in wanted):
            return 1.0
    return 0.0


def _parts(answer: str) -> list[str]:
    """The key parts of an answer, then the numbers in them."""
    text = answer.strip().strip(".").lower()
    lines = text.split("\n")
    parts = []
    for number, line in enumerate(lines, start=1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        behind = [line.split(key)[-1].strip() for key in keys if key in line]
        behind = [part for part in behind if part]
        if behind and (shortest := min(behind, key=len)) not in (*":,.!?;'",):
            parts.append(shortest)
    parts = parts or [text]
    return parts + [number for part in parts for form in _NUMBERS for number in form.findall(part)]


def _forms(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]
