"""Counts of the real models and of a run's schedule may only fall: the committed ones are ceilings.

Write samples/results/counts anew (`trimtok bench counts`) where a count has fallen.
"""

import json
from pathlib import Path

import pytest

from trimtok_cli.bench.counts import counts_rows
from trimtok_cli.bench.schedule import schedule_row
from trimtok_cli.bench.spec import Bench, CountsPart, read_bench
from trimtok_cli.outputs.manifest import versions

COMMITTED = Path(__file__).parents[2] / "samples/results/counts/bench.json"

CEILINGS = ("kernels", "launches", "products", "attention", "attention_shapes", "waits", "bytes")


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(COMMITTED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def slack(document) -> float:
    """1 with the libraries that the ceilings were counted with; others launch a few kernels more."""
    counted, now = document["conditions"]["versions"], versions()
    same = all(counted[name] == now[name] for name in ("torch", "transformers"))
    return 1.0 if same else 1.1


@pytest.fixture(scope="module")
def committed(document) -> dict:
    return {row["key"]: row for part in ("counts", "schedule") for row in document[part]}


def test_what_a_stage_launches_may_only_fall(committed, slack, tmp_path):
    """One model and batch; `trimtok bench counts --against` compares all of them.

    One method prunes the prompt, the other goes on inside the decoder, in the staged loop.
    """
    pytest.importorskip("triton", reason="the counts are those of a device with Triton's kernels")
    task = next(task for task in read_bench("counts").counts if task.model == "llava-1.5-7b")
    task = CountsPart(**{**vars(task), "method": ("trimtokenator", "sparsevlm"), "batch": (2,)})
    rows = list(counts_rows(task, Bench(), tmp_path))
    stages = ["encode", "prune", "prefill", "decode step"]
    assert [row["stage"] for row in rows] == [*stages, stages[0], *stages[2:]]
    for row in rows:
        ceiling = committed[row["key"]]
        above = {name: row[name] for name in CEILINGS if row[name] > slack * ceiling[name]}
        assert not above, (row["key"], above, {name: ceiling[name] for name in above})


def test_recordings_shapes_and_waits_of_a_schedule_may_only_fall(committed):
    short = next(part for part in read_bench("counts").schedule if "yes or no, 64" in part.title)
    row = schedule_row(short, Bench())
    ceiling = committed[row["key"]]
    assert row["useful_slot_steps"] >= ceiling["useful_slot_steps"]
    for name in ("steps", "recordings", "recorded_shapes", "attention_shapes", "waits"):
        assert row[name] <= ceiling[name], name
