"""samples/gpu.sh and its parts on a CPU: every part runs, has its JSON, and none stops the next."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trimtok_cli.bench import first_minutes
from trimtok_cli.bench.variants import VARIANTS, attribute, cudnn_attention
from trimtok_cli.generation.continuous import Continuous

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
    facts = part("profile")
    assert set(facts) == {"batch 1", "batch 2"}
    for each in facts.values():
        assert each["launches"] == sum(each["kernels"].values()) or len(each["kernels"]) == 60
        assert each["busy_share"] > 0 and each["sample"]["wall"] > 0 and each["waits"] == {}
        assert any("mm" in name or "linear" in name for name in each["kernels"])


def test_choices_run_in_turn_and_one_that_fails_is_a_row_that_says_so(monkeypatch):
    broken = first_minutes.Variant("gone", "?", change=lambda loop: attribute("gone.by", 1, loop))
    monkeypatch.setattr(first_minutes, "VARIANTS", (*VARIANTS[:2], broken))
    off, on, gone = part("choices")["rows"]
    for row in (off, on):
        assert row["error"] == "" and set(row["seconds"]) == {"usual", row["name"]}
        assert all(times[0]["wall"] > 0 for times in row["seconds"].values())
    assert "gone" in gone["error"]


def test_every_choice_changes_something_that_a_loop_has(adapter):
    from trimtok_cli.bench.batch import Loops

    for variant in VARIANTS:
        loop = Loops(adapter, decode="continuous", new_tokens=2, batch=1).of(None)
        assert isinstance(loop, Continuous)
        with variant.active():
            variant.change(loop)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with cudnn_attention(not before):
        assert torch.backends.cuda.cudnn_sdp_enabled() != before
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_run_from_files_answers_every_sample():
    facts = part(
        "files", "--samples", "5", "--new-tokens", "2", "--batch-size", "2", "--workers", "0"
    )
    assert facts["answered"] == facts["samples"] == 5 and facts["errors"] == {}
    assert facts["samples_per_second"] > 0 and facts["stages"]["decode"] > 0


def test_a_part_that_fails_says_why_in_its_json():
    assert "nothing" in part("profile", "--model", "nothing", code=1)["error"]


@pytest.mark.parametrize(
    ("asked", "files"),
    [
        (("machine", "nonsense", "files"), ("machine.json", "files.json")),
        (("nonsense", "table4"), ("table4/bench.json",)),
    ],
)
def test_the_script_runs_its_parts_one_by_one_and_none_stops_the_next(tmp_path, asked, files):
    done = subprocess.run(
        ["bash", str(ROOT / "samples/gpu.sh"), str(tmp_path), *asked],
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "DEVICE": "cpu",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        timeout=400,
    )
    assert done.returncode == 1 and "no such part: nonsense" in done.stderr, done.stderr
    for file in files:
        assert not json.loads((tmp_path / file).read_text()).get("error"), file
