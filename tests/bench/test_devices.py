"""What the benchmark does on a GPU alone, held on a CPU: cards by their own names, workers, the
library's static cache.
"""

import dataclasses
import subprocess
from types import SimpleNamespace

import pytest
import torch

from trimtok_cli.bench import grid, hardware, parts, whole_runs
from trimtok_cli.bench.run import check
from trimtok_cli.bench.spec import Bench, DecodePart, Grid, OverheadPart
from trimtok_cli.data import Seconds
from trimtok_cli.errors import UsageError


@pytest.fixture
def tool(monkeypatch):
    """A machine of two cards, of which torch sees the second as its first."""
    cards = {
        "GPU-bbb": "555.1, 1980, 2100, 1593, 700.00, 41",
        "00000000:1b:00.0": "555.1, 1, 2, 3, 4, 5",
    }
    asked = []

    def tool(command, **_):
        name = next(each for each in command if each.startswith("--id=")).removeprefix("--id=")
        asked.append(name)
        if name not in cards:
            raise subprocess.CalledProcessError(6, command)
        return SimpleNamespace(stdout=cards[name] + "\n")

    monkeypatch.setattr(subprocess, "run", tool)
    return asked


def card(monkeypatch, uuid: str) -> None:
    facts = SimpleNamespace(uuid=uuid, pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)


def test_a_card_is_asked_by_its_uuid_and_not_by_torchs_number(monkeypatch, tool):
    card(monkeypatch, "bbb")
    facts = hardware._gpu_facts(torch.device("cuda", 0))
    assert tool == ["GPU-bbb"] and facts["clocks.sm"] == "1980" and facts["asked_as"] == "GPU-bbb"


def test_a_part_of_a_card_is_asked_by_the_address_of_its_card(monkeypatch, tool):
    card(monkeypatch, "part-of-a-card")
    assert hardware._gpu_facts(torch.device("cuda", 0))["temperature.gpu"] == "5"
    assert tool == ["GPU-part-of-a-card", "00000000:1b:00.0"]


def test_without_the_tool_there_are_no_facts(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    card(monkeypatch, "bbb")
    monkeypatch.setattr(subprocess, "run", missing)
    assert hardware._gpu_facts(torch.device("cuda", 0)) == {}


def test_the_document_says_which_clock_its_seconds_are_of():
    said = hardware.conditions(torch.device("cpu"), torch.float32)["clock"]
    assert said == "the host's" and "waiting for the device" in hardware.CLOCKS["cuda"]


@pytest.mark.parametrize(
    ("asked", "device", "workers"), [("auto", "cpu", 0), ("auto", "cuda", 7), (2, "cpu", 2)]
)
def test_whole_runs_have_the_workers_of_a_run(monkeypatch, asked, device, workers):
    monkeypatch.setattr(whole_runs, "usual_workers", lambda: 7)
    part = OverheadPart(model="x", workers=asked)
    assert whole_runs.workers_of(part, torch.device(device)) == workers


def test_workers_reach_the_run_and_stand_in_its_row(adapter, monkeypatch, tmp_path):
    seen = []

    def run(adapter, pruner, samples, ask, *, batch_size, workers):
        seen.append(workers)
        return [SimpleNamespace(error="", seconds=Seconds()) for _ in samples]

    monkeypatch.setattr(whole_runs, "answer_all", run)
    part = OverheadPart(model="x", method=("dense",), samples=2, image="90x84", workers=3)
    rows = list(whole_runs.overhead_rows(adapter, part, Bench(rounds=2), tmp_path))
    assert seen == [3, 3, 3] and [row["workers"] for row in rows] == [3]


def test_on_cuda_the_opponent_is_also_a_static_cache(adapter, monkeypatch, tmp_path):
    assert parts.caches(torch.device("cpu")) == {"generate": None}
    on_cuda = parts.caches(torch.device("cuda"))
    assert on_cuda == {"generate": None, "generate, static cache": "static"}
    asked = []
    real = adapter.model.generate

    def generate(**given):
        asked.append(given.pop("cache_implementation", None))
        return real(**given)

    monkeypatch.setattr(parts, "caches", lambda device: on_cuda)
    # Not by setattr, which would leave the class's own `generate` on the model of all tests.
    monkeypatch.setitem(vars(adapter.model), "generate", generate)
    part = DecodePart(model="x", keep="4", new_tokens=3, image="90x84")
    (row,) = parts.decode_rows(adapter, part, Bench(rounds=1, warmups=0), tmp_path)
    assert asked == [None, "static"] and set(row["seconds"]) == {"continuous", "simple", *on_cuda}
    assert row["identical"] == dict.fromkeys(
        ("continuous", "simple", "generate, static cache"), True
    )


def test_a_layer_of_a_deep_model_is_not_refused_before_the_model_is_known(tmp_path):
    deep = Grid(model=("x",), method=("vtw",), params={"layer": 60}, image="90x84")
    check(Bench(grid=(deep,)), tmp_path)
    with pytest.raises(UsageError, match="layer"):
        check(Bench(grid=(dataclasses.replace(deep, params={"layer": 0}),)), tmp_path)


@pytest.mark.parametrize(("free", "left_out"), [(1 << 40, False), (100_000, True)])
def test_a_cell_whose_cache_cannot_fit_is_left_out_and_says_so(
    adapter, monkeypatch, free, left_out
):
    monkeypatch.setattr(grid, "free_bytes", lambda _: free)
    cell = grid.Cell(Grid(), 64, 64, "continuous")
    prompt = SimpleNamespace(inputs=SimpleNamespace(input_ids=torch.zeros(2928)))
    said = grid.too_large(adapter, cell, [prompt])
    assert bool(said) == left_out and ("left out: its cache needs" in said) == left_out
