"""Facts of a setting, said once at its field: its words for `--help`, and the values it takes.

A value is checked alike from a command line, a file, the environment and Python. Knows no setting.
"""

import dataclasses
import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion

_WORDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "text",
}


@dataclass(frozen=True)
class Facts:
    """The facts of one setting. A field without `help` is no option.

    panel: the part of `--help` that lists the option. flags: the option's spellings, if they are
    not its name alone. shown: the default as `--help` words it. name: the setting's name, if the
    field has another. A number is at least `least`, at most `most`, and greater than `above`. A
    text may be `empty`, or a `path`.
    """

    help: str = ""
    panel: str | None = None
    flags: tuple[str, ...] = ()
    shown: str = ""
    name: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    empty: bool = False
    path: bool = False


_NOTHING_SAID = Facts(empty=True)


def described(help: str, **facts: Any) -> dict[str, Facts]:
    """The `Facts` of a dataclass field that is made by hand."""
    return {"facts": Facts(help, **facts)}


def setting(default: Any, help: str = "", **facts: Any) -> Any:
    """A dataclass field and its `Facts`."""
    return dataclasses.field(default=default, metadata=described(help, **facts))


def like(owner: type, name: str, **changes: Any) -> Any:
    """A field with the default and facts of a field of `owner`, except for `changes`."""
    field = field_of(owner, name)
    default = changes.pop("default", field.default)
    facts = dataclasses.replace(facts_of(field), **changes)
    return dataclasses.field(default=default, metadata={"facts": facts})


def facts_of(field: dataclasses.Field) -> Facts:
    return field.metadata.get("facts", _NOTHING_SAID)


def field_of(record: type, name: str) -> dataclasses.Field:
    return next(field for field in dataclasses.fields(record) if field.name == name)


def flag(field: dataclasses.Field) -> str:
    """A setting as an option: `--top-p`."""
    facts = facts_of(field)
    own = "--" + (facts.name or field.name).replace("_", "-")
    return facts.flags[0].split("/")[0] if facts.flags else own


def check_record(record: Any) -> None:
    """Raises UsageError if a field with facts holds a value that it may not."""
    for field in dataclasses.fields(record):
        if "facts" in field.metadata:
            check(field.type, facts_of(field), getattr(record, field.name), flag(field))


def check_settings(record: type, **values: Any) -> None:
    """Raises UsageError if a field of `record` may not hold the value given under its name."""
    for name, value in values.items():
        field = field_of(record, name)
        check(field.type, facts_of(field), value, flag(field))


def check(kind: Any, facts: Facts, value: Any, where: str) -> None:
    """Raises UsageError if a value is not of the type `kind`, or is beyond what `facts` allow.

    `where` begins the sentence.
    """
    kinds = kinds_of(kind)
    if dict in kinds:
        return _check_names(value, where)
    if value is None and type(None) in get_args(kind):
        return None
    if isinstance(value, str) and str in kinds:
        if len(kinds) > 1 and value == "auto":
            return None
        if len(kinds) == 1:
            return _check_text(facts, value, where)
    auto = "auto or " if len(kinds) > 1 and str in kinds else ""
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or isinstance(value, str) or isinstance(value, bool) != (bool in kinds):
        said = next(word for each, word in _WORDS.items() if each in kinds)
        raise UsageError(f"{where} must be {auto}{said}, got {brief(value)}.")
    check_number(facts, value, f"{where} must be {auto}".rstrip())


def check_number(facts: Facts, value: float, where: str) -> None:
    """Raises UsageError if a number is not finite or not within its bounds.

    `where` begins the sentence, up to `must be`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} a finite number, got {value}.")
    if facts.least is not None and value < facts.least:
        raise UsageError(f"{where} at least {facts.least:,}, got {brief(value)}.")
    if facts.above is not None and value <= facts.above:
        raise UsageError(f"{where} more than {facts.above:,}, got {brief(value)}.")
    if facts.most is not None and value > facts.most:
        raise UsageError(f"{where} at most {facts.most:,}, got {brief(value)}.")


def _check_text(facts: Facts, value: str, where: str) -> None:
    if "\0" in value:
        raise UsageError(f"{where} must not hold a NUL character.")
    if not facts.path and value.encode("utf-8", "replace") != value.encode(
        "utf-8", "surrogatepass"
    ):
        raise UsageError(
            f"{where} holds bytes that are no UTF-8, or half a character; write it as UTF-8 text."
        )
    if not value.strip() and not facts.empty:
        raise UsageError(f"{where} must not be empty.")
    if facts.choices and value not in facts.choices:
        near = suggestion(value, facts.choices)
        raise UsageError(
            f"{where} must be one of {', '.join(facts.choices)}, got {brief(value)!r}{near}."
        )
    if facts.path and value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise UsageError(
                f"{where} {brief(value)}: there is no such user; write the path in full."
            ) from None


def _check_names(value: Any, where: str) -> None:
    """Raises UsageError unless `value` maps names to plain values; their reader checks the rest."""
    odd = (
        [key for key in value if not (isinstance(key, str) and key)]
        if isinstance(value, dict)
        else []
    )
    if odd or not isinstance(value, dict):
        got = f"the name {brief(odd[0])!r}, which is no text" if odd else brief(value)
        raise UsageError(
            f"{where} must hold names and values, for example {{pool: 0.9}}, got {got}."
        )
    waiting = [(f"{where}: {brief(key)}", each) for key, each in value.items()]
    while waiting:
        name, each = waiting.pop()
        if isinstance(each, (list, tuple)):
            waiting += [(name, item) for item in each]
        elif isinstance(each, dict):
            _check_names(each, name)
        elif isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"{name} must be a finite number, got {each}.")
        elif isinstance(each, int) and abs(each) >= 2**63:
            raise UsageError(f"{name} is too large a number, got {brief(each)}.")
        elif not isinstance(each, (str, int, float, type(None))):
            raise UsageError(
                f"{name} must be a number, text or true or false, got {brief(each)}; put it "
                "in quotes to mean text."
            )


def kinds_of(kind: Any) -> tuple[type, ...]:
    """The types that a field's value may have, without None.

    `int | str` gives (int, str), `float | None` gives (float,), `dict[str, Any]` gives (dict,).
    """
    options = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return tuple(get_origin(each) or each for each in options if each is not type(None))
