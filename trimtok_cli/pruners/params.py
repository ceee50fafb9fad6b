"""A method's parameters: a field declares its values, and building the pruner checks them.

The field's type says what a value is; `param` adds bounds, choices and the words for an error.
Knows no method.
"""

import dataclasses
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from trimtok_cli.wording import quoted

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

PLURALS = {int: "whole numbers", float: "numbers"}

# A number from here on is a mistake, and may not fit where it is used.
MOST = 2**63


def _any_order(before: Any, after: Any) -> bool:
    return True


# Each item of a list against the next: `rising` is strict, `falling` allows equals.
_ORDERS = {"": _any_order, "rising": operator.lt, "falling": operator.ge}

_UNFIT = object()


@dataclass(frozen=True)
class Limits:
    """Bounds of a value: least <= value <= most, above < value < below; all items of a list obey.

    says: the words behind the parameter's name in an error. allowed: a further condition. order:
    `rising` lists grow at every item, `falling` lists never grow.
    """

    says: str = ""
    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    allowed: Callable[[Any], bool] | None = None
    order: str = ""

    def fit(self, value: Any) -> bool:
        """Whether a value, already of its declared type, is within the limits."""
        if isinstance(value, tuple):
            in_order = all(_ORDERS[self.order](a, b) for a, b in pairwise(value))
            return in_order and all(map(self.fit, value))
        if isinstance(value, str):
            return not self.choices or value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            (self.least is None or self.least <= value)
            and (self.most is None or value <= self.most)
            and (self.above is None or self.above < value)
            and (self.below is None or value < self.below)
            and (self.allowed is None or self.allowed(value))
        )

    def range(self, name: str) -> str:
        """`0 < pool <= 1`, `1 or more`, or nothing."""
        low = high = alone = ""
        if self.above is not None:
            low, alone = f"{self.above:g} <", f"more than {self.above:g}"
        elif self.least is not None:
            low, alone = f"{self.least:g} <=", f"{self.least:g} or more"
        if self.below is not None:
            high = f"< {self.below:g}"
        elif self.most is not None:
            high = f"<= {self.most:g}"
        return " ".join(part for part in (low, name, high) if part) if high else alone


def param(default: Any, says: str = "", **limits: Any) -> Any:
    """A dataclass field with its `Limits`."""
    return dataclasses.field(default=default, metadata={"limits": Limits(says, **limits)})


def check_params(pruner: Any) -> None:
    """Checks every field of a dataclass instance against its type and limits; lists become tuples.

    Raises ValueError with one sentence.
    """
    for field in dataclasses.fields(pruner):
        limits = field.metadata.get("limits", Limits())
        value = checked(field.name, field.type, limits, getattr(pruner, field.name))
        object.__setattr__(pruner, field.name, value)


def checked(name: str, declared: Any, limits: Limits, value: Any) -> Any:
    """The value in its declared type.

    Raises ValueError where the value is of none of the declared types, or beyond the limits.
    """
    for option in _options(declared):
        converted = _converted(option, value)
        if converted is not _UNFIT and limits.fit(converted):
            return converted
    raise ValueError(f"{name} {requirement(name, declared, limits)}, got {quoted(value)}")


def requirement(name: str, declared: Any, limits: Limits) -> str:
    """The values that a parameter takes, in words that follow its name."""
    if limits.choices:
        return f"must be one of {', '.join(limits.choices)}"
    types_named = [_type_name(option) for option in _options(declared) if option is not type(None)]
    words = limits.says or "must be " + " or ".join(types_named)
    return ", ".join(part for part in (words, limits.range(name)) if part)


def _options(declared: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    is_union = isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union
    return typing.get_args(declared) if is_union else (declared,)


def _converted(declared: Any, value: Any) -> Any:
    """The value in the declared type, or _UNFIT.

    Text is no number, a number is no truth value, and NaN and infinity are no numbers.
    """
    if declared is type(None):
        return value if value is None else _UNFIT
    if declared in (bool, str):
        return value if isinstance(value, declared) else _UNFIT
    if declared in (int, float):
        is_number = isinstance(value, int) or (declared is float and isinstance(value, float))
        return value if is_number and not isinstance(value, bool) and abs(value) < MOST else _UNFIT
    if typing.get_origin(declared) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            return _UNFIT
        items = tuple(_converted(typing.get_args(declared)[0], item) for item in value)
        return _UNFIT if any(item is _UNFIT for item in items) else items
    return value  # a type of the method's own, which the method checks


def _type_name(declared: Any) -> str:
    if typing.get_origin(declared) is tuple:
        return f"a list of {PLURALS[typing.get_args(declared)[0]]}"
    return NAMES.get(declared, getattr(declared, "__name__", str(declared)))
