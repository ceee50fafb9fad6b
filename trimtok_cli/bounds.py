"""What a setting's value may be, said where its field is, and checked alike from a command line, a
file and Python.

Knows no setting.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    empty: bool = False,
    path: bool = False,
) -> Any:
    """A dataclass field and what its values may be: bounds (`above` is exclusive), choices; a text
    may be empty, or a path.
    """
    bounds = {
        "least": least,
        "above": above,
        "most": most,
        "choices": tuple(choices),
        "empty": empty,
        "path": path,
    }
    return dataclasses.field(default=default, metadata=bounds)


def like(owner: type, name: str) -> Any:
    """A field with the default and the bounds of another dataclass's field."""
    field = {each.name: each for each in dataclasses.fields(owner)}[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


def check_number(bounds: Mapping[str, Any], value: float, where: str) -> None:
    """UsageError where a number is none, or is not within its bounds. `where` begins the sentence,
    up to `must be`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} a finite number, got {value}.")
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    if least is not None and value < least:
        raise UsageError(f"{where} at least {least:,}, got {brief(value)}.")
    if above is not None and value <= above:
        raise UsageError(f"{where} more than {above:,}, got {brief(value)}.")
    if most is not None and value > most:
        raise UsageError(f"{where} at most {most:,}, got {brief(value)}.")


def flag(name: str) -> str:
    """A setting's name as an option: `--top-p`."""
    return "--param" if name == "params" else "--" + name.replace("_", "-")
