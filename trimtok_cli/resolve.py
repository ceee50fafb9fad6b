"""Settings from their sources: defaults < YAML (--config) < environment (TRIMTOK_*) < flags.

Plain values are converted to the types of a record's fields, for a run or a benchmark. An unknown
key is an error. Knows no setting but greedy and temperature, which contradict each other.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args, get_origin

from trimtok_cli.bounds import Facts, check, facts_of, flag, kinds_of
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion
from trimtok_cli.yaml_text import load, read_yaml

PREFIX = "TRIMTOK_"  # begins the name of an environment variable

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

# Settings of NAME=VALUE pairs, with an example of each.
_REPEATED = {"params": "--param pool=0.9", "vllm_args": "--vllm-args tensor_parallel_size=2"}

Given = Iterable[tuple[str, Any, str]]
"""The settings of one source: field name, value, and how a sentence about the value begins."""


def resolve(
    flags: Mapping[str, Any],
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
    record: type[RunConfig] = RunConfig,
) -> RunConfig:
    """Lays the sources over each other; a flag that is None was not given. Raises UsageError."""
    fields = fields_of(record)
    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    layers: dict[str, Given] = {
        "config file": _of_file(fields, file),
        "environment": _of_environment(fields, environ),
        "flag": [
            (key, value, flag(fields[key])) for key, value in flags.items() if value is not None
        ],
    }
    for source, layer in layers.items():
        for key, value, where in layer:
            value = convert(fields[key].type, facts_of(fields[key]), value, where)
            if source == "flag" and isinstance(value, dict):
                value = given.get(key, {}) | value
            given[key], sources[key] = value, source
    _settle(given, sources)
    config = record(**given)
    config.sources.update(
        {key: source for key, source in sources.items() if given[key] is not None}
    )
    return config


def _of_file(fields: Mapping[str, dataclasses.Field], name: str | None) -> Iterator:
    if name is None:
        return
    as_text = [key for key, field in fields.items() if dict not in kinds_of(field.type)]
    path, values = read_yaml(name, as_text=as_text)
    for key, value in values.items():
        yield key, value, f"{path}: {key} ({flag(_known(fields, key, path))})"


def _of_environment(
    fields: Mapping[str, dataclasses.Field], environ: Mapping[str, str]
) -> Iterator:
    for variable, value in environ.items():
        if variable.startswith(PREFIX) and value:
            key = variable.removeprefix(PREFIX).lower()
            if key not in fields:
                known = [PREFIX + name.upper() for name in fields]
                raise UsageError(
                    f"environment variable {brief(variable)} is no "
                    f"setting{suggestion(variable, known)}; settings are "
                    f"{PREFIX} and one of {', '.join(fields).upper()}."
                )
            yield key, value, f"environment variable {variable}"


def _settle(given: dict[str, Any], sources: dict[str, str]) -> None:
    """Drops greedy or a temperature, which contradict each other: the nearer source holds.

    Both stay if they come from one source.
    """
    if given.get("greedy") and given.get("temperature"):
        order = ["config file", "environment", "flag"]
        far, near = sorted(("greedy", "temperature"), key=lambda name: order.index(sources[name]))
        if sources[far] != sources[near]:
            del given[far], sources[far]


def build(record: type, values: Any, where: str, flags: Mapping[str, Any] | None = None) -> Any:
    """A record from plain values, keyed by field name.

    Flags that are not None replace values. Raises UsageError if a name is no field or a value does
    not fit; `where` begins the sentence, or the flag does.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must hold `key: value` lines, got {brief(values)}.")
    fields, given = fields_of(record), {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        field = _known(fields, name, where)
        given[name] = convert(field.type, facts_of(field), value, f"{where}: {name}")
    for name, value in (flags or {}).items():
        if value is not None:
            field = fields[name]
            given[name] = convert(field.type, facts_of(field), value, flag(field))
    return record(**given)


def fields_of(record: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(record) if field.init}


def _known(fields: Mapping[str, dataclasses.Field], key: str, where: str) -> dataclasses.Field:
    if key not in fields:
        near = suggestion(key, fields)
        raise UsageError(
            f"{where}: unknown key {brief(key)!r}{near}; known keys are {', '.join(fields)}."
        )
    return fields[key]


def convert(kind: Any, facts: Facts, value: Any, where: str) -> Any:
    """The value in the type `kind`, checked against its bounds.

    A text is read as a number if `kind` is one. A single value becomes a list of one if `kind` is
    a list.
    """
    if get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(convert(get_args(kind)[0], facts, item, where) for item in items)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    kinds = kinds_of(kind)
    if isinstance(value, str):
        value = _read(kinds, value, where)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if kinds == (str,) and abs(value) < 2**63:
            value = str(value)
        elif int in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
    check(kind, facts, value, where)
    return float(value) if float in kinds and isinstance(value, int) else value


def _read(kinds: tuple[type, ...], value: str, where: str) -> Any:
    """The text as a value of one of `kinds`, or the text itself, which the check then refuses."""
    text = value.strip()
    if dict in kinds:
        return load(value, where)
    if bool in kinds:
        return {**dict.fromkeys(YES, True), **dict.fromkeys(NO, False)}.get(text.lower(), value)
    if kinds == (str,):
        return value
    if str in kinds and text == "auto":
        return text
    return _number(int if int in kinds else float, text, value)


def _number(kind: type, text: str, value: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return value
    return int(number) if number.is_integer() else value


def parse_params(pairs: list[str] | None, name: str = "params") -> dict[str, Any] | None:
    """`["pool=0.9", "align=cosine"]` -> a dict, values read as YAML. name: of the setting."""
    example = _REPEATED.get(name, _REPEATED["params"])
    option = example.partition(" ")[0]
    if not pairs:
        return None
    params = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"{option} {brief(pair)}: write it as NAME=VALUE, for example {example}."
            )
        params[key.strip()] = load(value, f"{option} {brief(pair)}")
    return params
