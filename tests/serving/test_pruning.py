"""Images that another engine encoded, pruned as trimtok's own loop prunes them in a prompt."""

import pytest
import torch
from transformers import AutoProcessor

from tests.conftest import picture
from tests.test_walls import ROOT
from trimtok_cli import TrimTokenator
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.engine import answer
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models.families.llava import LlavaPreprocessor
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Prepared
from trimtok_cli.pruners.registry import PRUNERS, build_pruner
from trimtok_cli.serving.pruning import Words, check_served, prune
from trimtok_cli.serving.template import served_template

# The methods that a server runs, and why it does not run the others as they are by default.
SERVED = {
    "dense": "",
    "trimtokenator": "",
    "divprune": "",
    "divprune-star": "",
    "random": "",
    "uniform": "",
    "tome-projected": "",
    "cdpruner": "of the vision tower",
    "visionzip": "of the vision tower",
    "vispruner": "of the vision tower",
    "prumerge": "of the vision tower",
    "tome": "of the vision tower",
    "fastv": "inside the language model",
    "sparsevlm": "inside the language model",
    "pyramiddrop": "inside the language model",
    "vtw": "inside the language model",
}
QUESTIONS = ("Is it red?", "What is to the left of the circle?", "")


@pytest.fixture(scope="module")
def adapter(llava_folder):
    return load_model(str(llava_folder), device="cpu")


def test_the_table_has_every_method():
    assert SERVED.keys() == PRUNERS.keys()


@pytest.mark.parametrize("name", SERVED)
def test_a_method_is_served_or_refused_with_its_reason(name):
    pruner = build_pruner(name, {"keep": 9})
    if SERVED[name]:
        with pytest.raises(UsageError, match=f"--method {name} .*{SERVED[name]}.*use a method"):
            check_served(pruner)
    else:
        check_served(pruner)
        assert (pruner is None) == (name == "dense")


def test_budgets_that_images_share_are_refused():
    with pytest.raises(UsageError, match="--budget tokens"):
        check_served(TrimTokenator(keep=9, budget="tokens"))


@pytest.mark.parametrize("name", [name for name in SERVED if name != "dense" and not SERVED[name]])
@pytest.mark.parametrize("keep", [9, "11%", 1, 100])
def test_each_image_is_left_with_what_the_engine_leaves_of_it(adapter, name, keep):
    pruner = build_pruner(name, {"keep": keep})
    samples = [adapter.prepare([picture(i)], text) for i, text in enumerate(QUESTIONS)]
    tokens = adapter.encode_many(samples, signals=False)
    prepared = [
        Prepared(Sample("a"), text, inputs, (), Seconds())
        for text, inputs in zip(QUESTIONS, samples, strict=True)
    ]
    (image_id,) = adapter.placeholder_ids
    read = Words(pruner, adapter.preprocessor, image_id)
    # vLLM's prompt has one placeholder for an image.
    short = [adapter.processor.tokenizer(inputs.text).input_ids for inputs in samples]
    words = [None if (ids := read(each)) is None else torch.tensor(ids) for each in short]
    left = prune(pruner, [each.embeds for each in tokens], words, adapter.embed_ids)
    requests = answer.prune(adapter, pruner, answer.encode(adapter, prepared, signals=False))
    assert len(left) == len(requests) == 3
    for rows, request in zip(left, requests, strict=True):
        prompt = request.prompt
        assert torch.equal(rows, prompt.embeds[prompt.visual])
        assert len(rows) == pruner.keep.count(36)


@pytest.fixture(scope="module")
def demo():
    processor = AutoProcessor.from_pretrained(ROOT / "samples" / "demo" / "model")
    return LlavaPreprocessor(processor, "demo")


def test_words_are_the_questions_or_all_text_or_none(demo):
    tokenizer = demo.processor.tokenizer
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    prompt = tokenizer("USER: <image>\nIs it red? ASSISTANT:").input_ids
    text = [id for id in prompt if id != image_id]
    question = Words(TrimTokenator(keep=9), demo, image_id)(prompt)
    assert tokenizer.decode(question) == "Is it red?" and len(question) < len(text)
    assert Words(TrimTokenator(keep=9, text="prompt"), demo, image_id)(prompt) == tuple(text)
    silent = tokenizer("USER: <image>\n ASSISTANT:").input_ids
    whole = tuple(id for id in silent if id != image_id)
    assert Words(TrimTokenator(keep=9), demo, image_id)(silent) == whole
    assert Words(build_pruner("uniform", {"keep": 9}), demo, image_id)(prompt) is None
    assert Words(None, demo, image_id)(prompt) is None


def test_a_served_chat_has_the_tokens_of_trimtoks_own_prompt(demo, adapter):
    for preprocessor in (demo, adapter.preprocessor):
        processor = preprocessor.processor
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
        text = processor.apply_chat_template(
            chat, chat_template=served_template(preprocessor), add_generation_prompt=True
        )
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert ids == processor.tokenizer(preprocessor.apply_template(chat)).input_ids
        assert ids[0] == processor.tokenizer.bos_token_id


def test_a_template_that_writes_no_question_is_a_fault_of_the_model(demo, monkeypatch):
    monkeypatch.setattr(demo.processor, "chat_template", "{{ raise_exception('no images') }}")
    with pytest.raises(ModelError, match="does not write this question"):
        served_template(demo)


def test_a_tokenizer_that_adds_more_than_a_start_is_refused(demo, monkeypatch):
    real = demo.processor.tokenizer

    class Ends:
        bos_token, special_tokens_map = real.bos_token, real.special_tokens_map

        def __call__(self, text, add_special_tokens=True):
            encoded = real(text, add_special_tokens=add_special_tokens)
            if add_special_tokens:
                encoded["input_ids"].append(real.eos_token_id)
            return encoded

    monkeypatch.setattr(demo.processor, "tokenizer", Ends())
    with pytest.raises(ModelError, match="demo cannot be served"):
        served_template(demo)
