"""The question in a prompt of which only the token ids are known, and in a chat's last turn."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.test_walls import ROOT
from trimtok_cli.models.families.llava import LlavaPreprocessor
from trimtok_cli.models.question import Question

IMAGE = {"type": "image"}


def words(text):
    return {"type": "text", "text": text}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(text):
    return {"role": "assistant", "content": [words(text)]}


ASKED, ANSWERED = user(IMAGE, words("How many are there?")), assistant("Three.")

CHATS = {
    "behind the image": ([ASKED], "How many are there?"),
    "behind an instruction of the system": (
        [{"role": "system", "content": [words("Be brief.")]}, ASKED],
        "How many are there?",
    ),
    "in a later turn without an image": (
        [ASKED, ANSWERED, user(words("What color is it?"))],
        "What color is it?",
    ),
    "in a later turn with one": (
        [ASKED, ANSWERED, user(IMAGE, words("And here?"))],
        "And here?",
    ),
    "in the last of three turns": (
        [ASKED, ANSWERED, user(words("Is it red?")), assistant("No."), user(words("Why?"))],
        "Why?",
    ),
    "behind a turn of words alone": (
        [user(words("Hello")), assistant("Hello."), ASKED],
        "How many are there?",
    ),
    "nowhere": ([ASKED, ANSWERED, user(IMAGE)], ""),
}


@pytest.fixture(scope="module")
def preprocessor():
    processor = AutoProcessor.from_pretrained(ROOT / "samples" / "demo" / "model")
    return LlavaPreprocessor(processor, "demo")


def found(preprocessor, text):
    """The ids of a prompt (S,), and the rows of its question."""
    tokenizer, image = preprocessor.processor.tokenizer, preprocessor.processor.image_token
    ids = torch.tensor(tokenizer(text).input_ids)
    is_visual = ids == tokenizer.convert_tokens_to_ids(image)
    return ids, Question(preprocessor).rows(ids, is_visual)


@pytest.mark.parametrize("where", CHATS)
def test_the_question_of_a_chat_is_what_its_last_turn_asks(preprocessor, where):
    chat, question = CHATS[where]
    ids, rows = found(preprocessor, preprocessor.apply_template(chat))
    assert preprocessor.processor.tokenizer.decode(ids[rows]) == question


def test_one_question_has_the_tokens_that_its_author_is_known_to_have_written(preprocessor):
    lines = (ROOT / "samples" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["text"] for line in lines]
    assert len(questions) == 40
    for question in questions:
        inputs = preprocessor.prepare([Image.new("RGB", (8, 8))], question)
        ids, rows = found(preprocessor, inputs.text)
        assert ids[rows].tolist() == inputs.input_ids[inputs.instruction].tolist(), question
