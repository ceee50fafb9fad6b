"""`--engine vllm` on the command line, with a stand-in for vLLM: records, run.json, a dead engine."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.stub_engine import call, without_times
from tests.support.stub_vllm import StubCore, loop_over
from trimtok_cli.commands import engines, run
from trimtok_cli.models.loading import load_model


@pytest.fixture
def stub(monkeypatch):
    """The engine's facts and its next core's options, which a test may change."""
    found = SimpleNamespace(started=0, breaks=0)

    def start(config, adapter, pruner, ask, screen):
        found.started += 1
        whole = load_model(config.model, device="cpu")

        def new_loop(adapter, pruner, rules, **_):
            core = StubCore(whole, breaks=found.breaks)
            return loop_over(core, rules, batch_limit=config.batch_limit)

        return SimpleNamespace(loop=new_loop, facts={"name": "vllm", "version": "0.32.0"})

    monkeypatch.setattr(run, "start_vllm", start)
    monkeypatch.setattr(run, "check_engine", lambda config: None)
    return found


def line(pictures, folder, out, *more):
    given = ("--keep", "5", "--max-new-tokens", "6", "--device", "cpu", "-b", "2", "-o", out)
    return ("caption", pictures[0].parent, "-m", folder, *given, *more)


def rows(out):
    lines = Path(out, "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_times(json.loads(row)) for row in lines]


def test_a_run_has_the_records_of_a_local_one_and_says_what_ran_it(stub, pictures, llava_folder):
    (pictures[0].parent / "p3b.png").write_bytes(b"")
    assert call(*line(pictures, llava_folder, "local")).exit_code == 3
    done = call(*line(pictures, llava_folder, "o", "--engine", "vllm"))
    assert done.exit_code == 3 and stub.started == 1, done.stderr
    assert rows("o") == rows("local") and len(rows("o")) == 8
    manifest = json.loads(Path("o/run.json").read_text())
    assert manifest["engine"] == {"name": "vllm", "version": "0.32.0"}
    assert manifest["config"]["engine"] == "vllm"
    lines = Path("o/answers.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(row)["metadata"]["timing_ms"] for row in lines]
    assert len([each for each in times if each["prefill"] > 0 and each["decode"] > 0]) == 7


def test_a_dead_engine_keeps_what_is_answered_and_any_engine_goes_on(stub, pictures, llava_folder):
    assert call(*line(pictures, llava_folder, "local")).exit_code == 0
    stub.breaks = 16
    done = call(*line(pictures, llava_folder, "o", "--engine", "vllm"))
    assert done.exit_code == 1 and "vLLM's engine has ended" in done.stderr
    assert "Traceback" not in done.stderr
    kept = rows("o")
    assert 0 < len(kept) < 7 and kept == rows("local")[: len(kept)]
    # Whichever engine goes on, the end is the same.
    stub.breaks = 0
    again = call(*line(pictures, llava_folder, "o"))
    assert again.exit_code == 0 and rows("o") == rows("local"), again.stderr
    manifest = json.loads(Path("o/run.json").read_text())
    assert manifest["engine"]["name"] == "local" and not manifest["interrupted"]


def test_a_method_inside_the_decoder_is_refused_before_anything_is_written(
    monkeypatch, pictures, llava_folder
):
    monkeypatch.setattr(run, "check_engine", lambda config: None)
    done = call(*line(pictures, llava_folder, "o", "--engine", "vllm", "--method", "fastv"))
    assert done.exit_code == 1 and "prunes inside the decoder" in done.stderr
    assert not Path("o/answers.jsonl").exists()


def test_sampled_runs_are_told_that_other_tokens_are_drawn(monkeypatch, pictures, llava_folder):
    from trimtok_cli.on_vllm import engine

    def no_engine(*given, **named):
        raise engine.ModelError("stopped here.")

    monkeypatch.setattr(run, "check_engine", lambda config: None)
    monkeypatch.setattr(engine, "Engine", no_engine)
    assert engines.start_vllm is run.start_vllm
    done = call(*line(pictures, llava_folder, "o", "--engine", "vllm", "--temperature", "0.7"))
    assert "vLLM draws samples of its own" in done.stderr and "stopped here" in done.stderr
