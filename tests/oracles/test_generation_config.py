"""A checkpoint's generation_config.json against `generate` itself.

Greedy answers have the same tokens; sampled ones have tokens in the same shares.
"""

import copy
from dataclasses import replace

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import loop_of, run_all
from tests.support.generating import rules as rules_of
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.errors import ModelError
from trimtok_cli.generation import choosing
from trimtok_cli.generation import rules as rules_module
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import Plain
from trimtok_cli.generation.settings_report import described, notes
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

STEPS = 6
LOOPS = {"continuous": Continuous, "simple": Plain}


class Asked:
    """A model and three questions of unequal length, with the inputs of `generate` for each.

    `generate`'s answers without settings are kept as well.
    """

    def __init__(self, adapter):
        self.adapter = adapter
        asked = [
            ([picture(1, 100, 80)], "Why? " * 5),
            ([], "What is it?"),
            ([picture(2, 60, 90)], "How many are there?"),
        ]
        inputs = [adapter.prepare(images, question) for images, question in asked]
        self.given = [
            each.tensors | (adapter.tower_inputs([each]) if each.visuals else {}) for each in inputs
        ]
        self.prompts = [adapter.embed(each, adapter.encode_many([each])[0]) for each in inputs]
        self.plain_config = adapter.model.generation_config
        self.usual = [self.library(i).sequences[0].tolist() for i in range(3)]
        self.plain = [self.library(i, eos_token_id=None).sequences[0].tolist() for i in range(3)]

    def library(self, number: int, **options):
        """`generate` alone, as its user would call it; only the new tokens."""
        torch.manual_seed(number)
        options = {"max_new_tokens": STEPS} | options
        if options["max_new_tokens"] is None:
            options.pop("max_new_tokens")  # said, even None overrules the checkpoint's
        out = self.adapter.model.generate(
            **self.given[number],
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **options,
        )
        out.sequences = out.sequences[:, self.given[number]["input_ids"].shape[1] :]
        return out

    def ours(self, loop: str, rows: int, prompts=None, **options):
        """Two at a time: the third takes a place that was used, and several steps are made before
        the tokens are looked at.
        """
        options = {"max_new_tokens": STEPS} | options
        made = loop_of(LOOPS[loop], self.adapter, batch_limit=rows, **options)
        if rows == 2:
            made.lag = 1
        return run_all(made, self.prompts if prompts is None else prompts)


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
    """Puts these settings into the checkpoint's generation settings."""
    config = copy.deepcopy(asked.plain_config)
    config.update(**settings)
    asked.adapter.model.generation_config = config


WORD = 59  # the U of USER, which begins every prompt of `tiny.llava`


def unsaid(say) -> int:
    return next(i for i in range(9, 99) if not any(i in row for row in say))


# A token that answers begin with, one from their middle, pieces of them: made of what each model
# says without any setting.
GREEDY = {
    "repetition_penalty": lambda say: {"repetition_penalty": 3.0},
    "slight repetition_penalty": lambda say: {"repetition_penalty": 1.15},
    "encoder_repetition_penalty": lambda say: {"encoder_repetition_penalty": 1.4},
    "no_repeat_ngram_size": lambda say: {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": lambda say: {
        "encoder_no_repeat_ngram_size": 1,
        "sequence_bias": [[[WORD], 50.0]],
    },
    "bad_words_ids": lambda say: {"bad_words_ids": [[say[0][0]], say[1][:2], say[2][1:3]]},
    "suppress_tokens": lambda say: {"suppress_tokens": [say[0][0], say[1][1]]},
    "begin_suppress_tokens": lambda say: {"begin_suppress_tokens": [row[0] for row in say]},
    "forced_bos_token_id": lambda say: {"forced_bos_token_id": 7},
    "forced_eos_token_id": lambda say: {"forced_eos_token_id": unsaid(say)},
    "min_new_tokens": lambda say: {"min_new_tokens": 4, "eos_token_id": [say[0][1], say[1][0]]},
    "min_length": lambda say: {"min_length": 60, "eos_token_id": [say[0][0], say[1][0], say[2][1]]},
    "several end tokens": lambda say: {"eos_token_id": [say[0][1], say[1][2], say[2][3]]},
    "exponential_decay_length_penalty": lambda say: {"exponential_decay_length_penalty": (1, 3.0)},
    "sequence_bias": lambda say: {
        "sequence_bias": [[[say[0][0]], -9.0], [[5, 6], 4.0], [[say[2][0], 8], 30.0]]
    },
    "remove_invalid_values": lambda say: {"remove_invalid_values": True},
    "renormalize_logits": lambda say: {"renormalize_logits": True},
    "watermarking_config": lambda say: {
        "watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash", "context_width": 2}
    },
    "sampling settings without sampling": lambda say: {
        "temperature": 0.3,
        "top_p": 0.4,
        "top_k": 3,
    },
    "several": lambda say: {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[say[0][1]]],
        "min_new_tokens": 3,
        "eos_token_id": [say[0][2], say[1][0], 2],
        "suppress_tokens": [say[2][0]],
        "forced_eos_token_id": unsaid(say),
    },
}
# What every family need not be asked: their difference is in prompts, and these look at nothing of
# them.
MANY = ["repetition_penalty", "no_repeat_ngram_size", "several"]


def same_tokens(asked: Asked) -> int:
    """Holds the loops against `generate`, alone and side by side.

    Returns the number of the three questions whose answer the settings changed.
    """
    want = [asked.library(i).sequences[0].tolist() for i in range(3)]
    ends = set(asked.adapter.end_ids)
    for loop in LOOPS:
        for rows in (1, 2, 3):
            done = asked.ours(loop, rows)
            for i, ids in enumerate(want):
                assert done[i].error is None
                stopped = ids[-1] in ends
                assert done[i].generated.finish == ("stop" if stopped else "length")
                assert list(done[i].generated.ids) == ids[: len(ids) - stopped], (loop, rows, i)
    return sum(ids != usual for ids, usual in zip(want, asked.usual, strict=True))


@pytest.mark.filterwarnings(
    "ignore:Unfeasible length constraints"
)  # which is what min_length asks for here
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_answers_equal_generate_under_every_setting(llava, name):
    set_config(llava, **GREEDY[name](llava.plain))
    idle = (
        "remove_invalid_values",
        "renormalize_logits",
        "forced_bos_token_id",
        "sampling settings without sampling",
        "encoder_no_repeat_ngram_size",
    )
    assert bool(same_tokens(llava)) is (name not in idle), (
        "the setting does nothing here: the test could not fail"
    )


@pytest.mark.parametrize("name", MANY)
def test_greedy_answers_equal_generate_in_every_family(asked, name):
    set_config(asked, **GREEDY[name](asked.plain))
    assert same_tokens(asked)


WARPED = {
    "do_sample": {},
    "temperature": {"temperature": 0.6},
    "cold": {"temperature": 0.000001, "repetition_penalty": 1.05},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "nearly greedy": {"top_k": 1, "top_p": 0.001, "temperature": 0.01},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.7},
    "epsilon_cutoff": {"epsilon_cutoff": 0.02},
    "eta_cutoff": {"eta_cutoff": 0.02},
    "top_h": {"top_h": 0.5},
    "several": {
        "temperature": 1.3,
        "top_k": 20,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "renormalize_logits": True,
    },
}


def same_shares(asked: Asked, monkeypatch, **options) -> None:
    """Tokens are drawn by the same shares as in `generate`, as long as both have the same tokens."""
    want = [asked.library(i, **options) for i in range(3)]
    told = [out.sequences[0].tolist() for out in want]
    scores = [torch.cat(out.scores).softmax(-1) for out in want]
    for loop in LOOPS:
        for rows in (1, 3):
            found = [[], [], []]

            rules = rules_of(asked.adapter, max_new_tokens=STEPS)
            prompts = [replace(prompt, seed=i) for i, prompt in enumerate(asked.prompts)]
            seeds = [rules.answer(prompt).generator.initial_seed() for prompt in prompts]

            def forced(shares, dice, found=found, seeds=seeds):
                """Says what `generate` said; whose row it is, its own lot tells."""
                out = []
                for row, die in zip(shares, dice, strict=True):
                    i = seeds.index(die.initial_seed())
                    out.append(told[i][len(found[i])] if len(found[i]) < len(told[i]) else 0)
                    found[i].append(row)
                return torch.tensor(out)

            assert len(set(seeds)) == 3
            monkeypatch.setattr(choosing, "draw", forced)
            done = asked.ours(loop, rows, prompts=prompts)
            monkeypatch.undo()
            for i, each in enumerate(scores):
                assert done[i].error is None and done[i].generated.steps == len(told[i])
                assert (torch.stack(found[i][: len(each)]) - each).abs().max() < 1e-4, (
                    loop,
                    rows,
                    i,
                )


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


@pytest.mark.parametrize("loop", LOOPS)
def test_stop_strings_and_lengths_of_the_checkpoint_end_answers_as_generate_ends_them(llava, loop):
    words = llava.adapter.processor.tokenizer
    strings = [words.decode(llava.plain[0][1:3]), words.decode(llava.plain[2][2:3])]
    for settings in (
        {"stop_strings": strings},
        {"max_new_tokens": 3},
        {"max_length": max(len(given["input_ids"][0]) for given in llava.given) + 2},
        {"max_length": 3000, "max_new_tokens": 2},
    ):
        set_config(llava, **settings)
        length = (
            {"max_new_tokens": STEPS} if "stop_strings" in settings else {"max_new_tokens": None}
        )
        more = {"tokenizer": words} if "stop_strings" in settings else {}
        want = [
            llava.library(i, **length, **more, eos_token_id=llava.adapter.end_ids[0])
            .sequences[0]
            .tolist()
            for i in range(3)
        ]
        done = llava.ours(loop, 3, **length)
        for i, ids in enumerate(want):
            assert [*done[i].generated.ids, *[2] * (ids[-1] == 2)] == ids, settings
        assert len({len(ids) for ids in want}) > 1 or "max_new_tokens" in settings


def test_stop_strings_fetch_a_prompt_from_the_device_once(llava, monkeypatch):
    set_config(llava, stop_strings=["a word that no answer has"])
    prompts = []
    real = rules_module.OnTheWay
    monkeypatch.setattr(
        rules_module, "OnTheWay", lambda ids: (prompts.append(len(ids)), real(ids))[1]
    )
    done = llava.ours("continuous", 3, max_new_tokens=STEPS)
    assert sum(each.generated.steps for each in done.values()) > 2 * len(done)
    assert len(prompts) == len(done), "a prompt is fetched at every token, or not in time"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_prompt_that_max_length_leaves_no_room_for_fails_alone(llava, loop):
    set_config(llava, max_length=min(len(prompt) for prompt in llava.prompts) + 3)
    done = llava.ours(loop, 3, max_new_tokens=None)
    assert [bool(done[i].error) for i in range(3)] == [
        True,
        False,
        True,
    ] and "give --max-new-tokens" in str(done[0].error)
    assert done[1].generated.steps <= 3
    assert not any(each.error for each in llava.ours(loop, 3).values()), (
        "the user's number overrules it"
    )


def test_pruned_prompts_are_penalised_for_the_same_ids_as_dense_ones(llava):
    """The processors see all ids of the dense prompt, whichever rows the pruner dropped."""
    set_config(llava, repetition_penalty=1.5, no_repeat_ngram_size=2, min_length=40)
    inputs = llava.adapter.prepare([picture(1, 100, 80)], "Why? " * 5)
    tokens = llava.adapter.encode_many([inputs])
    dense = llava.adapter.embed(inputs, tokens[0])
    (pruned,), _ = reduce_prompts(
        build_pruner("trimtokenator", {"keep": 4}), [dense], tokens, num_layers=4, renumber=True
    )
    assert len(pruned) < len(dense) and torch.equal(pruned.ids, inputs.input_ids)
    rules, row = (
        rules_of(llava.adapter, max_new_tokens=4),
        torch.randn(1, 101, generator=torch.Generator().manual_seed(0)),
    )
    ours = [choosing.Chooser(rules), choosing.Chooser(rules)]
    for chooser, prompt in zip(ours, (dense, pruned), strict=True):
        chooser.admit([rules.answer(prompt)])
    assert torch.equal(*(chooser._processed(row.clone(), 0) for chooser in ours))


REFUSED = {
    "num_beams": {"num_beams": 4},
    "beams that sample": {"num_beams": 2, "do_sample": True},
    "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "use_mtp": {"use_mtp": True},
    "guidance_scale": {"guidance_scale": 1.5},
    "force_words_ids": {"force_words_ids": [[5]], "num_beams": 2},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "token_healing": {"token_healing": True},
    "max_time": {"max_time": 1.5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_token_after_the_other_cannot_give_is_refused_by_name_and_greedy_goes_on_without_it(
    llava, name
):
    set_config(llava, **REFUSED[name])
    with pytest.raises(
        ModelError,
        match=f"asks for .*{next(iter(REFUSED[name]))}.*, which cannot be had here; --greedy",
    ):
        rules_of(llava.adapter)
    rules = rules_of(llava.adapter, sampling=Sampling(greedy=True), max_new_tokens=STEPS)
    assert rules.plain and rules.dropped
    assert notes(rules, {})[-1].startswith("--greedy leaves out ")
    done = llava.ours("continuous", 3, sampling=Sampling(greedy=True))
    for i, ids in enumerate(llava.usual):
        assert list(done[i].generated.ids) == [each for each in ids if each != 2]


BROKEN = {
    "a temperature that is not one": {"do_sample": True, "temperature": 0.0},
    "below float32": {"do_sample": True, "temperature": 1e-40},
    "NaN": {"do_sample": True, "temperature": float("nan")},
    "a word": {"repetition_penalty": "high"},
    "a share above 1": {"do_sample": True, "top_p": -0.5},
    "ids that there are not": {"sequence_bias": [[[99999], 2.0]]},
    "an end beyond the vocabulary": {"forced_bos_token_id": 7, "suppress_tokens": [7]},
    "quantized": {"cache_implementation": "quantized"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_settings_that_mean_nothing_are_one_sentence_before_the_run(llava, name):
    config = copy.deepcopy(llava.plain_config)
    for key, value in BROKEN[name].items():
        setattr(config, key, value)
    llava.adapter.model.generation_config = config
    with pytest.raises(ModelError, match=r"^generation_config\.json of ") as found:
        rules_of(llava.adapter)
    assert "\n" not in str(found.value)


def test_flags_overrule_the_checkpoint(llava):
    set_config(
        llava, do_sample=True, temperature=0.5, top_p=0.7, repetition_penalty=1.2, max_new_tokens=9
    )
    for sampling, want in (
        (
            Sampling(),
            {
                "do_sample": True,
                "temperature": 0.5,
                "top_p": 0.7,
                "top_k": 50,
                "repetition_penalty": 1.2,
            },
        ),
        (
            Sampling(0.9, top_k=0),
            {
                "do_sample": True,
                "temperature": 0.9,
                "top_p": 0.7,
                "top_k": 0,
                "repetition_penalty": 1.2,
            },
        ),
        (
            Sampling(repetition_penalty=1.0, top_p=1.0),
            {"do_sample": True, "temperature": 0.5, "top_p": 1.0, "repetition_penalty": 1.0},
        ),
        (Sampling(greedy=True), {"do_sample": False, "repetition_penalty": 1.2}),
        (Sampling(0), {"do_sample": False, "repetition_penalty": 1.2}),
    ):
        config = rules_of(llava.adapter, sampling=sampling).config
        assert {name: getattr(config, name) for name in want} == want
    assert rules_of(llava.adapter).most == 9 and rules_of(llava.adapter, max_new_tokens=4).most == 4
    set_config(llava)
    assert rules_of(llava.adapter).most == 128 and rules_of(llava.adapter).plain
    assert not rules_of(llava.adapter, stop=False).processor_names, "what is measured is bare"


def test_who_said_what_is_told(llava):
    set_config(
        llava,
        do_sample=True,
        temperature=0.5,
        repetition_penalty=1.2,
        bad_words_ids=[[5], [6]],
        max_length=900,
        num_beams=1,
    )
    rules = rules_of(llava.adapter, sampling=Sampling(top_p=0.9, seed=3))
    told = described(rules, {"top_p": "environment", "seed": "flag"})
    assert told["temperature"] == {"value": 0.5, "from": "checkpoint"} and told["top_p"] == {
        "value": 0.9,
        "from": "environment",
    }
    assert told["top_k"] == {"value": 50, "from": "default"} and told["seed"] == {
        "value": 3,
        "from": "flag",
    }
    assert (
        told["max_length"] == {"value": 900, "from": "checkpoint"}
        and told["max_new_tokens"]["value"] is None
    )
    assert told["bad_words_ids"] == {"value": [[5], [6]], "from": "checkpoint"}
    (line,) = notes(rules, {})
    assert line.startswith(
        "the checkpoint asks for sampling, temperature 0.5, repetition_penalty 1.2, "
        "bad_words_ids [[5], [6]]"
    )
    told = described(
        rules_of(llava.adapter, max_new_tokens=5, sampling=Sampling(greedy=True)),
        {"greedy": "flag", "max_new_tokens": "config file"},
    )
    assert told["do_sample"] == {"value": False, "from": "flag"} and told["max_new_tokens"] == {
        "value": 5,
        "from": "config file",
    }
    assert "max_length" not in told
    set_config(llava)
    assert notes(rules_of(llava.adapter), {}) == []
    assert (
        "--top-p changes nothing"
        in notes(rules_of(llava.adapter, sampling=Sampling(top_p=0.5)), {})[0]
    )
