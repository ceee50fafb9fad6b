"""The pruning methods: a name for each. A method is one file and one line in PRUNERS; `dense` is no pruner at all."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_args

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, ScoringPruner, Stage
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.cdpruner import CDPruner
from trimtok_cli.pruners.divprune import DivPrune, DivPruneStar
from trimtok_cli.pruners.fastv import FastV
from trimtok_cli.pruners.floors import Random, Uniform
from trimtok_cli.pruners.prumerge import PruMerge
from trimtok_cli.pruners.pyramiddrop import PyramidDrop
from trimtok_cli.pruners.sparsevlm import SparseVLM
from trimtok_cli.pruners.tome import ToMe, ToMeProjected
from trimtok_cli.pruners.trimtokenator import TrimTokenator
from trimtok_cli.pruners.visionzip import VisionZip
from trimtok_cli.pruners.vispruner import VisPruner
from trimtok_cli.pruners.vtw import VTW
from trimtok_cli.yaml_text import brief

PRUNERS: dict[str, type[Pruner] | None] = {
    "dense": None,
    "trimtokenator": TrimTokenator,
    "divprune": DivPrune,
    "divprune-star": DivPruneStar,
    "cdpruner": CDPruner,
    "visionzip": VisionZip,
    "vispruner": VisPruner,
    "prumerge": PruMerge,
    "tome": ToMe,
    "tome-projected": ToMeProjected,
    "fastv": FastV,
    "sparsevlm": SparseVLM,
    "pyramiddrop": PyramidDrop,
    "vtw": VTW,
    "random": Random,
    "uniform": Uniform,
}

__all__ = ["PRUNERS", "Budget", "Pruner", "ScoringPruner", "Stage", "build_pruner", "own_params", "parse_budget", "reads_tower"]


def build_pruner(name: str, params: Mapping[str, Any]) -> Pruner | None:
    """The pruner of a name with its parameters (`keep` in any of the budget's forms); None for `dense` and for keep all.

    Raises UsageError for an unknown name or parameter and for a value that the method refuses.
    """
    if name not in PRUNERS:
        raise UsageError(f"--method {brief(name)} is not known: choose from {', '.join(PRUNERS)}{_suggest(name, PRUNERS)}.")
    kind = PRUNERS[name]
    try:
        keep = parse_budget(params.get("keep", "all"))
    except ValueError as error:
        raise UsageError(f"--keep: {error}.") from None
    if kind is None or keep == Budget():
        return None
    known = [f.name for f in dataclasses.fields(kind) if f.name not in ("keep", "budget")]
    unused = {"keep", *({"seed", "counts"} - set(known))}  # settings of a whole run, which not every method has a use for
    given = {key: value for key, value in params.items() if key not in unused}
    for key in given.keys() - {"budget"}:
        if key not in known:
            takes = ", ".join(known) or "none"
            raise UsageError(f"{name} has no parameter {brief(key)!r}: it takes {takes}{_suggest(key, known)}.")
    for each in dataclasses.fields(kind):
        if each.name in known and each.name in given:
            _check_type(each, given[each.name], name)
    try:
        return kind(keep=keep, **given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--param of {name}: {error}.") from None


def own_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters of several methods those of this one: `METHOD.NAME` is for that method alone, `NAME` for all."""
    own = {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}
    return {key: value for key, value in params.items() if "." not in key} | own


def reads_tower(*pruners: Pruner | None) -> bool:
    """Whether any of them asks something of the vision tower besides the tokens."""
    return any(pruner is not None and pruner.reads_tower for pruner in pruners)


def _check_type(wanted: dataclasses.Field, value: Any, method: str) -> None:
    """UsageError for a text where a number is wanted, and the like; what the number may be the method itself says."""
    kinds = get_args(wanted.type) or (wanted.type,)
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        said = " or ".join(words[kind] for kind in kinds if kind in words)
        raise UsageError(f"--param {wanted.name} of {method} must be {said}, got {brief(value)}.")


def _suggest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
