"""The loop over vLLM, with a stand-in for vLLM's engine that the plain loop stands behind."""

from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.generating import generate, requests, rules, run_all
from tests.support.stub_vllm import StubCore, loop_over
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models.loading import load_model
from trimtok_cli.on_vllm import loop as module
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.tokens import Prompt

STEPS = 10


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A model, and prompts whose answers end at unequal lengths, some at an end token."""
    folder = tiny.llava(tmp_path_factory.mktemp("m") / "m", end=None)
    adapter = load_model(str(folder), device="cpu")
    prompts = []
    for number in range(7):
        inputs = adapter.prepare([picture(number)] * (number % 3 != 1), "Why? " * (1 + number % 4))
        prompts.append(adapter.embed(inputs, adapter.encode_many([inputs])[0]))
    said = [
        generate(adapter, [prompt], max_new_tokens=STEPS, stop=False)[0][0].ids
        for prompt in prompts
    ]
    adapter.model.generation_config.eos_token_id = [said[0][3], said[2][6]]
    return adapter, prompts


def singles(adapter, prompts):
    return [generate(adapter, [prompt], max_new_tokens=STEPS)[0][0] for prompt in prompts]


@pytest.mark.parametrize("batch_limit", [1, 2, 5])
def test_answers_are_those_of_the_plain_loop(llava, batch_limit):
    adapter, prompts = llava
    core = StubCore(adapter, slots=batch_limit)
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS), batch_limit=batch_limit)
    found = run_all(loop, prompts)
    want = singles(adapter, prompts)
    got = [found[number].answer for number in range(len(prompts))]
    assert [(each.ids, each.steps, each.finish) for each in got] == [
        (each.ids, each.steps, each.finish) for each in want
    ]
    assert {each.finish for each in got} == {"stop", "length"}
    # The stop token is counted, and is no part of the answer.
    assert all(each.steps == len(each.ids) + (each.finish == "stop") for each in got)
    assert not loop.busy and core.most <= 2 * batch_limit
    assert max(each.peak_batch for each in found.values()) <= batch_limit


def bad(prompt, kind):
    if kind == "NaN":
        embeds = prompt.embeds.clone()
        embeds[3, 0] = float("nan")
    elif kind == "infinite":
        embeds = prompt.embeds.clone()
        embeds[-1, -1] = float("inf")
    elif kind == "width":
        embeds = prompt.embeds[:, :-8]
    else:
        embeds = prompt.embeds.repeat(100, 1)
    return replace(prompt, embeds=embeds)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("NaN", "its prompt holds NaN or infinity"),
        ("infinite", "its prompt holds NaN or infinity"),
        ("width", "56 wide, and the language model reads rows of 64"),
        ("long", "--vllm-args max_model_len=N makes room"),
    ],
)
def test_a_prompt_that_would_take_others_along_fails_alone_and_is_never_handed_over(
    llava, kind, sentence
):
    adapter, prompts = llava
    given = list(prompts)
    given[2] = bad(given[2], kind)
    core = StubCore(adapter)
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS), length=500)
    found = run_all(loop, given)
    assert isinstance(found[2].error, SampleError) and sentence in str(found[2].error)
    assert len(core.seen) == len(prompts) - 1
    want = singles(adapter, prompts)
    assert all(found[i].answer.ids == want[i].ids for i in range(len(prompts)) if i != 2)


@pytest.mark.parametrize(("rows", "fits"), [(9, True), (10, False)])
def test_a_prompt_leaves_room_for_one_token(rows, fits):
    none = torch.empty(0, dtype=torch.long)
    prompt = Prompt(torch.zeros(rows, 4), none, none, none, none)
    refused = module.Shape(width=4, length=10).refusal(prompt)
    assert (refused is None) == fits and (fits or "has room for 9" in str(refused))


def test_a_prompt_that_vllm_refuses_fails_alone(llava):
    adapter, prompts = llava
    loop = loop_over(StubCore(adapter, refuses=(1, 4)), rules(adapter, max_new_tokens=STEPS))
    found = run_all(loop, prompts)
    failed = [number for number, each in found.items() if each.error]
    assert sorted(failed) == [1, 4]
    assert str(found[1].error) == "vLLM does not take it: ValueError: the prompt is too long"


def test_a_prompt_beyond_the_checkpoints_own_length_fails_alone(llava):
    adapter, prompts = llava
    core = StubCore(adapter)
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS))
    loop.rules.refusal = lambda prompt: SampleError("no") if prompt is prompts[0] else None
    assert [n for n, each in run_all(loop, prompts).items() if each.error] == [0]


@pytest.mark.parametrize("when", [1, 4])
def test_an_engine_that_ends_ends_the_run_with_one_sentence(llava, when):
    adapter, prompts = llava
    loop = loop_over(StubCore(adapter, breaks=when), rules(adapter, max_new_tokens=STEPS))
    with pytest.raises(ModelError) as caught:
        run_all(loop, prompts)
    said = str(caught.value)
    assert "EngineCore encountered an issue" in said and "the same command goes on" in said
    assert len(said.splitlines()) == 1


def test_an_engine_that_takes_no_more_ends_the_run(llava):
    adapter, prompts = llava
    core = StubCore(adapter)
    core.add_request = lambda *_: (_ for _ in ()).throw(RuntimeError("EngineDeadError"))
    with pytest.raises(ModelError, match="has ended"):
        run_all(loop_over(core, rules(adapter, max_new_tokens=STEPS)), prompts)


def test_an_engine_that_loses_a_request_is_no_endless_loop(llava):
    adapter, prompts = llava
    core = StubCore(adapter)
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS))
    loop.add(requests(prompts[:1]))
    core.left.clear()
    with pytest.raises(ModelError, match="lost requests"):
        loop.step()


@pytest.mark.parametrize("left", [3, 0])
def test_scores_that_are_no_numbers_fail_the_request_and_the_cache_is_cleared(llava, left):
    """left: tokens that the answer would still have had."""
    adapter, prompts = llava
    core = StubCore(adapter, nan_at=("1", left))
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS))
    found = run_all(loop, prompts)
    want = singles(adapter, prompts)
    assert "no next token has a number" in str(found[1].error)
    assert core.nan_at is None and not core.left
    assert all(found[i].answer.ids == want[i].ids for i in range(len(prompts)) if i != 1)


def test_room_is_bounded_and_comes_in_lots_worth_a_run_of_the_tower(llava):
    adapter, prompts = llava
    core = StubCore(adapter, slots=4)
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS), batch_limit=4)
    assert loop.room() == 8
    loop.add(requests(prompts + prompts[:1]))
    assert loop.room() == 0
    seen = set()
    while loop.busy:
        loop.step()
        seen.add(loop.room())
    assert 8 in seen and max(seen) <= 8 and loop.batch_limit == 4
    large = loop_over(core, rules(adapter), batch_limit=64)
    large.under_way = {str(i): None for i in range(2 * 64 - 7)}
    assert large.room() == 0
    large.under_way.popitem()
    assert large.room() == 8


def test_a_steps_time_is_shared_by_the_tokens_that_it_read(llava, monkeypatch):
    adapter, prompts = llava
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    core = StubCore(adapter, slots=2)
    loop = loop_over(core, rules(adapter, max_new_tokens=3, stop=False))
    two = [prompts[0], prompts[1]]
    found = run_all(loop, two)
    rows = [len(prompt) for prompt in two]
    shares = [found[i].seconds.prefill for i in range(2)]
    assert shares == pytest.approx([each / sum(rows) for each in rows])
    assert sum(found[i].seconds.total for i in range(2)) == pytest.approx(core.steps)
    assert [found[i].seconds.decode for i in range(2)] == pytest.approx([1.0, 1.0])


def test_the_time_of_a_step_that_reads_a_part_of_a_prompt_is_not_lost(llava, monkeypatch):
    adapter, prompts = llava
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    core = StubCore(adapter, slots=1)
    step, chunks = core.step, iter([[], []])
    core.step = lambda: next(chunks, None) if core.steps < 2 and bump(core) else step()

    def bump(core):
        core.steps += 1
        return True

    found = run_all(loop_over(core, rules(adapter, max_new_tokens=2, stop=False)), prompts[:1])
    assert found[0].seconds.prefill == 3 and found[0].seconds.decode == 1


@pytest.mark.parametrize("short", [True, False])
def test_an_answer_that_fills_vllms_room_is_an_error_only_where_the_model_has_more(llava, short):
    adapter, prompts = llava
    core = StubCore(adapter)
    length = len(prompts[1]) + 4
    add = core.add_request

    def cut(name, prompt, params):
        most = length - len(prompt["prompt_embeds"])
        return add(name, prompt, params | {"max_tokens": min(most, params["max_tokens"])})

    core.add_request = cut
    loop = loop_over(core, rules(adapter, max_new_tokens=STEPS), length=length, short=short)
    found = run_all(loop, [prompts[1]])[0]
    if short:
        assert "--vllm-args max_model_len=N" in str(found.error)
    else:
        assert found.answer.finish == "length" and found.answer.steps == 4


@pytest.mark.parametrize("keep", ["all", "5"])
def test_a_run_gives_the_results_of_trimtoks_own_loop(llava, tmp_path, keep):
    adapter, _ = llava
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        picture(number).save(paths[-1])
    paths[3].write_bytes(b"\x89PNG nothing")
    samples = [Sample(path.name, images=(path,), question="Why?") for path in paths]
    pruner, ask = build_pruner("trimtokenator", {"keep": keep}), Ask(max_new_tokens=STEPS)
    run = partial(answer_all, adapter, pruner, ask=ask, batch_size=2)

    def new_loop(adapter, pruner, rules, **_):
        return loop_over(StubCore(adapter), rules)

    mine, theirs = list(run(samples)), list(run(samples, new_loop=new_loop))

    def told(result):
        names = ("sample", "answer", "finish", "tokens", "kept", "error", "notes", "media")
        return [getattr(result, name) for name in names]

    assert [told(each) for each in theirs] == [told(each) for each in mine]
    assert theirs[3].error and not theirs[2].error
    for each in theirs:
        assert bool(each.error) or min(each.seconds.encode, each.seconds.prefill) > 0


def test_results_stream(llava, tmp_path):
    """The first answers come before the last samples are read."""
    adapter, _ = llava
    picture(1).save(tmp_path / "a.png")
    read = []

    def samples():
        for number in range(20):
            read.append(number)
            yield Sample(str(number), images=(tmp_path / "a.png",), question="Why?")

    def new_loop(adapter, pruner, rules, **_):
        return loop_over(StubCore(adapter), rules)

    results = answer_all(
        adapter, None, samples(), Ask(max_new_tokens=2), batch_size=2, new_loop=new_loop
    )
    assert len(list(islice(results, 3))) == 3 and len(read) < 20
    results.close()
    assert torch.is_grad_enabled()
