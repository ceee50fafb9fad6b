"""A model of the caller's own, pruned within a block, against the engine's own run of the same.

`generate` gets what the model's processor returns, and nothing else.
"""

from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache

from tests.conftest import picture
from tests.oracles.test_families import clip_of, library_inputs
from tests.support import tiny
from tests.support.families import FAMILIES, VIDEO_FAMILIES
from tests.support.generating import generated_by_library, rules
from trimtok_cli import TrimTokenator, pruned
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.engine import answer
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import loop_for
from trimtok_cli.engine.prompt_stage import check_method
from trimtok_cli.errors import SampleError, UsageError
from trimtok_cli.generation.types import run
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.pruners.registry import PRUNERS, build_pruner, reads_tower

STEPS = 4
QUESTION = "What is to the left of it?"
TINY = {**FAMILIES, "llava": tiny.llava, "pixtral": tiny.pixtral, "siglip": tiny.siglip}


class Both:
    """A checkpoint twice: as trimtok loads it, and as a user of the library does."""

    def __init__(self, folder) -> None:
        self.adapter = load_model(str(folder), device="cpu")
        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def inputs(self, *images, clip=None, question=QUESTION):
        return dict(library_inputs(self.adapter, images, clip, question))


@pytest.fixture(scope="module", params=TINY)
def both(request, tmp_path_factory) -> Both:
    return Both(TINY[request.param](tmp_path_factory.mktemp("own") / request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Both:
    return Both(tiny.llava(tmp_path_factory.mktemp("own") / "llava"))


def by_engine(adapter, pruner, *images, clip=None, question=QUESTION):
    """(kept, logits (STEPS, V), words) of trimtok's own run."""
    inputs = adapter.prepare(images, question, clip=clip)
    prepared = Prepared(Sample("a"), question, inputs, (), Seconds())
    (encoded,) = answer.encode(adapter, [prepared], signals=reads_tower(pruner))
    loop = loop_for(
        adapter,
        pruner,
        rules(adapter, max_new_tokens=STEPS, stop=False),
        keep_logits=True,
        decode="simple",
        retries=False,
    )
    (finished,) = run(loop, answer.prune(adapter, pruner, [encoded]))
    assert isinstance(encoded, Encoded)
    return finished.request.kept, finished.answer.logits, inputs.words


def generated(model, inputs, **options):
    """(sequences, logits (B, STEPS, V)) of plain `generate`."""
    return generated_by_library(model, STEPS, **inputs, **options)


def methods_for(adapter) -> list:
    """Every method that runs on a model, with a small budget."""
    found = []
    for name, method in PRUNERS.items():
        if method is not None:
            pruner = build_pruner(name, {"keep": "40%"})
            with suppress(UsageError):
                check_method(adapter, pruner)
                found.append(pruner)
    return found


def test_every_method_answers_as_the_engine_does(both):
    inputs = both.inputs(picture(2, 150, 60))
    dense, _ = generated(both.model, inputs)
    methods = methods_for(both.adapter)
    assert len(methods) >= 8
    changed = 0
    for pruner in methods:
        kept, logits, words = by_engine(both.adapter, pruner, picture(2, 150, 60))
        with pruner(both.model) as block:
            sequences, ours = generated(both.model, inputs)
        assert block.kept == [kept] and block.words == [words], pruner
        assert (ours[0] - logits).abs().max() < 1e-4, pruner
        assert torch.equal(sequences[:, :-STEPS], inputs["input_ids"])
        assert block.counts[0].kept == len(kept[-1].tokens) < block.counts[0].visual or not kept
        changed += not torch.equal(sequences, dense)
    assert changed
    assert torch.equal(generated(both.model, inputs)[0], dense), "the block left something behind"


def test_several_images_answer_as_the_engine_does(both):
    images = [picture(2, 150, 60), picture(5, 60, 100), picture(6, 90, 90)]
    for name in ("trimtokenator", "fastv"):
        pruner = build_pruner(name, {"keep": "40%"})
        kept, logits, _ = by_engine(both.adapter, pruner, *images)
        with pruner(both.model) as block:
            _, ours = generated(both.model, both.inputs(*images))
        assert block.kept == [kept]
        assert (ours[0] - logits).abs().max() < 1e-4


@pytest.mark.parametrize("both", sorted(VIDEO_FAMILIES), indirect=True)
def test_a_video_is_one_video_with_one_budget(both):
    for count in (1, 5):
        clip = clip_of(count)
        for name in ("trimtokenator", "pyramiddrop"):
            pruner = build_pruner(name, {"keep": "40%"})
            kept, logits, words = by_engine(both.adapter, pruner, clip=clip)
            with pruner(both.model) as block:
                _, ours = generated(both.model, both.inputs(clip=clip))
            assert (block.kept, block.words) == ([kept], [words])
            assert (ours[0] - logits).abs().max() < 1e-4
    if "video_grid_thw" in (inputs := both.inputs(clip=clip)):
        inputs |= {"input_ids": torch.cat([inputs["input_ids"]] * 2, 1), "attention_mask": None}
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"]] * 2, 1)
        with pruner(both.model), pytest.raises(UsageError, match="show one video in a prompt"):
            both.model(**inputs)
    if both.adapter.preprocessor.mixes:
        kept, logits, _ = by_engine(both.adapter, pruner, picture(3), clip=clip)
        with pruner(both.model) as block:
            _, ours = generated(both.model, both.inputs(picture(3), clip=clip))
        assert block.kept == [kept] and (ours[0] - logits).abs().max() < 1e-4


def test_keep_all_is_plain_generate(both):
    inputs = both.inputs(picture(1, 100, 80))
    plain, want = generated(both.model, inputs)
    for pruner in (TrimTokenator(keep="all"), TrimTokenator(keep=9999), None):
        with pruned(both.model, pruner) as block:
            sequences, logits = generated(both.model, inputs)
        assert torch.equal(sequences, plain) and (logits - want).abs().max() < 1e-4
        assert block.counts[0].kept == block.counts[0].visual > 0


def test_beams_that_keep_all_are_plain_beams(both):
    """Rows change places in the cache between steps, under each family's own positions."""
    inputs = both.inputs(picture(1, 100, 80))
    options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    want = both.model.generate(**inputs, **options)
    with pruned(both.model, None):
        assert torch.equal(both.model.generate(**inputs, **options), want)


def batch_of(both, images, questions, side="left"):
    """A padded batch as the processor makes it."""
    processor = both.adapter.processor
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    processor.tokenizer.padding_side = side
    bos = processor.tokenizer.bos_token
    return dict(
        processor(
            text=texts,
            images=[[image] for image in images],
            return_tensors="pt",
            padding=True,
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_answers_as_its_singles(both, side):
    """Also where the images, and so the prompts, are of unequal size."""
    images = [picture(1, 100, 80), picture(2, 100, 80), picture(3, 40, 170)]
    questions = ["Why?", "What is this, and what is it for?", QUESTION]
    inputs = batch_of(both, images, questions, side)
    pruner = TrimTokenator(keep="40%")
    with pruner(both.model) as block:
        _, together = generated(both.model, inputs)
    assert block.words == questions and len(block.counts) == 3
    for image, question, kept, got in zip(images, questions, block.kept, together, strict=True):
        want, logits, _ = by_engine(both.adapter, pruner, image, question=question)
        assert kept == want and (got - logits).abs().max() < 1e-4


def test_methods_inside_the_decoder_take_a_batch_of_equal_prompts_and_refuse_others(llava):
    images = [picture(1), picture(2)]
    fastv = build_pruner("fastv", {"keep": "40%"})
    with fastv(llava.model) as block:
        _, together = generated(llava.model, batch_of(llava, images, [QUESTION, QUESTION]))
        for image, kept, got in zip(images, block.kept, together, strict=True):
            want, logits, _ = by_engine(llava.adapter, fastv, image)
            assert kept == want and (got - logits).abs().max() < 1e-4
        with pytest.raises(UsageError, match="generate their answers one by one"):
            generated(llava.model, batch_of(llava, images, [QUESTION, "Why?"]))


def test_beams_and_several_sampled_answers_follow_the_pruned_prompt(llava):
    """The oracle is `generate` itself, which is given the pruned rows in place of token ids."""
    pruner = TrimTokenator(keep=9)
    inputs = llava.inputs(picture(1))
    prepared = llava.adapter.prepare([picture(1)], QUESTION)
    (encoded,) = answer.encode(
        llava.adapter, [Prepared(Sample("a"), QUESTION, prepared, (), Seconds())]
    )
    rows = answer.prune(llava.adapter, pruner, [encoded])[0].prompt.embeds[None].clone()
    for options in ({"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}):
        torch.manual_seed(5)
        want = llava.model.generate(
            inputs_embeds=rows,
            attention_mask=torch.ones(rows.shape[:2]),
            max_new_tokens=9,
            **options,
        )
        torch.manual_seed(5)
        with pruner(llava.model):
            got = llava.model.generate(**inputs, max_new_tokens=9, **options)
        assert torch.equal(got[:, inputs["input_ids"].shape[1] :], want)
        assert torch.equal(got[0, : inputs["input_ids"].shape[1]], inputs["input_ids"][0])


@pytest.mark.parametrize("method", ["trimtokenator", "fastv", "pyramiddrop"])
def test_a_model_under_eager_attention_answers_the_same(llava, method):
    pruner = build_pruner(method, {"keep": 9})
    kept, logits, _ = by_engine(llava.adapter, pruner, picture(1))
    eager = AutoModelForImageTextToText.from_pretrained(
        llava.model.name_or_path, attn_implementation="eager"
    )
    with pruner(eager) as block:
        _, ours = generated(eager, llava.inputs(picture(1)))
    assert block.kept == [kept] and (ours[0] - logits).abs().max() < 1e-4
    eager.set_attn_implementation("flex_attention")
    with pytest.raises(UsageError, match="set_attn_implementation"):
        pruner(eager)


def test_a_plain_loop_without_generate(llava):
    pruner = TrimTokenator(keep=9)
    kept, logits, _ = by_engine(llava.adapter, pruner, picture(1))
    name = llava.adapter.cache_argument
    with pruner(llava.model) as block:
        out = llava.model(**llava.inputs(picture(1)))
        got = [out.logits[:, -1]]
        for _ in range(STEPS - 1):
            out = llava.model(input_ids=got[-1].argmax(-1)[:, None], **{name: getattr(out, name)})
            got.append(out.logits[:, -1])
    assert block.kept == [kept] and (torch.stack(got, 1)[0] - logits).abs().max() < 1e-4


def test_a_prompt_without_images_runs_in_the_block_too(llava):
    inputs = llava.inputs()
    plain, want = generated(llava.model, inputs)
    with TrimTokenator(keep=9)(llava.model) as block:
        sequences, logits = generated(llava.model, inputs)
    assert torch.equal(sequences, plain) and (logits - want).abs().max() < 1e-4
    assert block.counts[0].visual == 0


def hooks_of(model) -> int:
    return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in model.modules())


@pytest.mark.parametrize("method", ["trimtokenator", "fastv"])
def test_the_model_is_as_it_was_behind_the_block_however_it_ended(llava, method):
    inputs, model = llava.inputs(picture(1)), llava.model
    plain, _ = generated(model, inputs)
    before, hooks = {name: id(value) for name, value in vars(model).items()}, hooks_of(model)
    pruner = build_pruner(method, {"keep": 9})
    for error in (None, KeyError):
        with suppress(KeyError), pruner(model) as block:
            assert "forward" in vars(model)
            generated(model, inputs)
            generated(model, inputs)
            if error:
                raise error
        assert {name: id(value) for name, value in vars(model).items()} == before
        assert hooks_of(model) == hooks
        assert torch.equal(generated(model, inputs)[0], plain)
    with block:  # a block may be entered again
        assert not torch.equal(generated(model, inputs)[0], plain)


def test_a_forward_pass_that_was_set_on_the_model_is_put_back(llava):
    model = llava.model
    model.forward = own = model.forward
    try:
        with TrimTokenator(keep=9)(model):
            assert model.forward is not own
        assert vars(model)["forward"] is own
    finally:
        del model.forward


def test_blocks_do_not_nest(llava):
    with TrimTokenator(keep=9)(llava.model) as outer:
        for inner in (outer, TrimTokenator(keep=4)(llava.model)):
            with pytest.raises(UsageError, match="pruned already"), inner:
                pass
        generated(llava.model, llava.inputs(picture(1)))
        assert outer.counts[0].kept == 9
    assert "forward" not in vars(llava.model)


WRONG = {
    "a fixed cache": ({"cache_implementation": "static"}, "leave out cache_implementation"),
    "no cache": ({"use_cache": False}, "leave out use_cache=False"),
    "assisted": ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
    "attentions": ({"output_attentions": True}, "does not take output_attentions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_had_is_one_sentence(llava, case):
    options, sentence = WRONG[case]
    with (
        TrimTokenator(keep=9)(llava.model),
        pytest.raises(UsageError, match=sentence),
    ):
        generated(llava.model, llava.inputs(picture(1)), **options)


def test_a_cache_of_another_answer_is_refused(llava):
    inputs, name = llava.inputs(picture(1)), llava.adapter.cache_argument
    with TrimTokenator(keep=9)(llava.model):
        out = llava.model.generate(**inputs, max_new_tokens=2, return_dict_in_generate=True)
        again = inputs | {"input_ids": out.sequences, name: out[name]}
        again["attention_mask"] = torch.ones_like(out.sequences)
        with pytest.raises(UsageError, match="second question to the same cache"):
            llava.model.generate(**again, max_new_tokens=2)
        used = DynamicCache()
        used.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
        with pytest.raises(UsageError, match="leave out the cache of an earlier answer"):
            llava.model(**inputs | {name: used})
        with pytest.raises(UsageError, match="takes input_ids"):
            llava.model(inputs_embeds=torch.zeros(1, 2, 64))
        with pytest.raises(UsageError, match="no images come with it"):
            llava.model(input_ids=inputs["input_ids"])
        with pytest.raises(UsageError, match="no number of its 1 images has as many"):
            llava.model(
                **inputs | {"input_ids": inputs["input_ids"][:, :20]} | {"attention_mask": None}
            )
        with pytest.raises(UsageError, match="does not take labels"):
            llava.model(**inputs, labels=inputs["input_ids"])


def test_models_that_cannot_be_pruned_are_named(llava, tmp_path):
    pruner = TrimTokenator(keep=9)
    with pytest.raises(UsageError, match="Linear cannot be pruned: take a model that answers"):
        pruner(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="a compiled model"):
        pruner(torch.compile(llava.model))
    with pytest.raises(UsageError, match="cannot run on this model: it needs"):
        build_pruner("cdpruner", {"keep": 9})(llava.model)
    name, llava.model.config._name_or_path = llava.model.name_or_path, str(tmp_path)
    llava.model.name_or_path = str(tmp_path)
    try:
        with pytest.raises(UsageError, match="pass the one that makes your inputs"):
            pruner(llava.model)
        with pruner(llava.model, llava.adapter.processor) as block:
            generated(llava.model, llava.inputs(picture(1)))
        assert block.counts[0].kept == 9
    finally:
        llava.model.name_or_path = llava.model.config._name_or_path = name


def test_a_model_of_load_model_and_a_model_in_peft_s_wrapper_are_pruned_too(llava):
    peft = pytest.importorskip("peft")
    inputs = llava.inputs(picture(1))
    pruner = TrimTokenator(keep=9)
    kept, logits, _ = by_engine(llava.adapter, pruner, picture(1))
    with pruner(llava.adapter) as block:
        _, ours = generated(llava.adapter.model, inputs)
    assert block.kept == [kept] and (ours[0] - logits).abs().max() < 1e-4
    model = AutoModelForImageTextToText.from_pretrained(llava.model.name_or_path)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config).eval()
    with pruner(wrapped) as block:
        _, moved = generated(wrapped, inputs)
    assert block.counts[0].kept == 9 and (moved[0] - logits).abs().max() > 1e-2


def test_a_prompt_too_long_for_the_model_is_refused(llava):
    block = TrimTokenator(keep=9)(llava.model)
    block.adapter.num_positions = 20
    with block, pytest.raises(SampleError, match="the model has 20"):
        generated(llava.model, llava.inputs(picture(1)))


def test_words_in_front_of_the_image_are_the_question_where_none_stand_behind(llava):
    processor = llava.adapter.processor
    for text, words in (
        ("USER: Is this red? <image> ASSISTANT:", "Is this red?"),
        ("USER: Look. <image>\nIs this red? ASSISTANT:", "Is this red?"),
        ("<image> Is this red?", "Is this red?"),
        ("<image>", ""),
    ):
        inputs = processor(text=[text], images=[picture(1)], return_tensors="pt")
        with TrimTokenator(keep=9)(llava.model) as block:
            generated(llava.model, inputs)
        assert block.words == [words]
        assert block.counts[0].kept == 9
