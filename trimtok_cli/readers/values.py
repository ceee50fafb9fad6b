"""Values of a row, as JSON has them: texts, lists and objects in each other. Knows no column."""

from collections.abc import Sequence
from typing import Any

# Levels of lists within lists that a row may have.
DEEPEST = 100


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def texts(value: Any, depth: int = 3) -> list[str]:
    """The strings in a value, in lists and objects too, down to `depth` levels."""
    if isinstance(value, str):
        return [value]
    if not depth or not isinstance(value, (dict, list)):
        return []
    return [text for inner in values(value) for text in texts(inner, depth - 1)]


def values(container: dict[str, Any] | list[Any]) -> Sequence[Any]:
    """What a list or an object holds."""
    return list(container.values()) if isinstance(container, dict) else container


def as_list(value: Any) -> Sequence[Any]:
    """The value, as a list of one if it is none."""
    return value if isinstance(value, list) else [value]


def too_deep(row: dict[str, Any]) -> bool:
    """Whether Python could not write the row out. Goes level by level, without recursion."""
    level: list[Any] = [row]
    for _ in range(DEEPEST):
        level = [
            value
            for container in level
            for value in values(container)
            if isinstance(value, (dict, list))
        ]
        if not level:
            return False
    return True
