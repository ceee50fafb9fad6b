"""Questions with several images: placeholders where the user put them, the user's own words found again, system prompts."""

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import picture
from tests.families import FAMILIES
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models import load_model
from trimtok_cli.models.chat import instruction_rows, message_parts


def test_placeholders_say_where_images_go():
    kinds = lambda *given: [part.get("text", part["type"]) for part in message_parts(*given)]  # noqa: E731
    assert kinds("Why?", 2, False) == ["image", "image", "Why?"]
    assert kinds("Why?", 1, True) == ["image", "video", "Why?"]
    assert kinds("A <image> and <image>", 2, False) == ["A", "image", "and", "image"]
    assert kinds("<video> or <image>?", 1, True) == ["video", "or", "image", "?"]
    assert kinds("a <video>", 1, True) == ["image", "a", "video"]
    for question, images, video, says in (("<image><image>", 1, False, "2 <image>"), ("<video>", 0, False, "1 <video>")):
        with pytest.raises(SampleError, match=says):
            message_parts(question, images, video)


@pytest.fixture(scope="module", params=["llava_next", "qwen2_vl", "internvl", "idefics3", "gemma3"])
def family(request, tmp_path_factory):
    return load_model(str(FAMILIES[request.param](tmp_path_factory.mktemp("chat") / request.param)), device="cpu")


def test_the_users_words_are_found_in_front_between_and_behind_images(family):
    images = [picture(1, 100, 80), picture(2, 60, 90)]
    decode = family.processor.tokenizer.decode
    for question, words in (
        ("First <image> then <image> which?", "First then which?"),
        ("<image> against <image>", "against"),
        ("All of it first: <image><image>", "All of it first:"),
        ("Plain?", "Plain?"),
    ):
        inputs = family.prepare(images, question, system="Plain words, first and then.")
        found = decode(inputs.input_ids[inputs.instruction])
        assert found.replace(" ", "").replace("\n", "") == words.replace(" ", ""), question
        assert "Plain words" in inputs.text


def test_placeholders_give_what_the_library_gives(family):
    images = [picture(1, 100, 80), picture(2, 60, 90)]
    content = [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"}]
    text = family.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert family.prepare(images, "A <image> b <image>").text == text


def test_instruction_rows_of_words_that_also_stand_in_the_template(llava_folder):
    tokenizer = AutoTokenizer.from_pretrained(llava_folder)
    text = "USER: <image>\nUSER ASSISTANT:"
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    grown = torch.cat([ids[:7], ids[7:8].repeat(5), ids[8:]])
    rows = instruction_rows(tokenizer, text, ["USER"], grown)
    assert tokenizer.decode(grown[rows]) == "USER" and int(rows[0]) > 10
    assert instruction_rows(tokenizer, text, [], grown).tolist() == []
    assert instruction_rows(tokenizer, text, ["not there"], grown).tolist() == []


def test_a_checkpoint_without_a_chat_template_is_refused_with_a_sentence(family):
    kept = family.processor.chat_template
    try:
        family.processor.chat_template = None
        with pytest.raises(ModelError, match="has no chat template"):
            type(family)(family.model, family.processor, name="x", revision="")
    finally:
        family.processor.chat_template = kept
