"""Questions with several images: placeholders, the rows of the user's words, system prompts."""

import pytest
from transformers import AutoTokenizer

from tests.conftest import picture
from tests.support.families import FAMILIES
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models.chat import (
    MEDIA,
    PromptText,
    hide_marks,
    message_parts,
    token_rows,
    with_replacements,
    write_prompt,
)
from trimtok_cli.models.loading import load_model


def test_placeholders_say_where_images_go():
    def kinds(*given):
        return [part.get("text", part["type"]) for part in message_parts(*given)]

    assert kinds("Why?", 2, False) == ["image", "image", "Why?"]
    assert kinds("Why?", 1, True) == ["image", "video", "Why?"]
    assert kinds("A <image> and <image>", 2, False) == ["A ", "image", " and", "image"]
    assert kinds("<video> or <image>?", 1, True) == ["video", "or ", "image", "?"]
    assert kinds("a <video>", 1, True) == ["image", "a", "video"]
    assert kinds(" <image>\nWhat is <image> <image> here? \n", 3, False) == [
        "image",
        "What is ",
        "image",
        " ",
        "image",
        " here?",
    ]
    assert kinds(" <image> \n", 1, False) == ["image"] and kinds(" \n ", 1, False) == ["image"]
    for question, images, video, says in (
        ("<image><image>", 1, False, "2 <image>"),
        ("<video>", 0, False, "1 <video>"),
    ):
        with pytest.raises(SampleError, match=says):
            message_parts(question, images, video)


@pytest.fixture(scope="module", params=["llava_next", "qwen2_vl", "internvl", "idefics3", "gemma3"])
def family(request, tmp_path_factory):
    return load_model(
        str(FAMILIES[request.param](tmp_path_factory.mktemp("chat") / request.param)), device="cpu"
    )


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
    content = [
        {"type": "text", "text": "A "},
        {"type": "image"},
        {"type": "text", "text": " b"},
        {"type": "image"},
    ]
    text = family.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert family.prepare(images, "A <image> b <image>").text == text


def test_instruction_rows_of_words_that_also_stand_in_the_template(llava_folder):
    tokenizer = AutoTokenizer.from_pretrained(llava_folder)

    def template(chat):
        words = "".join(part.get("text", "<image>\n") for part in chat[0]["content"])
        return f"USER: {words} ASSISTANT:"

    def said(*texts):
        content = [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]
        prompt = hide_marks(
            write_prompt(template, [{"role": "user", "content": content}]), ["<image>"]
        )
        prompt = with_replacements(prompt, [{"span": (6, 13), "replacement": "<image>" * 5}])
        coded = tokenizer(prompt.text, return_tensors="pt", return_offsets_mapping=True)
        kept, rows = token_rows(prompt, coded.input_ids[0], coded.offset_mapping[0], [4])
        assert (
            kept.tolist() == list(range(len(coded.input_ids[0])))
            and (coded.input_ids[0] == 4).sum() == 5
        )
        return tokenizer.decode(coded.input_ids[0][rows]), rows.tolist()

    first = len("<s>") - 2 + len("USER: ") + 5 + len("\n")
    for words in ("USER", "USER: ", "ASSISTANT:", ":", "a"):
        assert said(words) == (words, list(range(first, first + len(words))))
    assert said() == said("") == ("", [])


def test_words_that_a_template_shows_twice_or_changes_or_leaves_out_are_found_and_a_whim_of_it_is_refused():
    def whole(apply, text):
        return write_prompt(apply, [{"role": "user", "content": [{"type": "text", "text": text}]}])

    def text_of(chat):
        return chat[0]["content"][0]["text"]

    assert whole(lambda chat: f"<{text_of(chat)}|{text_of(chat)}>", "a|b") == PromptText(
        "<a|b|a|b>", "tuuutuuut"
    )
    assert whole(lambda chat: f"[{text_of(chat).strip().upper()}]", " ab ") == PromptText(
        "[AB]", "tuut"
    )
    assert whole(lambda chat: "[]", "ab") == PromptText("[]", "tt")
    with pytest.raises(SampleError, match="ask otherwise"):
        whole(lambda chat: "long" if len(text_of(chat)) > 3 else f"[{text_of(chat)}]", "abcdef")


def test_a_part_of_a_prompt_is_replaced_and_stays_its_authors():
    prompt = PromptText("a<i>b", "utttu").spliced([(1, 4, "<i><i>", MEDIA)])
    assert (
        prompt == PromptText("a<i><i>b", "ummmmmmu")
        and prompt.has_user(0, 2)
        and not prompt.has_user(1, 7)
    )


def test_a_checkpoint_without_a_chat_template_is_refused_with_a_sentence(family):
    kept = family.processor.chat_template
    try:
        family.processor.chat_template = None
        with pytest.raises(ModelError, match="has no chat template"):
            type(family)(family.model, family.processor, name="x", revision="")
    finally:
        family.processor.chat_template = kept
