"""Words of messages: other people's text on a screen, values and names cut to a length, the name
that was meant.

Knows no file, no setting and no terminal.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

# Control characters (ESC and its 8-bit forms among them), and those that turn the direction of a
# line around.
_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)

_LISTED = 8  # items of a list that are shown


def shown(text: str) -> str:
    """Other people's text for a terminal: on one line, and whatever would steer the terminal is
    written out (`\\x1b`).
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def shortened(text: str, most: int = 200) -> str:
    """The text, or its beginning, its end (of a path, the file's name) and how long it is."""
    return (
        text
        if len(text) <= most
        else f"{text[: most // 2]} ... {text[-(most // 4) :]} ({len(text):,} characters)"
    )


def shown_name(name: str) -> str:
    """An image's name as it is shown and written: whole, but for what can be no file's name, such
    as base64 data.
    """
    return shortened(name, 60) if name[:5].lower() == "data:" else shortened(name, 4096)


def brief(value: Any, most: int = 60) -> str:
    """A value as a message shows it, in bounded time: `shortened`; of a list a few items, of names
    and values just that.
    """
    if isinstance(value, str):
        return shown(shortened(value, most))
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    if value is None:
        return "nothing"
    if isinstance(value, (int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, (list, tuple)):
        items = [
            "a list" if isinstance(each, (list, tuple)) else quoted(each)
            for each in value[:_LISTED]
        ]
        return f"[{', '.join(items)}{', ...' if len(value) > _LISTED else ''}]"
    return "names and values" if isinstance(value, dict) else f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """As `brief`, with text in quotes, where the text 0.9 and the number 0.9 are to be told
    apart.
    """
    return repr(brief(value)) if isinstance(value, str) else brief(value)


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)`, for the end of a sentence about a name that is none; empty where no
    known name is near.
    """
    near = difflib.get_close_matches(word[:60], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
