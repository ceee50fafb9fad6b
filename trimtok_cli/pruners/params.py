"""A method's parameters: what each may be is declared where its field is, and checked when the
pruner is built.

A field's type says what a value is, `param` its bounds and choices and how a sentence names it.
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

MOST = 2**63  # a number from here on is a mistake, and not all that meets it can hold it

SEVERAL = {int: "whole numbers", float: "numbers"}

_ORDERS = {"": lambda a, b: True, "rising": operator.lt, "falling": operator.ge}

_UNFIT = object()


@dataclass(frozen=True)
class Limits:
    """least <= value <= most, or with `above` and `below` strictly so; of lists every item, and
    their order.

    says: what the parameter is, as a sentence about it goes on behind its name.
    """

    says: str = ""
    choices: tuple = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    allowed: Callable[[Any], bool] | None = None  # what else a value must be
    # of a list: rising (each more than the one before) or falling (none more than the one before)
    order: str = ""

    def fit(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(self.fit, value)) and all(
                _ORDERS[self.order](a, b) for a, b in pairwise(value)
            )
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
        low = (
            f"{self.above:g} <"
            if self.above is not None
            else f"{self.least:g} <="
            if self.least is not None
            else ""
        )
        high = (
            f"< {self.below:g}"
            if self.below is not None
            else f"<= {self.most:g}"
            if self.most is not None
            else ""
        )
        if low and not high:
            return (
                f"more than {self.above:g}" if self.above is not None else f"{self.least:g} or more"
            )
        return " ".join(part for part in (low, name, high) if part) if low or high else ""


def param(default: Any, says: str = "", **limits: Any) -> Any:
    """A dataclass field with its `Limits`."""
    return dataclasses.field(default=default, metadata={"limits": Limits(says, **limits)})


def check_params(pruner: Any) -> None:
    """Every field of a dataclass instance against its type and limits; lists become tuples.
    ValueError with one sentence.
    """
    for field in dataclasses.fields(pruner):
        limits = field.metadata.get("limits", Limits())
        object.__setattr__(
            pruner, field.name, checked(field.name, field.type, limits, getattr(pruner, field.name))
        )


def checked(name: str, kind: Any, limits: Limits, value: Any) -> Any:
    """The value in its own type. Raises ValueError where it is of none of `kind`'s types, or beyond
    the limits.
    """
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    for option in typing.get_args(kind) if union else (kind,):
        found = _as(option, value)
        if found is not _UNFIT and limits.fit(found):
            return found
    raise ValueError(f"{name} {takes(name, kind, limits)}, got {quoted(value)}")


def takes(name: str, kind: Any, limits: Limits) -> str:
    """What a parameter takes, as a sentence goes on behind its name."""
    if limits.choices:
        return f"must be one of {', '.join(limits.choices)}"
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    options = [
        option
        for option in (typing.get_args(kind) if union else (kind,))
        if option is not type(None)
    ]
    words = limits.says or "must be " + " or ".join(_name(option) for option in options)
    return ", ".join(part for part in (words, limits.range(name)) if part)


def _as(kind: Any, value: Any) -> Any:
    """The value in the type `kind`, or _UNFIT. No text is read for a number, no number for a truth;
    NaN and infinity are none.
    """
    if kind is type(None):
        return value if value is None else _UNFIT
    if kind in (bool, str):
        return value if isinstance(value, kind) else _UNFIT
    if kind in (int, float):
        number = isinstance(value, int) or (kind is float and isinstance(value, float))
        return value if number and not isinstance(value, bool) and abs(value) < MOST else _UNFIT
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or not value:
            return _UNFIT
        items = tuple(_as(typing.get_args(kind)[0], item) for item in value)
        return _UNFIT if any(item is _UNFIT for item in items) else items
    return value  # a type of a method's own: its own business


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f"a list of {SEVERAL[typing.get_args(kind)[0]]}"
    return NAMES.get(kind, getattr(kind, "__name__", str(kind)))
