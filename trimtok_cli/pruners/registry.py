"""The pruning methods: a name for each. A method is one file and one line in PRUNERS; `dense` is no
pruner at all.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, ScoringPruner, Stage
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.methods.baselines import Random, Uniform
from trimtok_cli.pruners.methods.cdpruner import CDPruner
from trimtok_cli.pruners.methods.divprune import DivPrune, DivPruneStar
from trimtok_cli.pruners.methods.fastv import FastV
from trimtok_cli.pruners.methods.prumerge import PruMerge
from trimtok_cli.pruners.methods.pyramiddrop import PyramidDrop
from trimtok_cli.pruners.methods.sparsevlm import SparseVLM
from trimtok_cli.pruners.methods.tome import ToMe, ToMeProjected
from trimtok_cli.pruners.methods.trimtokenator import TrimTokenator
from trimtok_cli.pruners.methods.visionzip import VisionZip
from trimtok_cli.pruners.methods.vispruner import VisPruner
from trimtok_cli.pruners.methods.vtw import VTW
from trimtok_cli.tokens import TowerSignals
from trimtok_cli.wording import brief, quoted, suggestion

METHODS: tuple[type[Pruner], ...] = (
    TrimTokenator,
    DivPrune,
    DivPruneStar,
    CDPruner,
    VisionZip,
    VisPruner,
    PruMerge,
    ToMe,
    ToMeProjected,
    FastV,
    SparseVLM,
    PyramidDrop,
    VTW,
    Random,
    Uniform,
)
PRUNERS: dict[str, type[Pruner] | None] = {"dense": None, **{kind.name: kind for kind in METHODS}}

OPTIONS = {"keep": "--keep", "budget": "--budget", "counts": "--budget-counts", "seed": "--seed"}

"""Settings of a whole run that reach the methods as parameters of theirs, and have options of their
own.
"""

# Settings of a whole run, which are checked for every method, by their names in RunConfig.
SHARED = {"budget": "budget", "counts": "budget_counts", "seed": "seed"}

__all__ = [
    "PRUNERS",
    "Budget",
    "Pruner",
    "ScoringPruner",
    "Stage",
    "build_pruner",
    "check_idle",
    "check_signals",
    "own_params",
    "parse_budget",
    "reads_tower",
]


def build_pruner(name: str, params: Mapping[str, Any]) -> Pruner | None:
    """The pruner of a name with its parameters (`keep` in any of the budget's forms); None for
    `dense` and for keep all.

    Where other parameters decide instead of keep (`keep_decides`), keep all is a pruner as well.

    Raises UsageError for an unknown name or parameter and for a value that the method refuses.
    """
    if name not in PRUNERS:
        raise UsageError(
            f"--method {brief(name)} is not known: choose from "
            f"{', '.join(PRUNERS)}{suggestion(name, PRUNERS)}."
        )
    kind = PRUNERS[name]
    _check_names(params)
    try:
        keep = parse_budget(params.get("keep", "all"))
    except ValueError as error:
        raise UsageError(f"--keep: {error}.") from None
    own = {f.name for f in dataclasses.fields(kind)} if kind else set()
    unused = (SHARED.keys() - own) & params.keys()  # not every method has a use for all of them
    check_settings(RunConfig, **{SHARED[key]: params[key] for key in unused})
    if kind is None:
        return None
    known = [f.name for f in dataclasses.fields(kind) if f.name not in ("keep", "budget")]
    given = {key: value for key, value in params.items() if key not in {"keep", *unused}}
    for key in given.keys() - {"budget"}:
        if key not in known:
            raise UsageError(
                f"{name} has no parameter {brief(key)!r}: it takes "
                f"{_list(known)}{suggestion(key, known)}."
            )
    try:
        pruner = kind(keep=keep, **given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--param of {name}: {error}.") from None
    return None if keep == Budget() and pruner.keep_decides else pruner


def check_idle(name: str, flags: Mapping[str, Any]) -> None:
    """UsageError where a method prunes nothing, and flags of the command line, by their names, say
    how to prune.
    """
    idle = (
        [flag for flag, value in flags.items() if value != "all"]
        if PRUNERS.get(name, Pruner) is None
        else []
    )
    if idle:
        raise UsageError(
            f"{' and '.join(idle)} would change nothing: --method {name} prunes nothing; "
            "leave one of them out."
        )


def own_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of several methods those of this one: `METHOD.NAME` is for that method
    alone, `NAME` for all.

    Raises UsageError for a method that is not known, and for a name under which an option of the
    run would be overruled.
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
    """UsageError where a vision tower does not offer what the pruner cannot do without."""
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
    """Whether any of them asks something of the vision tower besides the tokens."""
    return any(pruner is not None and pruner.reads_tower for pruner in pruners)


def _list(known: Iterable[str]) -> str:
    return ", ".join(name for name in known if name not in OPTIONS) or "none"
