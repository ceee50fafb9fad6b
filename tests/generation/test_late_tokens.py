"""Tokens that the host reads one step late: the same answers, one wait a step, and no gap.

The plain loop, one prompt at a time, is the oracle. A stand-in for the copy to the host counts the
waits and the steps that the device was already asked for.
"""

from collections import Counter

import pytest
import torch

from tests.generation.test_continuous import NoWaiting, prompts_of
from tests.support import tiny
from tests.support.generating import continuous, generate, run_all
from trimtok_cli.generation import continuous as module
from trimtok_cli.generation.on_the_way import OnTheWay
from trimtok_cli.models.loading import load_model
from trimtok_cli.sampling import Sampling

STEPS = 12


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A model and prompts whose answers end at unequal lengths, some in their first token."""
    folder = tiny.llava(tmp_path_factory.mktemp("m") / "m", end=None)
    adapter = load_model(str(folder), device="cpu")
    prompts = prompts_of(adapter, 9)
    said = [
        generate(adapter, [each], max_new_tokens=STEPS, stop=False)[0][0].ids for each in prompts
    ]
    adapter.model.generation_config.eos_token_id = [said[0][3], said[2][6], said[4][0]]
    return adapter, prompts


class Late(OnTheWay):
    """Tokens that are not there before they are read; `ahead` counts the later steps by then."""

    launched: int
    reads: list[int]

    def __init__(self, tokens):
        super().__init__(tokens.clone())
        tokens = self.tensor
        Late.launched += 1
        self.number, self.hidden = Late.launched, tokens
        self.tensor = torch.full_like(tokens, -7)

    def here(self):
        Late.reads.append(Late.launched - self.number)
        self.tensor = self.hidden
        return super().here()


@pytest.fixture
def late(monkeypatch):
    Late.launched, Late.reads = 0, []
    monkeypatch.setattr(module, "OnTheWay", Late)
    return Late


SETTINGS = [
    {},
    {"stop": False},
    {"max_new_tokens": 1},
    {"max_new_tokens": 2},
    {"sampling": Sampling(1.3, 0.9, seed=3)},
    {"sampling": Sampling(repetition_penalty=1.3)},
    {"sampling": Sampling(1.1, repetition_penalty=1.2, seed=1)},
]


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("options", SETTINGS)
def test_answers_and_logits_are_those_of_the_plain_loop(llava, late, options, limit, lag):
    adapter, prompts = llava
    options = {"max_new_tokens": STEPS} | options
    done = same_as_plain(adapter, prompts, options, limit, lag)
    assert all(each.seconds.prefill > 0 for each in done.values())
    assert max(late.reads) == min(lag, options["max_new_tokens"] - 1)


def same_as_plain(adapter, prompts, options, limit: int, lag: int) -> dict:
    """The answers of a loop, which are those of the plain one, prompt by prompt."""
    loop = continuous(adapter, batch_limit=limit, keep_logits=True, lag=lag, **options)
    done = run_all(loop, prompts)
    for number, prompt in enumerate(prompts):
        (want,), _ = generate(adapter, [prompt], keep_logits=True, **options)
        got = done[number].answer
        assert (got.ids, got.finish, got.steps) == (want.ids, want.finish, want.steps)
        assert (got.logits - want.logits).abs().max() < 1e-4
    assert not loop.launched and not loop.active
    return done


@pytest.fixture
def stopping(llava, monkeypatch):
    """Stop strings in place of end tokens: two tokens of one answer, and one of another."""
    adapter, prompts = llava
    words, config = adapter.processor.tokenizer, adapter.model.generation_config
    said = [
        generate(adapter, [each], max_new_tokens=STEPS, stop=False)[0][0].ids for each in prompts
    ]
    monkeypatch.setattr(config, "eos_token_id", None)
    strings = [words.decode(said[0][3:5]), words.decode(said[2][5:6])]
    monkeypatch.setattr(config, "stop_strings", strings)
    return adapter, prompts


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("limit", [1, 4])
def test_stop_strings_are_looked_for_a_step_late_and_cut_the_same(stopping, late, limit, lag):
    done = same_as_plain(*stopping, {"max_new_tokens": STEPS}, limit, lag)
    assert {each.answer.finish for each in done.values()} == {"stop", "length"}
    assert len({each.answer.steps for each in done.values()}) > 2, "all are cut alike"
    assert max(late.reads) == lag, "the host looked at text with nothing on the device"


def test_the_host_waits_once_a_step_and_for_nothing_else(llava, late, monkeypatch):
    """Between two reads no operation waits, and a step is read once the next one is launched."""
    adapter, prompts = llava
    loop = continuous(adapter, batch_limit=9, max_new_tokens=STEPS, stop=False, lag=1)
    real = late.here

    def here(self):
        with torch.utils._python_dispatch._disable_current_modes():
            return real(self)

    monkeypatch.setattr(late, "here", here)
    run_all(loop, prompts[:1])
    late.launched, late.reads = 0, []
    with NoWaiting():
        done = run_all(loop, prompts)
    assert len(done) == 9
    assert late.launched == len(late.reads) == STEPS
    assert late.reads == [1] * (STEPS - 1) + [0], "the device stood idle, or a step was wasted"


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("ends", ["llava", "stopping"])
def test_an_answer_takes_part_in_at_most_one_step_behind_its_end(ends, lag, monkeypatch, request):
    """Steps that an answer took part in, the prefill counted, against its tokens."""
    adapter, prompts = request.getfixturevalue(ends)
    loop = continuous(adapter, batch_limit=3, max_new_tokens=STEPS, lag=lag)
    real, part = loop._note, Counter()

    def note(rows, *given, **options):
        part.update(row.request.number for row in rows)
        real(rows, *given, **options)

    monkeypatch.setattr(loop, "_note", note)
    done = run_all(loop, prompts)
    surplus = [part[number] - done[number].answer.steps for number in done]
    assert min(surplus) >= 0 and max(surplus) == lag
    assert {done[number].answer.finish for number in done} == {"stop", "length"}
