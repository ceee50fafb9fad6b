"""Sampling: which random numbers each answer is drawn with, and which settings are refused.

The command line, YAML, the environment and Python refuse the same numbers.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from tests.conftest import picture
from tests.support.generating import continuous, generate, requests, rules, run_all
from trimtok_cli.cli import app
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.generation.capacity import likely_length
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.continuous import AT_ONCE
from trimtok_cli.generation.seeds import SampleSeeds
from trimtok_cli.generation.types import run as run_loop
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.resolve import resolve
from trimtok_cli.sampling import Sampling
from trimtok_cli.tokens import Prompt

HOT = Ask("What?", max_new_tokens=8, sampling=Sampling(1.5, seed=3))


def samples_of(pictures, count: int = 4) -> list[Sample]:
    return [
        Sample(i, (path,), (path.name,), question="What is it?")
        for i, path in enumerate(pictures[:count])
    ]


def said(adapter, samples, ask=HOT, pruner=None, **options) -> list[str]:
    results = list(answer_all(adapter, pruner, samples, ask, **options))
    assert not any(r.error for r in results)
    return [r.answer for r in results]


def test_one_question_asked_again_gets_a_lot_of_its_own(adapter, pictures):
    again = [Sample(i, (pictures[0],), ("a.png",), question="What is it?") for i in range(5)]
    found = said(adapter, again)
    assert len(set(found)) == 5 and found == said(adapter, again)


def test_batches_loops_workers_and_order_change_no_lot(adapter, pictures):
    samples = samples_of(pictures)
    want = said(adapter, samples)
    for decode in ("continuous", "simple"):
        ask = Ask("What?", max_new_tokens=8, sampling=HOT.sampling, decode=decode)
        for size in (1, 3, None):
            assert said(adapter, samples, ask, batch_size=size) == want
    assert said(adapter, samples, workers=1, batch_size=2) == want
    assert said(adapter, samples[::-1], batch_size=2) == want[::-1]
    assert said(adapter, samples[2:3]) == want[2:3], "what else a file holds plays no part"
    assert (
        said(adapter, samples, Ask("What?", max_new_tokens=8, sampling=Sampling(1.5, seed=4)))
        != want
    )


def test_a_sample_that_fails_takes_nobodys_lot(adapter, pictures):
    samples = samples_of(pictures)
    want = said(adapter, samples)
    samples.insert(1, Sample("x", (Path("gone.png"),), ("gone.png",), question="What is it?"))
    assert [
        r.answer for r in answer_all(adapter, None, samples, HOT, batch_size=3) if not r.error
    ] == want


def test_dense_and_pruned_are_drawn_by_the_same_lots(adapter, pictures):
    """Each setting gives the same answers in a comparison as in a run of its own."""
    samples = samples_of(pictures)
    pruners = [
        None,
        build_pruner("trimtokenator", {"keep": 35}),
        build_pruner("fastv", {"keep": 5}),
    ]
    rows = [[r.answer for r in c.results] for c in compare_all(adapter, pruners, samples, HOT)]
    for column, pruner in zip(zip(*rows, strict=True), pruners, strict=True):
        assert list(column) == said(adapter, samples, pruner=pruner)


def test_lots_are_of_what_is_asked():
    lots, again = SampleSeeds(), SampleSeeds()
    first = [
        lots.number(names, question)
        for names, question in ((("a",), "x"), (("a",), "y"), (("b",), "x"), (("a",), "x"))
    ]
    assert len(set(first)) == 4 and all(0 <= number < 2**63 for number in first)
    assert [again.number(("b",), "x"), again.number(("a",), "x")] == [first[2], first[0]]
    assert lots.number(("\udcff.png",), "\ud83d") >= 0, "names need not be text"


NONSENSE = [
    ("temperature", "nan"),
    ("temperature", "inf"),
    ("temperature", "-inf"),
    ("temperature", "1e-320"),
    ("temperature", "1e-40"),
    ("temperature", "-1"),
    ("top_p", "0"),
    ("top_p", "nan"),
    ("top_p", "1.5"),
    ("top_p", "-0.1"),
    ("top_p", "inf"),
    ("top_k", "-1"),
    ("top_k", "1e30"),
    ("repetition_penalty", "0"),
    ("repetition_penalty", "nan"),
    ("repetition_penalty", "inf"),
    ("repetition_penalty", "-2"),
    ("repetition_penalty", "1e-320"),
    ("seed", "-1"),
    ("seed", str(2**63)),
    ("seed", "1e40"),
    ("max_new_tokens", "0"),
    ("max_new_tokens", "-5"),
    ("max_new_tokens", "1e18"),
    ("max_new_tokens", "nan"),
    ("max_new_tokens", "2.5"),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_numbers_that_mean_nothing_are_refused_wherever_they_stand(name, value):
    flag = "--" + name.replace("_", "-")
    Path("c.yaml").write_text(f"{name}: {value.replace('nan', '.nan').replace('inf', '.inf')}\n")
    for given in (({}, "c.yaml", {}), ({}, None, {f"TRIMTOK_{name.upper()}": value})):
        with pytest.raises(UsageError, match=f"{flag}|{name}|{name.upper()}") as found:
            resolve(*given)
        assert "\n" not in str(found.value)
    Path("a.png").write_bytes(b"")
    done = CliRunner().invoke(app, ["caption", "a.png", "-m", "./nowhere", flag, value])
    assert (
        done.exit_code == 2 and "Traceback" not in done.output and "nowhere" not in done.stderr
    ), "found before a model is looked for"
    number = float(value) if "." in value or not value.lstrip("-").isdigit() else int(value)
    if name == "max_new_tokens" and value not in ("nan", "2.5"):
        with pytest.raises(UsageError, match=flag):
            Ask(max_new_tokens=number)
    elif name != "max_new_tokens":
        with pytest.raises(UsageError, match=flag):
            Sampling(**{name: number})


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0},
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"top_p": 1},
        {"top_p": 1e-9},
        {"top_k": 0},
        {"top_k": 10**6},
        {"repetition_penalty": 1.05},
        {"seed": 2**63 - 1},
        {"temperature": 0, "greedy": True},
    ],
)
def test_numbers_that_mean_something_are_taken_and_answered(adapter, pictures, given):
    ask = Ask(
        "What?",
        max_new_tokens=2,
        sampling=Sampling(**({"temperature": 1.0} | given if "greedy" not in given else given)),
    )
    assert all(
        r.finish in ("stop", "length")
        for r in answer_all(adapter, None, samples_of(pictures, 2), ask)
    )


class Operations(TorchDispatchMode):
    """The operations within its context, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.name().split("::")[1].split(".")[0])
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "given, ordered",
    [
        ({"top_k": 0}, set()),
        ({"top_k": 0, "top_p": 1.0}, set()),
        ({"top_k": 5}, {"topk"}),
        ({"top_k": 0, "top_p": 0.9}, {"sort"}),
    ],
)
def test_the_vocabulary_is_sorted_only_where_a_bound_asks_for_it(adapter, given, ordered):
    """A sort of 64 rows of 152,000 scores is most of what choosing a token costs."""
    order = rules(adapter, sampling=Sampling(temperature=0.7, **given), max_new_tokens=4)
    none, ids = torch.empty(0, dtype=torch.long), torch.arange(3)
    prompt = Prompt(torch.zeros(3, 4), ids, none, none, none, ids=ids)
    chooser = Chooser(order)
    chooser.admit([order.answer(prompt)] * 2)
    with Operations() as operations:
        chosen = chooser(torch.randn(2, adapter.model.lm_head.weight.shape[0]))
    assert chosen.shape == (2,) and "argmax" in operations.names
    assert operations.names & {"sort", "topk", "argsort", "kthvalue", "multinomial"} == ordered


def test_greedy_and_a_temperature_contradict_each_other():
    with pytest.raises(UsageError, match="contradict"):
        resolve({"greedy": True, "temperature": 0.5}, None, {})
    Path("c.yaml").write_text("greedy: yes\n")
    assert resolve({}, "c.yaml", {}).greedy is True
    assert resolve({"greedy": False, "temperature": 0.5}, "c.yaml", {}).sampling == Sampling(0.5)
    assert resolve({}, None, {"TRIMTOK_GREEDY": "1"}).greedy is True
    with pytest.raises(UsageError, match="true or false"):
        resolve({}, None, {"TRIMTOK_GREEDY": "perhaps"})


def test_what_is_not_said_is_the_checkpoints():
    config = RunConfig()
    assert (
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.top_k,
        config.repetition_penalty,
    ) == (None,) * 5
    assert config.sampling == Sampling() and config.sampling.overrides == {}
    Path("c.yaml").write_text("temperature: null\ntop_p: 0.5\n")
    found = resolve({"seed": 3}, "c.yaml", {"TRIMTOK_MAX_NEW_TOKENS": "7"})
    assert found.temperature is None and found.sources == {
        "top_p": "config file",
        "seed": "flag",
        "max_new_tokens": "environment",
    }


def test_the_checkpoints_word_reaches_the_screen_the_answers_and_run_json(
    llava_folder, pictures, tmp_path
):
    import shutil

    folder = shutil.copytree(llava_folder, tmp_path / "asks")
    file = folder / "generation_config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {
                "do_sample": True,
                "temperature": 0.9,
                "repetition_penalty": 1.1,
                "max_new_tokens": 4,
            }
        )
    )

    def run(*args, code=0):
        return _run(
            ["caption", str(pictures[0].parent), "-m", str(folder), "--method", "dense", *args],
            code,
        )

    done = run("-o", "a")
    assert (
        "the checkpoint asks for sampling, temperature 0.9, repetition_penalty 1.1; --greedy "
        "answers without sampling" in done.stderr
    )
    told = json.loads(Path("a/run.json").read_text())["generation"]
    assert told["max_new_tokens"] == {"value": 4, "from": "checkpoint"} and told["do_sample"] == {
        "value": True,
        "from": "checkpoint",
    }
    assert told["top_k"] == {"value": 50, "from": "default"} and told["seed"] == {
        "value": 0,
        "from": "default",
    }
    run("-o", "b", "--greedy", "--max-new-tokens", "3")
    told = json.loads(Path("b/run.json").read_text())["generation"]
    assert told["do_sample"] == {"value": False, "from": "flag"} and told["max_new_tokens"] == {
        "value": 3,
        "from": "flag",
    }
    assert told["repetition_penalty"] == {"value": 1.1, "from": "checkpoint"}
    texts = [
        [
            json.loads(line)["text"]
            for line in Path(f"{name}/answers.jsonl").read_text().splitlines()
        ]
        for name in "ab"
    ]
    assert texts[0] != texts[1]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 3}))
    refused = run("-o", "c", code=1)
    assert (
        "asks for num_beams 3" in refused.stderr
        and "--greedy answers without it" in refused.stderr
        and not Path("c/answers.jsonl").exists()
    )
    assert "--greedy leaves out num_beams 3" in run("-o", "d", "--greedy").stderr
    done = _run(
        ["compare", str(pictures[0]), "-m", str(folder), "--keep", "5", "-o", "e", "--greedy"], 0
    )
    page = Path("e/compare.html").read_text()
    assert re.search(r"Longest answer(</?\w+>|\s)+4 tokens", page)


def _run(args: list[str], code: int):
    done = CliRunner().invoke(app, args)
    assert done.exit_code == code, done.stderr
    return done


def test_an_answer_that_may_be_very_long_takes_no_memory_before_it_is(adapter):
    inputs = adapter.prepare([picture(1)], "What?")
    prompt = adapter.embed(inputs, adapter.encode_many([inputs])[0])
    loop = continuous(adapter, batch_limit=2, max_new_tokens=2_000_000)
    done = []
    for each in run_loop(loop, requests([prompt, prompt])):
        done.append(each)
        assert loop.steps.slots.length <= len(prompt) + AT_ONCE + 128
    assert len(done) == 2 and not any(each.error for each in done)
    most = rules(adapter, max_new_tokens=2_000_000)
    assert likely_length(adapter.num_positions, most, len(prompt)) == 4096 - len(prompt)
    assert likely_length(8192, most, 8000) == 192, "RoPE scaling counts, as it does for prompts"
    assert likely_length(None, most, 8000) == 2_000_000 and likely_length(10, most, 12) == 1


@pytest.mark.parametrize("lag", [0, 1])
def test_slots_grow_with_answers_that_outlast_them(adapter, monkeypatch, lag):
    monkeypatch.setattr("trimtok_cli.generation.continuous.AT_ONCE", 4)
    monkeypatch.setattr("trimtok_cli.generation.kv_slots.GRAIN", 1)
    prompts = []
    for i in range(3):
        inputs = adapter.prepare([picture(i)] * (i % 2), "What? " * (i + 1))
        prompts.append(adapter.embed(inputs, adapter.encode_many([inputs])[0]))
    loop = continuous(adapter, batch_limit=2, max_new_tokens=70, stop=False, lag=lag)
    done = run_all(loop, prompts)
    for i, prompt in enumerate(prompts):
        assert (
            done[i].generated.ids
            == generate(adapter, [prompt], max_new_tokens=70, stop=False)[0][0].ids
        )
    assert loop.steps.slots.length <= max(map(len, prompts)) + 70 + lag


def test_settings_are_checked_without_torch():
    code = (
        "import sys, trimtok_cli.generation.seeds, trimtok_cli.config; print('torch' in "
        "sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
        ).stdout.strip()
        == "False"
    )
