"""Parts of messages: foreign text made safe for a screen, values and names cut to a length, and
suggestions for a misspelt name.

Knows no file, no setting and no terminal.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

# Control characters, ESC and its 8-bit forms among them, and those that turn the direction of a
# line.
_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)

# Items of a list that are shown.
_LISTED = 8


def shown(text: str) -> str:
    """Foreign text for a terminal: on one line, with control characters written out (`\\x1b`)."""
    return _CONTROLS.sub(lambda control: ascii(control[0])[1:-1], text)


def shortened(text: str, most: int = 200) -> str:
    """The text; one of more than `most` characters as its beginning, its end and its length.

    The end of a path is the name of the file.
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[-(most // 4) :]} ({len(text):,} characters)"


def shown_name(name: str) -> str:
    """The name of an image as it is shown and written.

    It is whole, unless it can be no file's name, such as base64 data.
    """
    return shortened(name, 60 if name[:5].lower() == "data:" else 4096)


def brief(value: Any, most: int = 60) -> str:
    """A value as a message shows it, in bounded time.

    Text is `shortened` and `shown`, a list has its first items, and a dict only says what it is.
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
            "a list" if isinstance(item, (list, tuple)) else quoted(item)
            for item in value[:_LISTED]
        ]
        if len(value) > _LISTED:
            items.append("...")
        return f"[{', '.join(items)}]"
    return "names and values" if isinstance(value, dict) else f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """`brief`, with text in quotes: the text '0.9' is not the number 0.9."""
    return repr(brief(value)) if isinstance(value, str) else brief(value)


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` for the end of a sentence on an unknown name; "" if none is near."""
    near = difflib.get_close_matches(word[:60], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
