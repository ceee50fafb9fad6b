"""A record as one line of JSON."""

import json
import math
from typing import Any


def to_line(row: dict[str, Any]) -> str:
    """JSON on one line, readable as UTF-8. NaN, which is not JSON, can only come from an input's
    own columns: it becomes null.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def line_of(row: dict[str, Any]) -> bytes:
    """The line that is written. A lone surrogate (of a file name that is not UTF-8) cannot be
    encoded: it becomes an escape.
    """
    return (to_line(row) + "\n").encode("utf-8", "backslashreplace")


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A copy with null for every float that is no number, however deep it stands; without
    recursion.
    """
    copy = dict(row)
    left: list[dict | list] = [copy]
    while left:
        holder = left.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, float) and not math.isfinite(value):
                holder[key] = None
            elif isinstance(value, (dict, list)):
                holder[key] = value.copy()
                left.append(holder[key])
    return copy
