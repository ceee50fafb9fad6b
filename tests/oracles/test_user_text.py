"""A user's text is text: tokenized as the library does it, its marks are characters, no word is lost.

Runs on tokenizers that merge characters as those of real checkpoints do, and on the tiny models of
every family.
"""

import pickle
import re
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import CLIPConfig, CLIPModel

from tests.conftest import picture
from tests.oracles.test_families import clip_of
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.real_like import BUILDERS, preprocessor
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import SampleError
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.vision.clip_text import ClipText
from trimtok_cli.prepare.sample import Ask

MARKS = [
    "<image>",
    "<video>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
    "<image_soft_token>",
    "<start_of_image>",
    "<end_of_image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<end_of_utterance>",
    "<|pad|>",
    "[INST]",
    "[/INST]",
    "<tool_call>",
    "<table>",
]
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
PICTURE = picture(1, 60, 60)

characters = st.characters(exclude_categories=("Cs",))
ordinary = st.text(characters, max_size=40) | st.lists(
    st.sampled_from(
        [
            "a",
            "the image",
            "USER:",
            "assistant",
            "\n",
            "  ",
            "\n\n",
            " ",
            "\u2581",
            "<",
            ">",
            "|",
            "🎉",
            "图",
            "e\u0301",
            "\ue000",
        ]
    )
).map("".join)
quoting = st.lists(
    st.sampled_from([mark for mark in MARKS if mark not in ("<image>", "<video>")])
    | st.sampled_from(
        ["<", "<|", "|>", "im_start", "s>", " ", "\n", "a", "word", "\ue000", "é", "["]
    ),
    min_size=1,
    max_size=8,
).map("".join)

every_processor = pytest.mark.parametrize("name", sorted(BUILDERS))


def of_the_library(found, question, system=""):
    """The ids and the text of the library's own way, all in one call."""
    content = [
        {"type": "image", "image": PICTURE},
        *([{"type": "text", "text": question}] if question else []),
    ]
    chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    chat.append({"role": "user", "content": content})
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    return found.processor.apply_chat_template(chat, tokenize=True, **options)["input_ids"][0]


def marks(found):
    return [token.content for token in found.processor.tokenizer.added_tokens_decoder.values()]


@every_processor
@FAST
@given(question=ordinary, system=ordinary)
def test_ordinary_words_are_tokenized_as_the_library_does_it(name, question, system):
    found = preprocessor(name)
    spoken = [mark for mark in marks(found) if re.search(r"\w", mark)]
    assume(
        not any(
            mark in text for mark in [*spoken, "<image>", "<video>"] for text in (question, system)
        )
    )
    inputs = found.prepare([PICTURE], question, system=system)
    assert inputs.input_ids.tolist() == of_the_library(found, question.strip(), system).tolist()
    assert inputs.words == question.strip()


def pieces(found, ids):
    """The bytes that each token was made of."""
    tokenizer, alphabet = found.processor.tokenizer, bytes_of_letters()
    added = tokenizer.added_tokens_decoder
    for id in ids.tolist():
        token = tokenizer.convert_ids_to_tokens(id)
        if id in added:
            yield token.encode()
        elif re.fullmatch("<0x[0-9A-F]{2}>", token):
            yield bytes([int(token[3:5], 16)])
        elif "\u2581" in tokenizer.get_vocab():
            yield token.replace("\u2581", " ").encode()
        else:
            yield bytes(alphabet[letter] for letter in token)


def bytes_of_letters():
    """The letters that byte-level tokenizers write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


BEHIND = {
    "llava": " ASSISTANT:",
    "qwen2_vl": "<|im_end|>\n<|im_start|>assistant\n",
    "llava_onevision": "<|im_end|><|im_start|>assistant\n",
    "gemma3": "<end_of_turn>\n<start_of_turn>model\n",
    "idefics3": "<end_of_utterance>\nAssistant:",
}


@every_processor
@FAST
@given(question=ordinary | quoting)
def test_instruction_rows_are_those_whose_bytes_are_the_users(name, question):
    """The oracle counts bytes from the end of the prompt, where the template's words are known."""
    found = preprocessor(name)
    assume("<image>" not in question and "<video>" not in question and "<unk>" not in question)
    inputs = found.prepare([PICTURE], question)
    made, words = list(pieces(found, inputs.input_ids)), question.strip()
    assume(
        "\u2581" not in words and unicodedata.normalize("NFC", words) == words
    )  # what the tokenizers themselves change
    stop = len(b"".join(made)) - len(BEHIND[name].encode())
    start, at, rows = stop - len(words.encode()), 0, []
    assert b"".join(made)[start:stop].decode() == words
    for row, piece in enumerate(made):
        if at < stop and at + len(piece) > start and words:
            rows.append(row)
        at += len(piece)
    assert inputs.instruction.tolist() == rows
    assert not torch.isin(
        inputs.input_ids[inputs.instruction], torch.tensor(image_ids(found))
    ).any()


def image_ids(found):
    return [found.processor.tokenizer.convert_tokens_to_ids(found.processor.image_token)]


@every_processor
@FAST
@given(question=quoting, system=quoting)
def test_marks_in_a_users_text_become_no_marks(name, question, system):
    """The question's marks as many as none, at the same places of the template: ids that are no
    characters' are counted.
    """
    found = preprocessor(name)
    assume(question.strip() and "<image>" not in question and "<video>" not in question)
    special = {
        found.processor.tokenizer.convert_tokens_to_ids(mark)
        for mark in marks(found)
        if re.search(r"\w", mark)
    }
    special -= {found.processor.tokenizer.unk_token_id}

    def count(inputs):
        return Counter(id for id in inputs.input_ids.tolist() if id in special)

    plain, quoted = (
        found.prepare([PICTURE], "x", system="y"),
        found.prepare([PICTURE], question, system=system + "<image></s>"),
    )
    assert count(quoted) == count(plain)
    assert quoted.input_ids.shape[-1] == quoted.tensors["attention_mask"].shape[-1]
    said = b"".join(pieces(found, quoted.input_ids)).decode()
    assert (system + "<image></s>").strip() in said or "<unk>" in system
    assert question.strip() in quoted.text and quoted.words == question.strip()


@every_processor
@pytest.mark.parametrize(
    "question",
    [
        "a",
        "assistant",
        "model",
        "user",
        "USER",
        ":",
        "ASSISTANT:",
        "<|im_start|>user\n",
        "system",
        "<",
    ],
)
def test_words_of_the_template_are_the_users_where_the_user_says_them(name, question):
    inputs = preprocessor(name).prepare([PICTURE], question, system=question)
    said = preprocessor(name).processor.tokenizer.decode(inputs.input_ids[inputs.instruction])
    assert said.strip() == question.strip()
    assert inputs.instruction.tolist() == list(
        range(int(inputs.instruction[0]), int(inputs.instruction[-1]) + 1)
    )
    system = preprocessor(name).prepare([PICTURE], "q", system=question).instruction
    assert len(system) == 1


@every_processor
def test_words_on_both_sides_of_a_place_keep_their_blanks(name):
    found = preprocessor(name)
    inputs = found.prepare([PICTURE], "What is <image> here?")
    content = [
        {"type": "text", "text": "What is "},
        {"type": "image"},
        {"type": "text", "text": " here?"},
    ]
    text = found.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert inputs.text == text and inputs.words == "What is here?"
    rows = inputs.input_ids[inputs.instruction]
    assert found.processor.tokenizer.decode(rows).split() in (
        ["What", "is", "here?"],
        ["What", "ishere?"],
    )
    assert "ishere" not in text or name == "gemma3", (
        "only a template that trims its words may glue them, in another place"
    )


@every_processor
@FAST
@given(
    parts=st.lists(
        st.sampled_from([" a ", "b", "\nc d\n", " ", "", "assistant", " <"]), min_size=3, max_size=3
    )
)
def test_around_several_places_every_word_is_found_in_its_order(name, parts):
    found = preprocessor(name)
    inputs = found.prepare([PICTURE, picture(2, 50, 60)], "<image>".join(parts))
    said = found.processor.tokenizer.decode(inputs.input_ids[inputs.instruction])
    assert "".join(said.split()) == "".join("".join(parts).split())
    assert not torch.isin(
        inputs.input_ids[inputs.instruction], torch.tensor(image_ids(found))
    ).any()
    assert [visual.size for visual in inputs.visuals] == [(60, 60), (50, 60)]


def test_what_is_shown_is_told_in_the_order_of_the_template():
    """OneVision's template puts images in front of a video, whatever the question says."""
    found = preprocessor("llava_onevision")
    inputs = found.prepare(
        [PICTURE, picture(2, 50, 60)], "<video>, <image> or <image>?", clip=clip_of(2)
    )
    assert [visual.kind for visual in inputs.visuals] == ["image", "image", "video"]
    assert [visual.size for visual in inputs.visuals][:2] == [(60, 60), (50, 60)]
    tokenizer = found.processor.tokenizer
    first = [tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "<video>")]
    ids = inputs.input_ids.tolist()
    assert ids.index(first[0]) < ids.index(first[1])


@every_processor
def test_a_preprocessor_that_was_used_goes_to_other_processes(name):
    found = preprocessor(name)
    there = pickle.loads(pickle.dumps(found))
    for question in ("What?", "</s> <|im_end|> <end_of_turn>"):
        one, other = found.prepare([PICTURE], question), there.prepare([PICTURE], question)
        assert (
            one.input_ids.tolist() == other.input_ids.tolist()
            and one.instruction.tolist() == other.instruction.tolist()
        )


@every_processor
def test_half_a_character_is_a_sentence(name):
    with pytest.raises(SampleError, match="half a character"):
        preprocessor(name).prepare([PICTURE], "so \ud83d what")


def test_a_mark_that_a_tokenizer_makes_out_of_other_characters_is_refused(monkeypatch):
    found = preprocessor("qwen2_vl")
    monkeypatch.setattr(
        found,
        "_marks",
        found._marks | {"a word": found.processor.tokenizer.convert_tokens_to_ids("What")},
    )
    with pytest.raises(SampleError, match="write it otherwise"):
        found.prepare([PICTURE], "What?")


@pytest.fixture(scope="module", params=sorted([*FAMILIES, "llava", "pixtral"]))
def family(request, tmp_path_factory):
    builders = FAMILIES | {"llava": tiny.llava, "pixtral": tiny.pixtral}
    return load_model(
        str(builders[request.param](tmp_path_factory.mktemp("text") / request.param)), device="cpu"
    )


def test_no_mark_in_a_question_ends_a_run_or_fails(family, tmp_path):
    """Every special token of the checkpoint and of others, alone, doubled and within another, in a
    batch with a plain question.
    """
    picture(1, 60, 80).save(tmp_path / "p.png")
    known = [
        mark
        for mark in dict.fromkeys([*marks(family.preprocessor), *MARKS])
        if mark not in ("<image>", "<video>")
    ]
    questions = [
        "plain?",
        "".join(known),
        *(f"{mark}{mark} <{mark}> a{mark[:-1]}{mark}" for mark in known[:60]),
    ]
    samples = [
        Sample(i, (tmp_path / "p.png",), question=question) for i, question in enumerate(questions)
    ]
    ask = Ask(max_new_tokens=1, system="".join(known) + "<image><video>")
    results = list(answer_all(family, None, samples, ask, batch_size=8))
    assert [result.error for result in results] == [""] * len(questions)
    assert len({result.tokens.visual for result in results}) == 1
    long = [len(result.question) for result in results]
    assert [result.tokens.text - results[0].tokens.text for result in results] == [
        n - long[0] for n in long
    ]


def test_marks_without_their_pictures_fail_alone(family, tmp_path):
    picture(1, 60, 80).save(tmp_path / "p.png")
    questions = ["plain?", "<image> <image>", "see <video>", "What is <image> here?"]
    samples = [
        Sample(i, (tmp_path / "p.png",), question=question) for i, question in enumerate(questions)
    ]
    results = list(answer_all(family, None, samples, Ask(max_new_tokens=1), batch_size=4))
    assert [bool(result.error) for result in results] == [False, True, True, False]
    assert (
        "2 <image> placeholders for 1 images" in results[1].error
        and "1 <video>" in results[2].error
    )


def test_clip_reads_the_question_alone_and_no_mark_in_it(tmp_path, monkeypatch):
    """What the text tower beside a LLaVA is given: no request for a short answer, one start, and no
    end within the question.
    """
    config = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = tiny.tokenizer()
    text = config | {
        "vocab_size": len(words),
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=config | {"image_size": 28, "patch_size": 14})
    ).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    clip, given = ClipText(str(tmp_path), torch.device("cpu")), []
    read = clip.clip.get_text_features
    monkeypatch.setattr(
        clip.clip, "get_text_features", lambda ids: given.append(ids[ids > 0].tolist()) or read(ids)
    )
    asked = (
        "Why?",
        "Why?\nAnswer the question using a single word or phrase.",
        "</s><image>Why</s>",
        "</s>" * 50,
    )
    for question in asked:
        with torch.inference_mode():
            clip.relevance(torch.randn(4, 24), question)
    spelled = [
        [1, *(words.convert_tokens_to_ids(letter) for letter in said)]
        for said in ("Why?", "Why?", asked[2], asked[3])
    ]
    assert given == spelled
