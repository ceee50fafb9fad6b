"""Every parameter of every method: what it takes is taken, anything else is one sentence that names
it, before any model is loaded.
"""

import dataclasses
import datetime
import importlib
import math
from pathlib import Path

import pytest

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners import methods
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.registry import OPTIONS, PRUNERS, build_pruner, own_params

# For each method and parameter: values that it takes, and values that only its bounds and choices
# rule out.
SHARE = ([0.2, 0.999, 1e-9], [])
LAYER = ([None, 1, 15], [0, -1, 1.5, [1]])
COUNTS = (["final", "layer-mean"], ["exact", "Final", 1])
TEXT = (["instruction", "prompt"], ["clip", 1])
ALIGN = (["l2", "sq_l2", "cosine"], ["L2", "dot", 2])
POOL = ([0.8, 1, 1.0, 1e-9], [0, 0.0, 1.1, 2, [0.8]])
LISTS = [0, [0, 1], [2, 1], [1, 1], [1.5], [1, "2"], [True, 2], [[1], [2]], 3]
TAKES = {
    "trimtokenator": {
        "pool": POOL,
        "align": ALIGN,
        "diversity": (["cosine", "l2"], ["dot"]),
        "text": TEXT,
        "order": (["align-first", "diversity-first", "align-only", "diversity-only"], ["both", 0]),
    },
    "divprune": {},
    "divprune-star": {"pool": POOL, "align": ALIGN, "text": TEXT},
    "cdpruner": {
        "text": (["clip", "llm"], ["prompt"]),
        "sign": (["auto", "negative", "positive"], ["up", 1]),
        "tiles": ([True, False], [0, 1, "no"]),
    },
    "visionzip": {
        "contextual": ([0.15625, 0, 0.0, 10, 1], [1.0, 1.5, -0.1, [10]]),
        "cls": ([True, False], [0, 1, "yes"]),
        "append": ([True, False], [0, 1, "yes"]),
    },
    "vispruner": {
        "important": ([None, 0, 1, 0.75], [1.1, -0.1, 2]),
        "similarity": (["features", "embeds"], ["keys"]),
    },
    "prumerge": {"plus": ([True, False], [0, 1, "no"]), "adaptive": ([True, False], [0, 1, "no"])},
    "tome": {
        "proportional": ([True, False], [0, 1, "no"]),
        "r": ([None, 0, 16, [16, 16, 8]], [-1, 1.5, [1.5], [-1], ["a"], [True]]),
        "inflect": ([0, 0.0], [2, -1.5, 0.5]),  # 0.5 needs an r
    },
    "tome-projected": {},
    "fastv": {"layer": LAYER, "counts": COUNTS},
    "sparsevlm": {
        "counts": COUNTS,
        "layers": ([None, [3, 7, 16], (1, 2, 3)], [*LISTS, [1, 2], [1, 2, 3, 4]]),
    },
    "pyramiddrop": {
        "counts": COUNTS,
        "layers": ([None, [8, 16, 24], [3]], LISTS),
        "ratios": (
            [None, [0.5, 0.25, 0.125], [1, 0.5, 0.5]],
            [0.5, [0.5], [0.5, 0.6, 0.1], [0.5, 0.2, 0], [2, 1, 0.5]],
        ),
    },
    "vtw": {"layer": LAYER, "counts": COUNTS},
    "random": {"seed": ([0, 7, 2**63 - 1], [1.5, -1])},
    "uniform": {},
}
NEVER = [
    math.nan,
    math.inf,
    -math.inf,
    {},
    {"a": 1},
    [],
    [None],
    [math.nan],
    [[]],
    b"0.5",
    "abc",
    "0.5",
    "",
    10**5000,
    1e300,
    datetime.date(2026, 1, 1),
    object(),
    "x" * 10_000,
    "a\nb\x1b[31m",
]
EVERY = [(method, name) for method, takes in TAKES.items() for name in takes]


def names(method) -> set[str]:
    kind = PRUNERS[method]
    return {field.name for field in dataclasses.fields(kind)} - {"keep", "budget"}


def test_the_table_holds_every_parameter_of_every_method():
    assert {method: set(takes) for method, takes in TAKES.items()} == {
        m: names(m) for m in PRUNERS if PRUNERS[m]
    }


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_what_a_parameter_takes_is_taken(method, name):
    values = TAKES[method][name][0]
    assert values
    for value in values:
        built = build_pruner(method, {"keep": 8, name: value})
        assert getattr(built, name) == (tuple(value) if isinstance(value, list) else value)
        assert hash(built) == hash(build_pruner(method, {"keep": 8, name: value}))


@pytest.mark.parametrize(("method", "name"), EVERY)
def test_what_it_does_not_take_is_one_sentence_that_names_it(method, name):
    needed = [] if None in TAKES[method][name][0] else [None]
    for value in [*TAKES[method][name][1], *NEVER, *needed]:
        with pytest.raises(UsageError) as caught:
            build_pruner(method, {"keep": 8, name: value})
        said = str(caught.value)
        assert f"--param of {method}: " in said and name in said.split(": ", 1)[1]
        assert "got" in said or "give r" in said
        assert "\n" not in said and "\x1b" not in said and len(said) < 300 and said.endswith(".")


def test_every_method_of_the_folder_has_its_place_in_the_list():
    folder = Path(methods.__file__).parent
    written = set()
    for path in folder.glob("[!_]*.py"):
        module = importlib.import_module(f"{methods.__name__}.{path.stem}")
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        written |= {
            one for one in classes if issubclass(one, Pruner) and one.__module__ == module.__name__
        }
    assert written == set(methods.METHODS)
    assert list(PRUNERS) == ["dense", *(method.name for method in methods.METHODS)]


@pytest.mark.parametrize("method", [method for method, kind in PRUNERS.items() if kind])
def test_budget_is_one_of_three_for_every_method(method):
    for value in (*NEVER, None, "fair", 1, True):
        with pytest.raises(UsageError, match="budget must be one of equal, tokens, diversity"):
            build_pruner(method, {"keep": 8, "budget": value})


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize(
    ("name", "value"), [("budget", "fair"), ("counts", "fair"), ("seed", -1), ("seed", "x")]
)
def test_a_setting_of_the_run_is_checked_where_the_method_has_no_use_for_it_too(
    method, name, value
):
    with pytest.raises(UsageError, match=name):
        build_pruner(method, {"keep": 8, name: value})


@pytest.mark.parametrize("bad", [1, None, True, 2.5, (1, 2)])
def test_a_name_that_is_no_text(bad):
    for attempt in (
        lambda: build_pruner("fastv", {"keep": 8, bad: 2}),
        lambda: own_params("fastv", {bad: 2}),
    ):
        with pytest.raises(UsageError, match="name of a parameter is text"):
            attempt()


def test_a_name_that_the_method_does_not_know_lists_what_it_takes():
    with pytest.raises(
        UsageError, match=r"no parameter 'poool': it takes pool, .*did you mean pool"
    ):
        build_pruner("trimtokenator", {"keep": 8, "poool": 0.5})
    with pytest.raises(UsageError, match="it takes none"):
        build_pruner("divprune", {"keep": 8, "pool": 0.5})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_parameter_does_not_overrule_an_option_of_the_run(name):
    for key in (name, f"fastv.{name}", f"vtw.{name}"):
        with pytest.raises(
            UsageError, match=rf"--param {key} would overrule --[a-z-]+: use {OPTIONS[name]}\."
        ):
            own_params("fastv", {key: 3})


def test_parameters_for_one_method_are_not_lost_in_a_slip():
    assert own_params("fastv", {"layer": 2, "vtw.layer": 3, "fastv.layer": 4}) == {"layer": 4}
    with pytest.raises(UsageError, match=r"'fastvv' is not a method \(did you mean fastv"):
        own_params("fastv", {"fastvv.layer": 3})


def test_a_method_of_ones_own_is_checked_by_its_types():
    @dataclasses.dataclass(frozen=True)
    class Own(Pruner):
        amount: float = 0.5
        steps: tuple[int, ...] = (1, 2)
        name: str = param("a", choices=("a", "b"))
        anything: object = None

    assert Own(steps=[3], anything=len).steps == (3,)
    for wrong, says in (
        ({"amount": "1"}, "amount must be a number, got '1'"),
        ({"steps": [1, "2"]}, r"steps must be a list of whole numbers, got \[1, '2'\]"),
        ({"name": "c"}, "name must be one of a, b, got 'c'"),
    ):
        with pytest.raises(ValueError, match=says):
            Own(**wrong)
