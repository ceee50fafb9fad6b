"""vLLM itself against the continuous loop, token for token, in float32. Skipped where it is not.

samples/vllm.sh makes an environment that has it. One engine is alive at a time, in this process.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.conftest import picture
from tests.support import families, families_text
from tests.support.generating import continuous, rules, run_all
from tests.support.stub_engine import without_times
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError
from trimtok_cli.models.loading import load_model
from trimtok_cli.on_vllm.engine import architecture
from trimtok_cli.on_vllm.loop import Shape
from trimtok_cli.on_vllm.options import prepare_environment
from trimtok_cli.on_vllm.plugin import PLAIN_PROMPTS, WHOLE_PROMPTS
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling
from trimtok_cli.tokens import Prompt

prepare_environment()
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "samples" / "demo" / "model"
STEPS = 24

# The demo model, and a model in small of each class that is taken: vLLM's kernels for CPUs want
# heads of 32 numbers.
NAMES = ["demo", "internvl", "qwen2_vl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """A whole model, its front, and vLLM with the same checkpoint's language model."""
    from trimtok_cli.on_vllm.engine import Engine

    name, folder = request.param, DEMO
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families_text, "HEADS", 2)
        patch.setattr(families_text, "HEAD_DIM", 32)
        for kind in ("qwen2_vl", "qwen2_5_vl"):
            rope = families_text.EXTRAS[kind]["rope_parameters"]
            patch.setitem(rope, "mrope_section", [4, 6, 6])
        if name != "demo":
            folder = families.FAMILIES[name](tmp_path_factory.mktemp("m") / name)
    whole, front = (load_model(str(folder), device="cpu", front=front) for front in (False, True))
    engine = Engine(front, batch_limit=4, given={})
    yield whole, front, engine
    engine.close()


def samples(folder: Path) -> list[Sample]:
    """Pictures of several shapes under questions of several lengths; one cannot be opened."""
    found = []
    for number in range(8):
        path = folder / f"{number}.png"
        picture(number, 84 + 14 * number, 84 if number % 2 else 126).save(path)
        found.append(Sample(path.name, images=(path,), question="Why? " * (1 + number % 3)))
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    found.insert(3, Sample("bad.png", images=(folder / "bad.png",), question="Why?"))
    found.append(
        Sample("two", images=(folder / "1.png", folder / "2.png"), question="Which is it?")
    )
    return found


def told(result):
    return [
        getattr(result, name)
        for name in ("sample", "answer", "finish", "tokens", "kept", "error", "notes")
    ]


def test_every_class_that_is_taken_is_tried(pair):
    assert architecture(pair[1]) in (*PLAIN_PROMPTS, *WHOLE_PROMPTS)
    assert len({*PLAIN_PROMPTS, *WHOLE_PROMPTS}) == len(NAMES)


@pytest.mark.parametrize("keep", ["all", "25%"])
def test_answers_are_those_of_the_continuous_loop_token_for_token(pair, tmp_path, keep):
    whole, front, engine = pair
    pruner, ask = build_pruner("trimtokenator", {"keep": keep}), Ask(max_new_tokens=STEPS)
    run = partial(answer_all, pruner=pruner, samples=samples(tmp_path), ask=ask, batch_size=4)
    mine, theirs = list(run(whole)), list(run(front, new_loop=engine.loop))
    assert [told(each) for each in theirs] == [told(each) for each in mine]
    assert sum(bool(each.error) for each in theirs) == 1 and theirs[3].error
    assert all(each.error or each.seconds.prefill > 0 for each in theirs)


@pytest.fixture(scope="module")
def prompts(pair):
    whole = pair[0]
    found = []
    for number in range(6):
        inputs = whole.prepare([picture(number)] * (number % 3 != 1), "Why? " * (1 + number))
        found.append(whole.embed(inputs, whole.encode_many([inputs])[0]))
    return found


def ids_of(found, numbers):
    return [(found[n].answer.ids, found[n].answer.steps, found[n].answer.finish) for n in numbers]


def test_bad_prompts_fail_alone_and_leave_the_next_answers_as_they_are(pair, prompts):
    whole, front, engine = pair
    want = run_all(continuous(whole, max_new_tokens=STEPS), prompts)
    asked = rules(front, max_new_tokens=STEPS)
    loop = engine.loop(front, None, asked)
    given = list(prompts)
    holes = prompts[1].embeds.clone()
    holes[2] = float("nan")
    most = engine.shape.length
    given[1] = _with(prompts[1], holes)
    given[2] = _with(prompts[2], prompts[2].embeds[:, :-1])
    given[4] = _with(prompts[4], prompts[4].embeds.repeat(most // len(prompts[4]) + 1, 1))
    found = run_all(loop, given)
    assert sorted(n for n, each in found.items() if each.error) == [1, 2, 4]
    assert ids_of(found, (0, 3, 5)) == ids_of(want, (0, 3, 5))
    again = run_all(loop, prompts)
    assert ids_of(again, range(6)) == ids_of(want, range(6))


def test_scores_that_are_no_numbers_spoil_no_other_answer(pair, prompts, monkeypatch):
    """NaN that does get into vLLM's cache: its request fails, and the cache is cleared of it."""
    whole, front, engine = pair
    want = run_all(continuous(whole, max_new_tokens=STEPS), prompts)
    holes = prompts[1].embeds.clone()
    holes[:, 0] = float("nan")
    monkeypatch.setattr(Shape, "refusal", lambda *_: None)
    loop = engine.loop(front, None, rules(front, max_new_tokens=STEPS))
    found = run_all(loop, [prompts[0], _with(prompts[1], holes), *prompts[2:]])
    assert [n for n, each in found.items() if each.error] == [1]
    assert "no next token has a number" in str(found[1].error)
    rest = [0, 2, 3, 4, 5]
    assert ids_of(found, rest) == ids_of(want, rest)
    again = run_all(loop, prompts)
    assert ids_of(again, range(6)) == ids_of(want, range(6))


def test_sampled_answers_do_not_depend_on_their_batch(pair, prompts):
    _, front, engine = pair
    asked = rules(front, max_new_tokens=8, sampling=Sampling(temperature=0.8, top_p=0.9))
    together = run_all(engine.loop(front, None, asked), prompts)
    for number in (0, 3):
        alone = run_all(engine.loop(front, None, asked), [prompts[number]])
        assert alone[0].answer.ids == together[number].answer.ids


def _with(prompt: Prompt, embeds) -> Prompt:
    from dataclasses import replace

    positions = torch.arange(len(embeds))
    if prompt.positions.dim() > 1:
        positions = positions.expand(3, -1)
    return replace(prompt, embeds=embeds, positions=positions)


def line(out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "trimtok_cli", "vqa", str(ROOT / "samples/questions.jsonl")),
        *("--model", str(DEMO), "--device", "cpu", "--dtype", "float32", "--keep", "64"),
        *("--max-new-tokens", "24", "--limit", "30", "-b", "4", "-q", "-o", str(out), *more),
    ]


def contents(folder: Path) -> list[object]:
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [without_times(json.loads(row)) for row in lines]


def test_a_run_that_is_killed_in_the_middle_ends_as_one_that_was_not(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(line(tmp_path / "local"), env=environment, check=True, cwd=tmp_path)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        line(killed, "--engine", "vllm"), env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    answers = killed / "answers.jsonl"
    while process.poll() is None:
        if answers.exists() and answers.read_bytes().count(b"\n") >= 8:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    before = answers.read_bytes().count(b"\n")
    assert process.returncode == -signal.SIGKILL and 8 <= before < 30
    subprocess.run(line(killed, "--engine", "vllm"), env=environment, check=True, cwd=tmp_path)
    assert contents(killed) == contents(tmp_path / "local")
    manifest = json.loads((killed / "run.json").read_text())
    assert manifest["engine"]["name"] == "vllm" and not manifest["interrupted"]


def test_an_engine_that_cannot_start_is_one_sentence():
    from trimtok_cli.on_vllm.engine import Engine

    front = load_model(str(DEMO), device="cpu", front=True)
    with pytest.raises(ModelError, match=r"does not start with .*--engine local"):
        Engine(front, batch_limit=2, given={"load_format": "nothing"})
