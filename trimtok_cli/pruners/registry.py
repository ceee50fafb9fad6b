"""Methods by name: how a name and its parameters become a pruner; `dense` is no pruner at all.

methods/__init__.py lists the methods. Knows no model.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.methods import METHODS
from trimtok_cli.tokens import TowerSignals
from trimtok_cli.wording import brief, quoted, suggestion

PRUNERS: dict[str, type[Pruner] | None] = {
    "dense": None,
    **{method.name: method for method in METHODS},
}

# Settings of a whole run that reach the methods as parameters and have options of their own.
OPTIONS = {"keep": "--keep", "budget": "--budget", "counts": "--budget-counts", "seed": "--seed"}

# Those of them that are checked even where a method has no use for them, by RunConfig's names.
SHARED = {"budget": "budget", "counts": "budget_counts", "seed": "seed"}


def build_pruner(name: str, params: Mapping[str, Any]) -> Pruner | None:
    """The pruner of a name with its parameters; None for `dense` and for keep all.

    `keep` has any of the budget's forms. Where other parameters decide in place of keep
    (`keep_decides`), keep all gives a pruner as well. Raises UsageError for an unknown name or
    parameter and for a value that the method refuses.
    """
    if name not in PRUNERS:
        raise UsageError(
            f"--method {brief(name)} is not known{suggestion(name, PRUNERS)}: choose from "
            f"{', '.join(PRUNERS)}."
        )
    method = PRUNERS[name]
    _check_names(params)
    try:
        keep = parse_budget(params.get("keep", "all"))
    except ValueError as error:
        raise UsageError(f"--{error}.") from None  # "keep must be ..."
    own = {field.name for field in dataclasses.fields(method)} if method else set()
    # Not every method has a use for all settings of a run.
    unused = (SHARED.keys() - own) & params.keys()
    check_settings(RunConfig, **{SHARED[key]: params[key] for key in unused})
    if method is None:
        return None
    known = [
        field.name for field in dataclasses.fields(method) if field.name not in ("keep", "budget")
    ]
    given = {key: value for key, value in params.items() if key not in {"keep", *unused}}
    for key in given.keys() - {"budget"}:
        if key not in known:
            raise UsageError(
                f"{name} has no parameter {brief(key)!r}: it takes "
                f"{_own_names(known)}{suggestion(key, known)}."
            )
    try:
        pruner = method(keep=keep, **given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--param of {name}: {error}.") from None
    return None if keep == Budget() and pruner.keep_decides else pruner


def check_idle(name: str, flags: Mapping[str, Any]) -> None:
    """Raises UsageError where a method prunes nothing and flags say how to prune.

    flags: values by the names of the command line's options.
    """
    if PRUNERS.get(name, Pruner) is not None:
        return
    idle = [flag for flag, value in flags.items() if value != "all"]
    if idle:
        raise UsageError(
            f"{' and '.join(idle)} would change nothing: --method {name} prunes nothing; "
            "leave one of them out."
        )


def own_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of one method, out of those of several.

    `METHOD.NAME` is for that method alone, `NAME` for all. Raises UsageError for an unknown method,
    and for a name that would overrule an option of the run.
    """
    _check_names(params)
    for key in params:
        method, _, param = key.rpartition(".")
        if method and method not in PRUNERS:
            raise UsageError(
                f"--param {key}: {quoted(method)} is not a method{suggestion(method, PRUNERS)}."
            )
        if param in OPTIONS:
            raise UsageError(
                f"--param {key} would overrule {OPTIONS[param]}: use {OPTIONS[param]}."
            )
    own = {
        key.removeprefix(f"{name}."): value
        for key, value in params.items()
        if key.startswith(f"{name}.")
    }
    return {key: value for key, value in params.items() if "." not in key} | own


def check_signals(pruner: Pruner, signals: TowerSignals) -> None:
    """Raises UsageError where a vision tower does not offer a signal that the pruner needs."""
    missing = [name for name in pruner.signals if not signals.offers(name)]
    if missing:
        raise UsageError(
            f"{pruner.name} cannot run on this model: it needs {' and '.join(missing)} of the "
            "vision tower, which this one does not "
            f"offer; {pruner.instead}."
        )


def _check_names(params: Mapping[str, Any]) -> None:
    for key in params:
        if not isinstance(key, str):
            raise UsageError(
                f"--param: the name of a parameter is text, for example pool, got {quoted(key)}."
            )


def reads_tower(*pruners: Pruner | None) -> bool:
    """Whether any of these pruners reads a tower signal."""
    return any(pruner is not None and pruner.reads_tower for pruner in pruners)


def _own_names(known: Iterable[str]) -> str:
    return ", ".join(name for name in known if name not in OPTIONS) or "none"
