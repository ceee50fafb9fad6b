"""Scores that are no numbers: their sample fails with a sentence, and its neighbours are answered."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import generate, loop_of, run_all
from tests.support.generating import rules as rules_of
from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import answer
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.generation.continuous import LAG, Continuous
from trimtok_cli.generation.plain import Plain
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

STEPS = 5
SAYS = "no next token has a number as its score"


def prompts_of(adapter) -> list:
    asked = [
        ([picture(1, 100, 80)], "Why? " * 5),
        ([picture(2, 60, 90)], "What?"),
        ([], "What is it?"),
        ([picture(4, 80, 80)], "Who?"),
    ]
    inputs = [adapter.prepare(images, question) for images, question in asked]
    return [adapter.embed(each, adapter.encode_many([each])[0]) for each in inputs]


def run(loop, adapter, prompts, rows: int, **options) -> dict:
    made = loop_of(loop, adapter, batch_limit=rows, max_new_tokens=STEPS, **options)
    return run_all(made, prompts)


def spoiled(prompt, value: float):
    """One number of one row."""
    embeds = prompt.embeds.clone()
    embeds[len(prompt) // 2, 3] = value
    return replace(prompt, embeds=embeds)


def all_but(bad: int, done: dict, adapter, prompts, **options) -> None:
    assert sorted(done) == list(range(len(prompts))) and bad in done
    for i, prompt in enumerate(prompts):
        if i == bad:
            assert done[i].generated is None and SAYS in str(done[i].error)
        else:
            want = generate(adapter, [prompt], max_new_tokens=STEPS, **options)[0][0]
            assert done[i].error is None and done[i].generated.ids == want.ids, i


@pytest.mark.parametrize("name", ["llava", *FAMILIES])
def test_a_prompt_that_is_not_numbers_fails_alone_in_both_loops_of_every_family(name, tmp_path):
    build = tiny.llava if name == "llava" else FAMILIES[name]
    adapter = load_model(str(build(tmp_path / "m")), device="cpu")
    good = prompts_of(adapter)
    for bad, value in ((0, torch.nan), (3, torch.inf)):
        prompts = [spoiled(prompt, value) if i == bad else prompt for i, prompt in enumerate(good)]
        for loop in (Continuous, Plain):
            for rows in (2, 4):
                all_but(bad, run(loop, adapter, prompts, rows), adapter, prompts)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    adapter = load_model(
        str(tiny.llava(tmp_path_factory.mktemp("m") / "m", end=None)), device="cpu"
    )
    return adapter, prompts_of(adapter)


@pytest.mark.parametrize("loop", [Continuous, Plain])
@pytest.mark.parametrize(
    "sampling", [None, Sampling(1.2), Sampling(repetition_penalty=1.1), Sampling(0.8, top_p=0.9)]
)
def test_sampled_and_penalised_answers_fail_alone_as_well(llava, loop, sampling):
    adapter, good = llava
    prompts = [good[0], spoiled(good[1], torch.nan), *good[2:]]
    all_but(
        1, run(loop, adapter, prompts, 3, sampling=sampling), adapter, prompts, sampling=sampling
    )


@pytest.mark.parametrize("lag", [0, 1])
def test_an_answer_that_meets_it_in_the_middle_fails_and_leaves_its_slot_clean(
    llava, monkeypatch, lag
):
    """The embedding of a token that one answer alone says; its slot is taken by others, longer
    ones, behind it.
    """
    adapter, good = llava
    says = [generate(adapter, [prompt], max_new_tokens=STEPS)[0][0].ids for prompt in good]
    prompts = [good[1], good[0], good[3], good[2], good[0]]
    mine = next(
        t
        for t in says[1][:-1]
        if all(t not in says[i] for i in (0, 2, 3)) and t not in torch.cat([p.ids for p in good])
    )
    weight = adapter.model.get_input_embeddings().weight
    before = weight[mine].clone()
    try:
        weight.data[mine] = torch.nan
        for loop in (Continuous, Plain):
            if loop is Continuous:
                monkeypatch.setitem(LAG, "cpu", lag)
            for rows in (1, 2, 3):
                done = run(loop, adapter, prompts, rows)
                assert SAYS in str(done[0].error) and done[0].generated is None
                for i, want in zip((1, 2, 3, 4), (0, 3, 2, 0), strict=True):
                    assert done[i].error is None and done[i].generated.ids == says[want], (
                        loop,
                        rows,
                        i,
                    )
    finally:
        weight.data[mine] = before


def test_scores_of_minus_infinity_forbid_tokens_and_no_more(llava, monkeypatch):
    adapter, good = llava
    real = adapter.forward

    def forward(*args, **kwargs):
        logits = real(*args, **kwargs).clone()
        logits[:, :50] = -torch.inf
        return logits

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    for sampling in (None, Sampling(1.5)):
        done = run(Continuous, adapter, good, 3, sampling=sampling)
        assert all(each.error is None and min(each.generated.ids) >= 50 for each in done.values())


def test_a_setting_that_forbids_every_token_is_a_failed_row(llava, monkeypatch):
    adapter, good = llava
    config = adapter.model.generation_config
    monkeypatch.setattr(
        config, "suppress_tokens", list(range(adapter.model.lm_head.weight.shape[0])), raising=False
    )
    for loop in (Continuous, Plain):
        assert all(SAYS in str(each.error) for each in run(loop, adapter, good, 2).values())


@pytest.mark.parametrize(
    "method",
    ["dense", "trimtokenator", "fastv", "pyramiddrop", "sparsevlm", "vtw", "visionzip", "tome"],
)
def test_whatever_prunes_a_sample_that_is_not_numbers_is_a_failed_row_among_answers(
    adapter, pictures, monkeypatch, method
):
    samples = [
        Sample(i, (path,), (path.name,), question="Bad?" if i == 1 else "What?")
        for i, path in enumerate(pictures[:4])
    ]
    ask, pruner = Ask(max_new_tokens=3), build_pruner(method, {"keep": 9})
    alone = {s.id: answer(adapter, pruner, [s], ask)[0].answer for s in samples if s.id != 1}
    real = type(adapter).embed_many

    def embed_many(self, batch, tokens):
        prompts = real(self, batch, tokens)
        for inputs, prompt in zip(batch, prompts, strict=True):
            if "Bad?" in inputs.text:
                prompt.embeds[-4] = torch.nan  # a row of the text, which no method takes away
        return prompts

    monkeypatch.setattr(type(adapter), "embed_many", embed_many)
    for size in (1, 4):
        results = list(answer_all(adapter, pruner, samples, ask, batch_size=size))
        assert [bool(r.error) for r in results] == [False, True, False, False]
        assert {r.sample.id: r.answer for r in results if not r.error} == alone
    comparisons = list(compare_all(adapter, [None, pruner] if pruner else [None], samples, ask))
    assert [{bool(r.error) for r in c.results} for c in comparisons] == [
        {False},
        {True},
        {False},
        {False},
    ]


def test_the_sentence_is_one(llava):
    adapter, good = llava
    said = rules_of(adapter).answer(good[0])
    said.take(-1)
    assert said.finish == "error" and "\n" not in str(said.error) and said.ids == []
