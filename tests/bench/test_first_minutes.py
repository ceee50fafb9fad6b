"""samples/gpu.sh and its parts on a CPU: every part runs, has its JSON, and none stops the next."""

import inspect
import json
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trimtok_cli.bench import choices, first_minutes
from trimtok_cli.bench.batch import Loops
from trimtok_cli.bench.variants import VARIANTS, Variant, settings
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.prepare.sample import Ask, prepare

ROOT = Path(__file__).parents[2]
TINY = ["--device", "cpu", "--model", "tiny", "--image", "90x84", "--keep", "4", "--rounds", "1"]


def part(name: str, *more: str, code: int = 0) -> dict:
    with pytest.raises(SystemExit) as ended:
        first_minutes.main([name, "--out", "out.json", *TINY, "--batch", "1", "2", *more])
    document = json.loads(Path("out.json").read_text())
    assert ended.value.code == code and bool(document["error"]) == bool(code), document["error"]
    return document if code else document["facts"]


def test_the_machines_facts_hold_what_a_first_look_needs():
    facts = part("machine")
    assert facts["device_kind"] == "cpu" and facts["launch_seconds"] > 0 and facts["clock"]
    assert {"compiler", "python_header", "cudnn_attention", "versions", "python"} <= set(facts)


def test_a_profile_names_kernels_and_their_share_of_the_time():
    facts = part("profile", "--batch", "1")
    assert set(facts) == {"batch 1"}
    for each in facts.values():
        assert each["launches"] == sum(each["kernels"].values()) or len(each["kernels"]) == 60
        assert each["busy_share"] > 0 and each["sample"]["wall"] > 0 and each["waits"] == {}
        assert any("mm" in name or "linear" in name for name in each["kernels"])


def test_choices_run_in_turn_and_one_that_fails_is_a_row_that_says_so(monkeypatch):
    lines = (
        Variant("read late", "?", {"lag": 1}),
        Variant("new lengths", "?", {"steps.in_buckets": True}, unseen=2),
        Variant("ahead", "?", {"encode_ahead": True}, from_files=True),
        Variant("gone", "?", {"gone.by": 1}),
    )
    monkeypatch.setattr(first_minutes, "VARIANTS", lines)
    run = ("--batch", "1", "--samples", "3", "--new-tokens", "2", "--workers", "0")
    *rows, gone = part("choices", *run)["rows"]
    for row in rows:
        assert row["error"] == "" and set(row["seconds"]) == {"usual", row["name"]}
        assert all(times[0]["wall"] > 0 for times in row["seconds"].values())
    assert rows[2]["seconds"]["ahead"][0]["answered"] == 3
    assert "gone" in gone["error"]


ON_A_LOOP = [variant for variant in VARIANTS if not variant.from_files]
ON_A_RUN = [variant for variant in VARIANTS if variant.from_files]


@pytest.mark.parametrize("variant", ON_A_RUN, ids=lambda variant: variant.name)
def test_every_choice_of_a_run_is_an_argument_that_it_takes(variant):
    assert variant.settings
    assert set(variant.settings) <= set(inspect.signature(answer_all).parameters)


@pytest.mark.parametrize("variant", ON_A_LOOP, ids=lambda variant: variant.name)
def test_every_choice_of_a_loop_changes_something_that_it_has(adapter, variant):
    loop = Loops(adapter, decode="continuous", new_tokens=2, batch=1).of(None)
    get = {path: attrgetter(path) for path in variant.settings}
    before = {path: each(loop) for path, each in get.items()}
    with settings(loop, variant.settings):
        assert {path: each(loop) for path, each in get.items()} == variant.settings
    assert {path: each(loop) for path, each in get.items()} == before
    assert variant.settings or variant.batch


def test_lengths_that_were_not_seen_before_are_all_different(adapter, monkeypatch):
    seen = []

    def run_batch(adapter, pruner, inputs, loop):
        seen.extend(each.inputs.input_ids.numel() for each in inputs)
        return choices.Spent(0, 0, 0, 0, 0.0, (1,), (1.0,), (1,))

    monkeypatch.setattr(choices, "run_batch", run_batch)
    sample = Sample(0, images=(ROOT / "samples/images/scene-08.png",), names=("a",))
    known = [prepare(adapter.preprocessor, sample, Ask("?"))]
    options = SimpleNamespace(batch=[1], keep="4", rounds=2)
    choices.held_beside(adapter, Variant("x", "?", unseen=3), known, options)
    assert len(seen) == len(set(seen)) == 2 * (2 + 2) * 3


@pytest.mark.parametrize(("allowed", "inside"), [(False, False), (True, True)])
def test_a_choice_may_leave_attention_to_cudnn(adapter, monkeypatch, allowed, inside):
    monkeypatch.setattr(adapter, "device", torch.device("cuda"))
    monkeypatch.setattr(adapter, "cudnn_attention", allowed)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        with adapter.kernels():
            assert torch.backends.cuda.cudnn_sdp_enabled() == inside
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_part_that_is_interrupted_writes_what_it_has(monkeypatch):
    def stopped(options, facts):
        facts["so far"] = 1
        raise KeyboardInterrupt

    monkeypatch.setitem(first_minutes.PARTS, "machine", stopped)
    document = part("machine", code=1)
    assert document["error"] == "interrupted" and document["facts"] == {"so far": 1}


def test_a_run_from_files_answers_every_sample():
    facts = part(
        "files", "--samples", "5", "--new-tokens", "2", "--batch-size", "2", "--workers", "0"
    )
    assert facts["answered"] == facts["samples"] == 5 and facts["errors"] == {}
    assert facts["samples_per_second"] > 0 and facts["stages"]["decode"] > 0


def test_a_part_that_fails_says_why_in_its_json():
    assert "nothing" in part("profile", "--model", "nothing", code=1)["error"]


def script(folder: Path, *parts: str, python: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "samples/gpu.sh"), str(folder), *parts],
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "DEVICE": "cpu",
            "PYTHON": python,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **more,
        },
        timeout=400,
    )


def test_the_script_runs_its_parts_and_one_that_does_not_exist_fails(tmp_path):
    done = script(tmp_path, "nonsense", "machine", python=sys.executable)
    assert done.returncode == 1 and "no such part: nonsense" in done.stderr, done.stderr
    assert not json.loads((tmp_path / "machine.json").read_text())["error"]


@pytest.fixture
def noting(tmp_path):
    """A stand-in for Python that notes its arguments, and fails in the part `profile`."""
    file = tmp_path / "python"
    file.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n'
        'case "$*" in *"first_minutes profile"*) exit 3;; esac\n'
    )
    file.chmod(0o755)
    return file


def test_no_part_of_the_script_stops_the_next(tmp_path, noting):
    done = script(tmp_path, python=str(noting), CHECKPOINT="a/model")
    asked = (tmp_path / "asked").read_text().splitlines()
    called = [line.removeprefix("-m ").split(" --", 1)[0] for line in asked]
    assert called == [
        "pytest -q -m gpu",
        *(f"trimtok_cli.bench.first_minutes {name}" for name in ("machine", "profile", "choices")),
        "trimtok_cli.bench.first_minutes files",
        "trimtok_cli caption samples/images",
        "trimtok_cli.bench.first_minutes files",
        *["trimtok_cli bench smoke"] * 4,
        "trimtok_cli bench counts",
    ]
    assert done.returncode == 1 and "failed with status 3" in done.stderr
    assert "--model a/model" in asked[5] and "--batch-size auto" in asked[5]
    assert len({line.split("--out ")[1].split()[0] for line in asked[1:]}) == 11


def test_a_script_whose_parts_all_end_well_ends_well(tmp_path, noting):
    done = script(tmp_path, "machine", "small-card", python=str(noting))
    assert done.returncode == 0 and "--fraction 0.3" in (tmp_path / "asked").read_text()


def test_a_small_card_is_a_share_of_the_current_device(monkeypatch):
    """torch takes no device without a number here, which `cuda` is."""
    shares = []

    def limited(fraction, device=None):
        assert device is None or torch.device(device).index is not None
        shares.append(fraction)
        raise RuntimeError("far enough")

    monkeypatch.setattr(first_minutes, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limited)
    options = SimpleNamespace(device="cuda", fraction=0.3)
    with pytest.raises(RuntimeError, match="far enough"):
        first_minutes.files(options, {})
    assert shares == [0.3]
