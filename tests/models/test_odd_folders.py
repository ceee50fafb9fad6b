"""Odd values in the files of a checkpoint: one sentence names the file or the part."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from tests.conftest import picture
from tests.support.families import FAMILIES
from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.media.frames import Clip
from trimtok_cli.models import fitting
from trimtok_cli.models.broken import Broken
from trimtok_cli.models.generation_settings import check_generation
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.registry import ADAPTERS
from trimtok_cli.models.vision.clip_text import ClipText


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def template(value):
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit(folder / "chat_template.json", chat_template=value)

    return change


def weights(change):
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {name: change(name, tensor) for name, tensor in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )

    return changed


def text(**values):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", text_config=config["text_config"] | values)

    return change


def pixels(**values):
    def change(folder: Path) -> None:
        whole = json.loads((folder / "processor_config.json").read_text())
        edit(folder / "processor_config.json", image_processor=whole["image_processor"] | values)

    return change


def mark(text: str):
    """The processor has an image token that the template does not write."""

    def change(folder: Path) -> None:
        edit(folder / "processor_config.json", image_token=text)
        edit(folder / "tokenizer_config.json", image_token=text)

    return change


NESTED = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}x"
FOLDERS = {
    "a number as the template": (template(5), "chat template is a int"),
    "a list as the template": (
        template([{"name": "default", "template": "x"}]),
        "chat template is a list",
    ),
    "a template without end": (template(NESTED), "chat template writes for more than 1 seconds"),
    "no processor, only words": (
        lambda f: edit(
            f / "processor_config.json", processor_class="Unknown", auto_map="evil.Processor"
        ),
        "is only a .*without tokenizer",
    ),
    "another mark than the template's": (
        mark("<picture>"),
        "looks for <picture> in a prompt, which its chat template does not write",
    ),
    "a template that writes no place": (
        lambda f: (f / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
        ),
        "which its chat template does not write",
    ),
    "an assistant": (
        lambda f: edit(f / "generation_config.json", assistant_model="x"),
        r"its generation_config\.json cannot be read.*assistant",
    ),
    "a compiler": (
        lambda f: edit(f / "generation_config.json", compile_config={"backend": "x"}),
        r"its generation_config\.json cannot be read",
    ),
    "zeros": (
        weights(lambda name, tensor: torch.zeros_like(tensor)),
        r"nothing but zeros in \d+ tensors",
    ),
    "zeros at the end": (
        weights(
            lambda name, tensor: (
                tensor * ("vision" not in name or "layers.2.mlp.fc2.weight" not in name)
            )
        ),
        "nothing but zeros in 1 tensor",
    ),
    "fewer layers than its weights": (
        text(num_hidden_layers=2),
        "says 2 layers, and its weights have 4",
    ),
    "a setting of no kind": (text(max_position_embeddings=None), "max_position_embeddings"),
    "heads that do not fit": (
        text(num_attention_heads=3),
        "not a multiple of the number of attention heads",
    ),
    "two means for three colours": (
        pixels(image_mean=[0.5, 0.5]),
        "image_mean of its image processor",
    ),
    "no deviation": (pixels(image_std=[]), "image_std of its image processor"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_odd_folder_is_one_sentence_that_names_the_part(
    name, tmp_path, llava_folder, monkeypatch
):
    monkeypatch.setattr(fitting, "TEMPLATE_SECONDS", 1)
    folder, (change, words) = tmp_path / "model", FOLDERS[name]
    shutil.copytree(llava_folder, folder)
    change(folder)
    with pytest.raises(ModelError, match=f"cannot be loaded: .*{words}") as found:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(found.value) and len(str(found.value)) < len(str(folder)) + 330


KINDS = [
    *(
        (name, value)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        for value in ("0.7", "high", [1], {}, True)
    ),
    *(
        (name, value)
        for name in ("top_k", "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beams")
        for value in ("5", 1.5, [5], True)
    ),
    *(
        (name, value)
        for name in ("do_sample", "renormalize_logits")
        for value in ("false", 1, [True])
    ),
    *(
        (name, value)
        for name in ("eos_token_id", "forced_bos_token_id")
        for value in ("</s>", 1.5, {}, ["</s>"], True)
    ),
    *(
        (name, value)
        for name in ("suppress_tokens", "bad_words_ids")
        for value in ("x", 5, [["x"]], [True])
    ),
    ("bad_words_ids", [5]),
    ("stop_strings", [1]),
    ("stop_strings", {"a": 1}),
    ("stop_strings", True),
]


def test_a_generation_setting_of_another_kind_is_named_before_the_weights_are_read(
    tmp_path, llava_folder
):
    for name, value in KINDS:
        with pytest.raises(
            Broken,
            match=rf"^its generation_config\.json says {name}: .*, where .* should be; mend the "
            r"file$",
        ):
            check_generation({"do_sample": True, name: value})
    check_generation(
        {
            "temperature": 1,
            "top_k": 50,
            "top_p": None,
            "max_new_tokens": 9.0,
            "eos_token_id": [1, 2],
            "stop_strings": ["a"],
        }
    )
    check_generation(
        {
            "bad_words_ids": [[1], [2, 3]],
            "suppress_tokens": [1],
            "pad_token_id": 0,
            "bos_token_id": 1,
            "unknown": "x",
        }
    )
    folder = tmp_path / "model"
    shutil.copytree(llava_folder, folder)
    edit(folder / "generation_config.json", top_p="0.7")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"says top_p: \"0\.7\", where a number should be"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_processor_looks_for_what_its_template_writes(name, tmp_path):
    """The refusal above relies on this."""
    FAMILIES[name](tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.image_token in fitting._trial_prompt(processor)


BROKEN = {
    "forbidden": "{{ ''.__class__.__mro__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "its own refusal": "{{ raise_exception('no images') }}",
    "a division": "{{ 1 / 0 }}",
    "a lookup": "{{ messages[9]['content'] }}",
    "a type": "{{ 1 + 'a' }}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_cannot_write_a_question_is_named_as_the_one_at_fault(
    name, tmp_path, llava_folder
):
    folder = tmp_path / "model"
    shutil.copytree(llava_folder, folder)
    (folder / "chat_template.jinja").write_text(BROKEN[name])
    adapter = load_model(str(folder), device="cpu")
    with pytest.raises(SampleError, match=r"the chat template of .* does not write this question"):
        adapter.prepare([picture(1, 60, 60)], "What is it?")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_that_the_template_leaves_out_fails_its_row_with_a_sentence(
    name, tmp_path, monkeypatch
):
    """The second image, in every family, and the video, where there is a path for it."""
    FAMILIES[name](tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    found = ADAPTERS[name].preprocessing(processor, "the model")
    whole = processor.apply_chat_template
    monkeypatch.setattr(
        processor,
        "apply_chat_template",
        lambda chat, **rest: cut(whole(chat, **rest), processor.image_token, 1),
    )
    with pytest.raises(
        SampleError, match=r"chat template of the model writes 1 places \(.*\) for 2 images"
    ):
        found.prepare([picture(1, 60, 60), picture(2, 60, 60)], "Which?")
    found.prepare([picture(1, 60, 60)], "Which?")
    if found.has_video:
        clip = Clip((picture(1, 60, 60),) * 2, (0.0, 1.0), 2.0, 1.0, "", 60, 60, 2, 0, ())
        found.prepare([], "What?", clip=clip)
        monkeypatch.setattr(
            processor,
            "apply_chat_template",
            lambda chat, **rest: cut(whole(chat, **rest), processor.video_token, 0),
        )
        with pytest.raises(SampleError, match=r"writes 0 places \(.*\) for 1 videos"):
            found.prepare([], "What?", clip=clip)


def cut(text: str, mark: str, count: int) -> str:
    """The text with the first `count` of its marks alone."""
    first, *rest = text.split(mark)
    return first + "".join(mark * (i < count) + each for i, each in enumerate(rest))


def test_a_clip_without_its_tokenizer_is_refused(tmp_path):
    """The library would make a tokenizer without words, to which all questions are the same."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "projection_dim": 32,
    }
    CLIPModel(
        CLIPConfig(text_config=sizes, vision_config=sizes | {"image_size": 28, "patch_size": 14})
    ).save_pretrained(tmp_path / "clip")
    with pytest.raises(
        ModelError,
        match=r"--clip-text .* cannot be loaded: it has no tokenizer \(tokenizer\.json\)",
    ):
        ClipText(str(tmp_path / "clip"), torch.device("cpu"))
