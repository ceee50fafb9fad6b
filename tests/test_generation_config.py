"""What a checkpoint's generation_config.json says, against `generate` itself: tokens where it is greedy, shares where it samples."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList

from tests import tiny
from tests.conftest import picture
from tests.families import FAMILIES
from trimtok_cli import choosing
from trimtok_cli.choosing import Rules
from trimtok_cli.continuous import Continuous
from trimtok_cli.decoding import Batches, generate
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models import load_model
from trimtok_cli.pruners import build_pruner
from trimtok_cli.sampling import Lots, Sampling
from trimtok_cli.stages import reduce_prompts

STEPS = 6
LOOPS = {"continuous": Continuous, "simple": Batches}


class Asked:
    """A model and three questions of unequal length, with what `generate` is given for each, and what it says without settings."""

    def __init__(self, adapter):
        self.adapter = adapter
        asked = [([picture(1, 100, 80)], "Why? " * 5), ([], "What is it?"), ([picture(2, 60, 90)], "How many are there?")]
        inputs = [adapter.prepare(images, question) for images, question in asked]
        self.given = [each.tensors | (adapter.tower_inputs([each]) if each.visuals else {}) for each in inputs]
        self.prompts = [adapter.embed(each, adapter.encode_many([each])[0]) for each in inputs]
        self.plain_config = adapter.model.generation_config
        self.usual = [self.library(i).sequences[0].tolist() for i in range(3)]
        self.plain = [self.library(i, eos_token_id=None).sequences[0].tolist() for i in range(3)]

    def library(self, number: int, **options):
        """`generate` alone, as its user would call it; only the new tokens."""
        torch.manual_seed(number)
        options = {"max_new_tokens": STEPS} | options
        out = self.adapter.model.generate(
            **self.given[number], return_dict_in_generate=True, output_scores=True, output_logits=True, **options
        )
        out.sequences = out.sequences[:, self.given[number]["input_ids"].shape[1] :]
        return out

    def ours(self, loop: str, rows: int, prompts=None, **options):
        made = LOOPS[loop](self.adapter, rows=rows, **{"max_new_tokens": STEPS} | options)
        left = iter(enumerate(self.prompts if prompts is None else prompts))
        return {done.key: done for done in made.run(lambda count: [each for _, each in zip(range(count), left, strict=False)])}


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def asked(request, tmp_path_factory):
    build = tiny.llava if request.param == "llava" else FAMILIES[request.param]
    return Asked(load_model(str(build(tmp_path_factory.mktemp("m") / request.param)), device="cpu"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return Asked(load_model(str(tiny.llava(tmp_path_factory.mktemp("m") / "llava")), device="cpu"))


@pytest.fixture(autouse=True)
def _as_it_was(request):
    yield
    for name in ("asked", "llava"):
        if name in request.fixturenames:
            found = request.getfixturevalue(name)
            found.adapter.model.generation_config = found.plain_config


def set_config(asked: Asked, **settings) -> None:
    """The checkpoint's file, with these settings in it."""
    config = copy.deepcopy(asked.plain_config)
    config.update(**settings)
    asked.adapter.model.generation_config = config


WORD = 59  # the U of USER, which begins every prompt of `tiny.llava`


def unsaid(say) -> int:
    return next(i for i in range(9, 99) if not any(i in row for row in say))


# A token that answers begin with, one from their middle, pieces of them: made of what each model says without any setting.
GREEDY = {
    "repetition_penalty": lambda say: {"repetition_penalty": 3.0},
    "slight repetition_penalty": lambda say: {"repetition_penalty": 1.15},
    "encoder_repetition_penalty": lambda say: {"encoder_repetition_penalty": 1.4},
    "no_repeat_ngram_size": lambda say: {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": lambda say: {"encoder_no_repeat_ngram_size": 1, "sequence_bias": [[[WORD], 50.0]]},
    "bad_words_ids": lambda say: {"bad_words_ids": [[say[0][0]], say[1][:2], say[2][1:3]]},
    "suppress_tokens": lambda say: {"suppress_tokens": [say[0][0], say[1][1]]},
    "begin_suppress_tokens": lambda say: {"begin_suppress_tokens": [row[0] for row in say]},
    "forced_bos_token_id": lambda say: {"forced_bos_token_id": 7},
    "forced_eos_token_id": lambda say: {"forced_eos_token_id": unsaid(say)},
    "min_new_tokens": lambda say: {"min_new_tokens": 4, "eos_token_id": [say[0][1], say[1][0]]},
    "min_length": lambda say: {"min_length": 60, "eos_token_id": [say[0][0], say[1][0], say[2][1]]},
    "several end tokens": lambda say: {"eos_token_id": [say[0][1], say[1][2], say[2][3]]},
    "exponential_decay_length_penalty": lambda say: {"exponential_decay_length_penalty": (1, 3.0)},
    "sequence_bias": lambda say: {"sequence_bias": [[[say[0][0]], -9.0], [[5, 6], 4.0], [[say[2][0], 8], 30.0]]},
    "remove_invalid_values": lambda say: {"remove_invalid_values": True},
    "renormalize_logits": lambda say: {"renormalize_logits": True},
    "watermarking_config": lambda say: {"watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash", "context_width": 2}},
    "sampling settings without sampling": lambda say: {"temperature": 0.3, "top_p": 0.4, "top_k": 3},
    "several": lambda say: {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[say[0][1]]], "min_new_tokens": 3,
        "eos_token_id": [say[0][2], say[1][0], 2], "suppress_tokens": [say[2][0]], "forced_eos_token_id": unsaid(say),
    },
}  # fmt: skip
# What every family need not be asked: their difference is in prompts, and these look at nothing of them.
MANY = ["repetition_penalty", "no_repeat_ngram_size", "several"]


def same_tokens(asked: Asked) -> int:
    """In how many of the three the settings changed something; the loops as `generate`, alone and side by side."""
    want = [asked.library(i).sequences[0].tolist() for i in range(3)]
    ends = set(asked.adapter.end_ids)
    for loop in LOOPS:
        for rows in (1, 3):
            done = asked.ours(loop, rows)
            for i, ids in enumerate(want):
                assert done[i].error is None
                stopped = ids[-1] in ends
                assert done[i].said.finish == ("stop" if stopped else "length")
                assert list(done[i].said.ids) == ids[: len(ids) - stopped], (loop, rows, i)
    return sum(ids != usual for ids, usual in zip(want, asked.usual, strict=True))


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_answers_equal_generate_under_every_setting(llava, name):
    set_config(llava, **GREEDY[name](llava.plain))
    idle = ("remove_invalid_values", "renormalize_logits", "forced_bos_token_id", "sampling settings without sampling", "encoder_no_repeat_ngram_size")
    assert bool(same_tokens(llava)) is (name not in idle), "the setting does nothing here: the test could not fail"


@pytest.mark.parametrize("name", MANY)
def test_greedy_answers_equal_generate_in_every_family(asked, name):
    set_config(asked, **GREEDY[name](asked.plain))
    assert same_tokens(asked)


WARPED = {
    "do_sample": {}, "temperature": {"temperature": 0.6}, "cold": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "top_k": {"top_k": 5}, "top_p": {"top_p": 0.8}, "nearly greedy": {"top_k": 1, "top_p": 0.001, "temperature": 0.01},
    "min_p": {"min_p": 0.1}, "typical_p": {"typical_p": 0.7}, "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.02}, "top_h": {"top_h": 0.5},
    "several": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "renormalize_logits": True},
}  # fmt: skip


def same_shares(asked: Asked, monkeypatch, **options) -> None:
    """The shares that lots are drawn by are those of `generate`, where both say the same tokens."""
    want = [asked.library(i, **options) for i in range(3)]
    told = [out.sequences[0].tolist() for out in want]
    scores = [torch.cat(out.scores).softmax(-1) for out in want]
    for loop in LOOPS:
        for rows in (1, 3):
            found = [[], [], []]

            def forced(shares, dice, found=found):
                """Says what `generate` said; whose row it is, its own lot tells."""
                out = []
                for row, die in zip(shares, dice, strict=True):
                    i = seeds.index(die.initial_seed())
                    out.append(told[i][len(found[i])] if len(found[i]) < len(told[i]) else 0)
                    found[i].append(row)
                return torch.tensor(out)

            prompts = [replace(prompt, seed=i) for i, prompt in enumerate(asked.prompts)]
            rules = Rules(asked.adapter, max_new_tokens=STEPS)
            seeds = [rules.answer(prompt).die.initial_seed() for prompt in prompts]
            assert len(set(seeds)) == 3
            monkeypatch.setattr(choosing, "draw", forced)
            done = asked.ours(loop, rows, prompts=prompts)
            monkeypatch.undo()
            for i, each in enumerate(scores):
                assert done[i].error is None and done[i].said.steps == len(told[i])
                assert (torch.stack(found[i][: len(each)]) - each).abs().max() < 1e-4, (loop, rows, i)


@pytest.mark.parametrize("name", WARPED)
def test_sampled_answers_are_drawn_by_the_shares_of_generate(llava, name, monkeypatch):
    set_config(llava, do_sample=True, **WARPED[name])
    same_shares(llava, monkeypatch)


def test_sampled_answers_are_drawn_by_the_shares_of_generate_in_every_family(asked, monkeypatch):
    set_config(asked, do_sample=True, **WARPED["several"])
    same_shares(asked, monkeypatch)


def test_lots_fall_by_their_shares():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]).expand(20000, 5)
    die = torch.Generator().manual_seed(3)
    drawn = torch.bincount(choosing.draw(shares, [die] * len(shares)), minlength=5) / len(shares)
    assert (drawn - shares[0]).abs().max() < 0.012 and drawn[4] == 0
