"""Settings that differ in anything have different names, wherever a setting is named."""

from dataclasses import dataclass, fields, replace
from itertools import combinations

import pytest

from trimtok_cli.data import Setting
from trimtok_cli.pruners.base import Pruner, ScoringPruner
from trimtok_cli.pruners.budget import Budget, parse_budget
from trimtok_cli.pruners.registry import METHODS, PRUNERS, build_pruner


def variants(kind: type[Pruner]) -> list[Pruner]:
    """The method with its defaults, then with each parameter changed alone."""
    usual = kind(keep=Budget(tokens=8))
    made = [usual, *(replace(usual, keep=Budget(share=share)) for share in (0.1, 0.1000001, 0.5))]
    for field in fields(kind):
        choices = getattr(field.metadata.get("limits"), "choices", ())
        for value in (*choices, 0, 1, 2, 3, 15, 0.25, 0.75, [1, 2, 3], [2, 4, 8]):
            try:
                made.append(replace(usual, **{field.name: value}))
            except (ValueError, TypeError):
                continue
    return made


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_a_label_names_whatever_differs(kind):
    made = variants(kind)
    changed = {each.setting.name for each in made}
    assert len(changed) > 4 and all(name.startswith(f"{kind.name}@") for name in changed)
    differing = 0
    for one, other in combinations(made, 2):
        assert (one.setting.name == other.setting.name) == (one == other), (one, other)
        assert (one.setting == other.setting) == (one == other)
        differing += one != other
    assert differing > 10


def test_the_registry_calls_each_method_by_its_own_name():
    assert list(PRUNERS) == ["dense", *(kind.name for kind in METHODS)]
    assert len({kind.name for kind in METHODS}) == len(METHODS)


def test_what_is_a_default_is_not_named():
    assert Setting().name == "dense"
    assert build_pruner("trimtokenator", {"keep": 64}).setting.name == "trimtokenator@64"
    asked = {"keep": "11%", "pool": 0.9, "text": "prompt", "budget": "tokens"}
    said = build_pruner("trimtokenator", asked).setting
    assert said.name == "trimtokenator@11% budget=tokens pool=0.9 text=prompt"
    assert said.as_dict()["params"] == {"pool": 0.9, "text": "prompt"}
    assert build_pruner("random", {"keep": 4, "seed": 7}).setting.name == "random@4 seed=7"


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.111, 0.123456789, 1e-9, 0.999999999])
def test_a_budget_is_written_so_that_it_is_read_as_the_same(share):
    assert parse_budget(str(Budget(share=share))) == Budget(share=share)


def test_a_method_that_nobody_registered_has_a_name():
    @dataclass(frozen=True)
    class Longest(ScoringPruner):
        """Keeps the longest tokens."""

    assert Longest(Budget(tokens=3)).setting == Setting("longest", "3")
