"""Checkpoint folders that are not whole, not readable, or hold something else.

Each is loaded, or refused with one sentence that says why. The tables have one row for each fault.
Every sentence names the option, the fault and the remedy, and no class of a library.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.errors import ModelError
from trimtok_cli.models.loading import load_model

ALL = {"llava": tiny.llava, **FAMILIES}


def said_of(folder: Path, **options) -> str:
    """The sentence that refuses a folder."""
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), device="cpu", **options)
    said = str(caught.value)
    said = said if said.startswith("--model") else f"--model {said}"
    assert (
        said.startswith(f"--model {folder} ")
        and said.endswith(".")
        and "\n" not in said
        and len(said) < 480 + len(str(folder))
    ), said
    assert not re.search(
        r"Error\b|Exception|Traceback|NoneType|above "
        r"report|huggingface\.co|from_pretrained|weights_only",
        said,
    ), said
    return said.removeprefix(f"--model {folder} ")


# ---- weights


@pytest.fixture(scope="module", params=ALL)
def whole(request, tmp_path_factory) -> Path:
    return ALL[request.param](tmp_path_factory.mktemp("whole") / request.param)


DECODER = r"(language_model\.|text_model\.|^model\.)"
LOST: dict[str, str] = {
    "the projector": r"projector|merger|connector|multi_modal",
    "a layer of the decoder": rf"{DECODER}(model\.)?layers\.1\.",
    "one norm of the decoder": rf"{DECODER}(model\.)?norm\.weight",
    "one bias or weight of the tower": r"(visual|vision_tower|vision_model).*(layers?|blocks)\.0\..*(fc1|mlp\.(gate_proj|up_proj|linear_fc1))\.weight",
    "the head": r"lm_head",
    "the embeddings": r"embed_tokens",
}


def rewrite(folder: Path, to: Path, change: Callable[[dict], dict]) -> Path:
    shutil.copytree(folder, to)
    weights = change(load_file(to / "model.safetensors"))
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        to / "model.safetensors",
        metadata={"format": "pt"},
    )
    return to


@pytest.mark.parametrize("part", LOST)
def test_missing_weights_are_named(whole, part, tmp_path):
    names = [name for name in load_file(whole / "model.safetensors") if re.search(LOST[part], name)]
    if (
        part == "the head"
        and json.loads((whole / "config.json").read_text())["tie_word_embeddings"]
    ):
        assert not names, "a tied head is no weight of its own"
    else:
        assert names, "the pattern fits no tensor"
        folder = rewrite(
            whole,
            tmp_path / "m",
            lambda weights: {k: v for k, v in weights.items() if k not in names},
        )
        said = said_of(folder)
        assert re.search(r"cannot be loaded: its weights lack \d+ tensors? \(", said)
        assert any(
            name.split(".")[-2:] == word.split(".")[-2:]
            for name in names
            for word in re.findall(r"[\w.]+", said)
        ), said


def test_weights_under_other_names_are_missing_weights(whole, tmp_path):
    folder = rewrite(
        whole, tmp_path / "m", lambda weights: {f"other.{k}x": v for k, v in weights.items()}
    )
    said = said_of(folder)
    assert "its weights lack" in said and "that the model does not know (other." in said


def test_weights_of_other_sizes_are_named(whole, tmp_path):
    def narrower(weights: dict) -> dict:
        name = next(
            name for name in weights if re.search(r"layers\.0\.mlp\.down_proj\.weight", name)
        )
        return weights | {name: weights[name][:, :-2]}

    said = said_of(rewrite(whole, tmp_path / "m", narrower))
    assert "layers.0.mlp.down_proj.weight is 64 x 94, not 64 x 96" in said


def test_further_tensors_do_no_harm(whole, tmp_path):
    folder = rewrite(
        whole,
        tmp_path / "m",
        lambda weights: (
            weights | {"extra.position_ids": torch.arange(4), "x.weight": torch.ones(2)}
        ),
    )
    plain, more = (load_model(str(each), device="cpu") for each in (whole, folder))
    assert len(plain.model.state_dict()) > 20
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, more.model.state_dict()[name]), name


@pytest.mark.parametrize("name", ALL)
def test_a_tied_head_is_not_missing(name, tmp_path):
    folder = ALL[name](tmp_path / "m", tied=True)
    assert not [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
    model = load_model(str(folder), device="cpu").model
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


# ---- other kinds of folders


def edit(path: Path, **values) -> None:
    """Sets keys of a JSON file; None removes a key."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps({key: value for key, value in (found | values).items() if value is not None})
    )


def inner(folder: Path, part: str, **values) -> None:
    edit(
        folder / "config.json",
        **{part: json.loads((folder / "config.json").read_text())[part] | values},
    )


def sharded(folder: Path) -> list[str]:
    """Splits the weights into two files and an index; returns the files' names."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = sorted(weights)
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    places = {name: files[i % 2] for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    return files


def pickled(folder: Path, **options) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def float64(folder: Path) -> None:
    rewritten = {
        name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(rewritten, folder / "model.safetensors", metadata={"format": "pt"})


def new_names(folder: Path) -> None:
    """Names the tensors as the library's modules are named now; it saves them by the first names."""
    weights = {
        re.sub(r"^language_model\.model\.", "model.language_model.", name).replace(
            "language_model.lm_head", "lm_head"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    named = {
        re.sub(r"^(vision_tower|multi_modal)", r"model.\1", name): tensor
        for name, tensor in weights.items()
    }
    assert set(named) != set(load_file(folder / "model.safetensors"))
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def apart(folder: Path) -> None:
    """Leaves preprocessor_config.json alone, with the processor's class and no patches or strategy."""
    whole = json.loads((folder / "processor_config.json").read_text())
    images = whole["image_processor"] | {"processor_class": "LlavaProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").unlink()


def template_apart(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))


def template_in_the_processor(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "processor_config.json", chat_template=text)


def generation_in_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=2)


READ: dict[str, Callable[[Path], object]] = {
    "in two files": sharded,
    "as a pickle": pickled,
    "as a pickle of the first kind": lambda f: pickled(f, _use_new_zipfile_serialization=False),
    "in float64": float64,
    "with the modules' new names": new_names,
    "without patch size and strategy": apart,
    "with null for patch size and strategy": lambda f: (f / "processor_config.json").write_text(
        json.dumps(
            json.loads((f / "processor_config.json").read_text())
            | dict.fromkeys(
                ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
            )
        )
    ),
    "with a processor that contradicts the model": lambda f: edit(
        f / "processor_config.json",
        patch_size=7,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=5,
    ),
    "with its template in chat_template.json": template_apart,
    "with its template in the processor": template_in_the_processor,
    "without generation_config.json": generation_in_the_config,
    "with other weights beside its own": lambda f: (f / "consolidated.safetensors").write_bytes(
        b"x" * 99
    ),
    "with a readme and a licence": lambda f: [
        (f / name).write_text("") for name in ("README.md", ".gitattributes")
    ],
}


@pytest.fixture
def copy(llava_folder, tmp_path) -> Path:
    return shutil.copytree(llava_folder, tmp_path / "copy")


def logits_of(adapter) -> torch.Tensor:
    inputs = adapter.prepare([picture(3)], "What is it?")
    prompt = adapter.embed(inputs, adapter.encode_many([inputs])[0])
    with torch.inference_mode():
        out = adapter.model.get_decoder()(
            inputs_embeds=prompt.embeds[None], position_ids=prompt.positions[None]
        )
        return adapter.model.lm_head(out.last_hidden_state)


@pytest.mark.parametrize("layout", READ)
def test_a_checkpoint_is_the_same_in_any_layout(copy, layout, adapter):
    READ[layout](copy)
    found = load_model(str(copy), device="cpu")
    assert (logits_of(found) - logits_of(adapter)).abs().max() < 1e-5
    assert found.end_ids == adapter.end_ids


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def pointer(path: Path) -> None:
    path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize "
        "14000000000\n"
    )


def only(folder: Path, *names: str) -> None:
    """A folder that holds files of these names and nothing else."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")


def adapter_only(folder: Path) -> None:
    only(folder, "adapter_model.safetensors")
    edit(
        folder / "adapter_config.json",
        base_model_name_or_path="llava-hf/llava-1.5-7b-hf",
        peft_type="LORA",
    )


def quantized(method: str, **more) -> Callable[[Path], object]:
    return lambda folder: edit(
        folder / "config.json", quantization_config={"quant_method": method} | more
    )


def small_numbers(folder: Path) -> None:
    weights = {
        n: t.to(torch.int8) if t.ndim > 1 else t
        for n, t in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lost_shard(folder: Path) -> None:
    files = sharded(folder)
    (folder / files[1]).unlink()
    (folder / (files[1] + ".incomplete")).write_bytes(b"x")


def outside(folder: Path) -> None:
    files = sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(files[1], "../" + files[1]))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def nested(folder: Path) -> None:
    deeper = folder / "snapshots" / "abc"
    deeper.mkdir(parents=True)
    (folder / "config.json").rename(deeper / "config.json")


AGAIN = r"copy or download it again"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (only, r"it has no config.json; name the folder"),
    "a cache's folder": (nested, r"did you mean .*snapshots/abc\?"),
    "a cut file": (
        lambda f: cut(f / "model.safetensors"),
        rf"model.safetensors is cut short, \d+ bytes of \d+; {AGAIN}",
    ),
    "a file cut in its head": (
        lambda f: cut(f / "model.safetensors", 0.001),
        rf"model.safetensors is cut short; {AGAIN}",
    ),
    "a file of 3 bytes": (
        lambda f: (f / "model.safetensors").write_bytes(b"abc"),
        rf"model.safetensors is cut short; {AGAIN}",
    ),
    "an empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        rf"model.safetensors is empty; {AGAIN}",
    ),
    "a web page": (
        lambda f: (f / "model.safetensors").write_bytes(b"<html>" * 99),
        rf"model.safetensors is damaged; {AGAIN}",
    ),
    "a pointer": (
        lambda f: pointer(f / "model.safetensors"),
        r"model.safetensors is only a pointer of git-lfs; run `git lfs pull`",
    ),
    "a pointer for the tokenizer": (
        lambda f: pointer(f / "tokenizer.json"),
        r"tokenizer.json is only a pointer",
    ),
    "a pointer for the config": (
        lambda f: pointer(f / "config.json"),
        r"config.json is only a pointer",
    ),
    "a pickle cut short": (
        lambda f: pickled(f) or cut(f / "pytorch_model.bin"),
        rf"pytorch_model.bin is cut short; {AGAIN}",
    ),
    "an old pickle cut short": (
        lambda f: pickled(f, _use_new_zipfile_serialization=False) or cut(f / "pytorch_model.bin"),
        r"weights .*; (use|check)",
    ),
    "a pickle that is none": (
        lambda f: pickled(f) or (f / "pytorch_model.bin").write_bytes(b"x" * 99),
        r"its weights",
    ),
    "a lost shard": (
        lost_shard,
        rf"1 of its 2 files of weights are missing \(model-00002.*did not end .*; {AGAIN}",
    ),
    "an index of nothing": (
        lambda f: sharded(f) and edit(f / "model.safetensors.index.json", weight_map={}),
        r"has no weight_map",
    ),
    "an index that leaves the folder": (outside, r"names files outside the folder"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        rf"no weights \(model.safetensors\); {AGAIN}",
    ),
    "weights being downloaded": (
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.part"),
        r"no weights and a download that did not end",
    ),
    "weights under another name": (
        lambda f: (f / "model.safetensors").rename(f / "joy.safetensors"),
        r"named as transformers does not .*\(joy.safetensors\)",
    ),
    "GGUF": (lambda f: only(f, "model-q4.gguf", "mmproj.gguf"), r"it holds GGUF files"),
    "GGUF with a config": (
        lambda f: (f / "model.safetensors").rename(f / "model.gguf"),
        r"it holds GGUF files",
    ),
    "one file of weights": (
        lambda f: only(f, "sd.safetensors"),
        r"it holds weights \(sd.safetensors\) but no config.json",
    ),
    "an adapter alone": (
        adapter_only,
        r"PEFT adapter \(for llava-hf/llava-1.5-7b-hf\), and peft is not installed: pip "
        r"install peft",
    ),
    "an adapter beside": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path="a/b"),
        r"PEFT adapter \(for a/b\), and peft is not",
    ),
    "an adapter of nothing": (
        lambda f: only(f) or edit(f / "adapter_config.json", r=8),
        r"does not say its base_model_name_or_path",
    ),
    "the first LLaVA's layout": (
        lambda f: edit(f / "config.json", model_type="llava_llama"),
        r"llava-hf/llava-1.5-7b-hf",
    ),
    "InternVL with its own code": (
        lambda f: edit(f / "config.json", model_type="internvl_chat"),
        r"OpenGVLab/InternVL3-8B-hf",
    ),
    "another family": (
        lambda f: edit(f / "config.json", model_type="bert"),
        r"of the family 'bert'; supported are",
    ),
    "no family": (
        lambda f: edit(f / "config.json", model_type=None),
        r"does not say its model_type",
    ),
    "a list of families": (
        lambda f: edit(f / "config.json", model_type=["llava"]),
        r"does not say its model_type",
    ),
    "bitsandbytes": (
        quantized("bitsandbytes", load_in_4bit=True),
        r"quantized \(bitsandbytes\), and \w+ is not installed: pip install",
    ),
    "bitsandbytes of old": (
        lambda f: edit(f / "config.json", quantization_config={"load_in_8bit": True}),
        r"quantized \(bitsandbytes\)",
    ),
    "GPTQ": (
        quantized("gptq", bits=4),
        r"quantized \(gptq\), and gptqmodel is not installed: pip install gptqmodel",
    ),
    "AWQ": (
        quantized("awq", bits=4),
        r"quantized \(awq\), and gptqmodel is not installed: pip install gptqmodel",
    ),
    "FP8": (quantized("fp8"), r"its weights .*accelerate"),
    "torchao": (
        quantized("torchao", quant_type="int8"),
        r"quantized \(torchao\), and torchao is not installed: pip install torchao",
    ),
    "compressed tensors": (
        quantized("compressed-tensors"),
        r"and compressed-tensors is not installed: pip install compressed-tensors",
    ),
    "an unknown quantizer": (
        quantized("magic"),
        r"quantized by 'magic', which transformers .* does not know",
    ),
    "whole numbers without a quantizer": (
        small_numbers,
        r"holds I8 numbers, and its config.json has no quantization_config",
    ),
    "no tokenizer": (no_tokenizer, r"it has no tokenizer \(tokenizer.json or tokenizer.model\)"),
    "no processor": (no_processor, r"it has no image processor \(preprocessor_config.json\)"),
    "no template": (no_template, r"has no chat template for images"),
    "no text_config": (
        lambda f: edit(f / "config.json", text_config=None),
        r"the text_config of its config.json is missing",
    ),
    "no vision_config": (
        lambda f: edit(f / "config.json", vision_config=None),
        r"the vision_config of its config.json is missing",
    ),
    "text as text_config": (
        lambda f: edit(f / "config.json", text_config="llama"),
        r"text_config of its config.json is not names",
    ),
    "a million layers": (
        lambda f: inner(f, "text_config", num_hidden_layers=10**6),
        r"num_hidden_layers: 1000000, which no model has",
    ),
    "no layers": (
        lambda f: inner(f, "vision_config", num_hidden_layers=0),
        r"num_hidden_layers: 0, which no model has",
    ),
    "layers in words": (
        lambda f: inner(f, "text_config", num_hidden_layers="many"),
        r"num_hidden_layers: many",
    ),
    "no heads": (lambda f: inner(f, "text_config", num_attention_heads=0), r"cannot be loaded"),
    "minus one wide": (lambda f: inner(f, "text_config", hidden_size=-1), r"cannot be loaded"),
    "a hundred thousand wide": (
        lambda f: inner(f, "text_config", hidden_size=10**5),
        r"hidden_size: 100000, and none of its tensors",
    ),
    "wide within": (
        lambda f: inner(f, "vision_config", intermediate_size=10**9),
        r"intermediate_size: 1000000000, and none",
    ),
    "a billion words": (
        lambda f: inner(f, "text_config", vocab_size=10**9),
        r"vocab_size: 1000000000, and none of its tensors",
    ),
    "words in words": (
        lambda f: inner(f, "text_config", vocab_size="many"),
        r"vocab_size: many, and none",
    ),
    "heads without end": (
        lambda f: inner(f, "text_config", num_attention_heads=10**7),
        r"cannot be loaded",
    ),
    "a picture without end": (
        lambda f: inner(f, "vision_config", image_size=10**7),
        r"cannot be loaded",
    ),
    "a patch without end": (
        lambda f: inner(f, "vision_config", patch_size=10**6),
        r"cannot be loaded",
    ),
    "a dtype that is none": (
        lambda f: edit(f / "config.json", dtype="float99"),
        r"config.json|weights",
    ),
    "another text model": (
        lambda f: inner(f, "text_config", model_type="gone"),
        r"its config.json .*gone",
    ),
    "another activation": (lambda f: inner(f, "text_config", hidden_act="magic"), r"its weights"),
    "a strategy that is none": (
        lambda f: edit(f / "config.json", vision_feature_select_strategy="best"),
        r"its config.json",
    ),
    "a layer that is not there": (
        lambda f: edit(f / "config.json", vision_feature_layer=99),
        r"vision_feature_layer: 99",
    ),
    "a patch of nothing": (lambda f: inner(f, "vision_config", patch_size=0), r"cannot be loaded"),
    "a mean that is no number": (
        lambda f: images(f, image_mean=[float("nan")] * 3),
        r"the image_mean of its image processor is [(\[]nan",
    ),
    "a deviation of 0": (
        lambda f: images(f, image_std=[0, 0, 0]),
        r"the image_std of its image processor is [(\[]0, 0, 0",
    ),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        r"its processor",
    ),
    "a tokenizer in half": (lambda f: cut(f / "tokenizer.json"), r"its (tokenizer.json|processor)"),
    "a processor of no class": (
        lambda f: edit(f / "processor_config.json", processor_class=3),
        r"its processor",
    ),
    "another processor": (
        lambda f: edit(f / "processor_config.json", processor_class="WhisperProcessor"),
        r"its processor",
    ),
}


def images(folder: Path, **values) -> None:
    path = folder / "processor_config.json"
    edit(path, image_processor=json.loads(path.read_text())["image_processor"] | values)


@pytest.mark.parametrize("fault", REFUSED)
def test_a_folder_that_cannot_be_loaded_is_one_sentence(copy, fault):
    change, words = REFUSED[fault]
    change(copy)
    said = said_of(copy)
    assert re.search(words, said), said


JSON = [
    name
    for name in (
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "video_preprocessor_config.json",
    )
]
TORN = {
    "empty": b"",
    "half": b'{"model_type": "llava", ',
    "a list": b"[1]",
    "null": b"null",
    "binary": bytes(range(256)),
    "a web page": b"<html></html>",
    "deep": b'{"a":' * 9999,
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
}


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("name", JSON)
def test_a_torn_file_is_named(copy, name, torn):
    (copy / name).write_bytes(TORN[torn])
    assert re.search(
        rf"its {name} (is empty|is not JSON|holds no names|cannot be read).*; {AGAIN}",
        said_of(copy),
    )


# ---- what the command says


def test_the_cause_of_a_refusal_is_kept_for_debugging(copy, caplog):
    (copy / "tokenizer.json").write_text("{}")
    with caplog.at_level("DEBUG", "trimtok"), pytest.raises(ModelError) as caught:
        load_model(str(copy), device="cpu")
    assert caught.value.__cause__ is not None and any(record.exc_info for record in caplog.records)


def test_what_was_filled_in_is_said_to_those_who_debug(copy, caplog):
    apart(copy)
    with caplog.at_level("DEBUG", "trimtok"):
        load_model(str(copy), device="cpu")
    said = caplog.text
    for name, value in (
        ("patch_size", 14),
        ("num_additional_image_tokens", 1),
        ("vision_feature_select_strategy", "'default'"),
    ):
        assert re.search(rf"{name} is .* in the files and {value} for this model", said), name


def test_smolvlm_without_num2words_names_what_to_install(tmp_path, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    folder = FAMILIES["smolvlm"](tmp_path / "m")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    assert (
        said_of(folder)
        == "cannot be loaded: the processor of this family needs num2words: pip install "
        "'trimtok[smolvlm]'."
    )


# ---- old processors, tower by tower

COUNTS = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
TOWERS = {
    "CLIP": lambda folder: tiny.llava(folder),
    "CLIP, with its class token": lambda folder: tiny.llava(folder, strategy="full"),
    "SigLIP": tiny.siglip,
    "tiles": FAMILIES["llava_next"],
    "tiles and videos": FAMILIES["llava_next_video"],
    "OneVision": FAMILIES["llava_onevision"],
}


def counted(folder: Path) -> torch.Tensor:
    adapter = load_model(str(folder), device="cpu")
    tokens = adapter.encode_many([adapter.prepare([picture(3, 130, 60)], "What is it?")])[0]
    return tokens.embeds


@pytest.mark.parametrize("tower", TOWERS)
def test_what_an_old_processor_leaves_out_comes_from_the_model(tower, tmp_path):
    folder = TOWERS[tower](tmp_path / "m")
    want, path = counted(folder), folder / "processor_config.json"
    whole = json.loads(path.read_text())
    for left_out in (*[(name,) for name in COUNTS], COUNTS, (*COUNTS, "num_image_tokens")):
        for null in (False, True):
            kept = {name: value for name, value in whole.items() if name not in left_out}
            path.write_text(json.dumps(kept | (dict.fromkeys(left_out) if null else {})))
            assert torch.equal(counted(folder), want), (left_out, null)


@pytest.mark.parametrize(
    ("model", "processor", "class_tokens", "tokens"),
    [
        ("full", "full", 0, 36),
        ("full", "default", 1, 36),
        ("full", "default", 0, 36),
        ("full", None, None, 36),
        ("default", "default", 1, 36),
        ("default", "full", 0, 36),
        ("default", None, None, 36),
        ("default", "default", 0, 35),
    ],
)
def test_a_tower_without_class_token_keeps_all_its_patches(
    model, processor, class_tokens, tokens, tmp_path
):
    """Unless the model and its processor both leave out the first, as `generate` then does too."""
    folder = tiny.siglip(tmp_path / "m")
    edit(folder / "config.json", vision_feature_select_strategy=model)
    whole = json.loads((folder / "processor_config.json").read_text())
    said = {
        "vision_feature_select_strategy": processor,
        "num_additional_image_tokens": class_tokens,
    }
    (folder / "processor_config.json").write_text(json.dumps(whole | said))
    assert len(counted(folder)) == tokens


# ---- CLIP's text tower


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("clip") / "clip", layers=1)


def lose(folder: Path, pattern: str) -> None:
    weights = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not re.search(pattern, name)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def ask_for_code(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Unknown",
        auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]},
    )
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "evil.py").write_text(f"open({str(folder / 'mark')!r}, 'w')")


CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind of model": (
        lambda f: edit(f / "config.json", model_type="siglip"),
        r"it is no CLIP checkpoint; name one that has",
    ),
    "a lost projection": (
        lambda f: lose(f, "text_projection"),
        r"its weights lack 1 tensor \(text_projection.weight\)",
    ),
    "a cut file": (lambda f: cut(f / "model.safetensors"), r"model.safetensors is cut short"),
    "a torn config": (
        lambda f: (f / "config.json").write_text("{"),
        r"config.json is not JSON, line 1",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"it is no CLIP checkpoint"),
    "code of its own": (ask_for_code, r"its tokenizer"),
}


@pytest.mark.parametrize("fault", CLIPS)
def test_a_text_tower_that_cannot_be_loaded_is_one_sentence(clip, llava_folder, fault, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    load_model(str(llava_folder), device="cpu", clip_text=str(folder))
    change, words = CLIPS[fault]
    change(folder)
    with pytest.raises(ModelError) as caught:
        load_model(str(llava_folder), device="cpu", clip_text=str(folder))
    said = str(caught.value)
    assert said.startswith(f"--clip-text {folder} cannot be loaded: ") and said.count("\n") == 0
    assert re.search(words, said) and not (folder / "mark").exists(), said
