"""Measured rounds replay recorded decode steps, for dense and pruned alike, and every row says so.

On a device that is not there, so that the recordings are the loop's own.
"""

import io

import pytest
from rich.console import Console

from tests.bench.test_random_weights import described
from trimtok_cli import cuda_graphs
from trimtok_cli.bench import grid
from trimtok_cli.bench.derive import derive
from trimtok_cli.bench.pretend_cuda import pretend_cuda
from trimtok_cli.bench.random_models import shape_model
from trimtok_cli.bench.roofline import Ceilings
from trimtok_cli.bench.spec import Bench, Grid
from trimtok_cli.bench.tables import tables

RATES = Ceilings(1e12, 1e11)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Rows of dense and pruned, whose prompts need recordings of different shapes."""
    monkeypatch.setattr(cuda_graphs, "PLACES", 16, raising=False)
    monkeypatch.setattr(cuda_graphs, "PAYS", 2, raising=False)

    description = described("tiny")
    description["text_config"]["num_hidden_layers"] = 1
    description["vision_config"]["num_hidden_layers"] = 2
    task = Grid(model=("x",), method=("uniform",), keep=("4",), image="90x84", new_tokens=(2,))
    bench = Bench(rounds=2, warmups=1)
    with pretend_cuda():
        adapter = shape_model("tiny", description)
        found = list(grid.grid_rows(adapter, task, bench, RATES, tmp_path))
    assert not any(row["error"] for row in found), [row["error"] for row in found]
    return found


def test_every_measured_round_is_replayed_for_dense_and_pruned_alike(rows):
    """A short answer asks for a shape once: one warm-up would leave rounds of both kinds."""
    assert [row["setting"] for row in rows] == ["dense", "uniform@4"]
    for row in rows:
        for name in ("steps", "prefills"):
            assert row[name]["eager"] == [0, 0] and min(row[name]["replayed"]) > 0, row["key"]


def test_prefills_of_both_kinds_make_rounds_that_are_not_alike():
    passes = {"replayed": [1, 1], "eager": [0, 0]}
    row = {
        "cell": "sample",
        "setting": "dense",
        "baseline": True,
        "batch": 1,
        "error": "",
        "work": {},
        "prepare": [0.1] * 2,
        "seconds": dict.fromkeys(("encode", "prune", "prefill", "decode", "wall"), [0.1] * 2),
        "steps": passes,
    }
    for prefills, mixed in ((passes, False), ({"replayed": [0, 1], "eager": [1, 0]}, True)):
        derived = derive({"grid": [{**row, "prefills": prefills}], "conditions": {}})
        assert derived["grid"][0]["derived"]["recorded"]["mixed"] is mixed


def shown(rows: list[dict]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    document = derive({"grid": rows, "conditions": {"device_kind": "cuda"}})
    for table in tables(document):
        console.print(table)
    return " ".join(console.export_text().split())


@pytest.mark.parametrize(
    ("replayed", "eager", "says"),
    [
        ([1, 1, 1], [0, 0, 0], "dense: decode steps recorded in 3 of 3 rounds sample"),
        ([0, 1, 1], [1, 0, 0], "in 2 of 3 rounds: its rounds are not alike, do not compare them"),
        ([0, 0, 0], [1, 1, 1], "dense: decode steps recorded in 0 of 3 rounds sample"),
        ([0, 0, 0], [0, 0, 0], ""),
    ],
)
def test_a_row_says_how_many_of_its_rounds_were_replayed(replayed, eager, says):
    row = {
        "cell": "sample",
        "setting": "dense",
        "baseline": True,
        "batch": 1,
        "new_tokens": 2,
        "error": "",
        "memory": {},
        "work": {},
        "tokens": {"visual": 4, "text": 2, "kept": 4},
        "prepare": [0.1] * 3,
        "seconds": dict.fromkeys(("encode", "prune", "prefill", "decode", "wall"), [0.1] * 3),
        "steps": {"replayed": replayed, "eager": eager},
    }
    found = shown([row, {**row, "cell": "sample 2"}])
    assert (says in found) if says else ("recorded" not in found)
