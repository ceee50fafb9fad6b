"""The plug-in against a stand-in for vLLM: the placeholders of an image, its words, its tokens.

The stand-in has no more than the names on which `serving/llava.py` leans. `test_server.py` runs
vLLM itself.
"""

import importlib
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoProcessor

from tests.test_walls import ROOT
from trimtok_cli.pruners.budget import parse_budget
from trimtok_cli.serving import plugin

IMAGE_ID, DENSE, WIDTH = 4, 36, 8


class Info:
    """vLLM's facts about a model. It counts the dense tokens of an image."""

    model_id = "demo"

    def __init__(self, config, processor) -> None:
        self.config, self.processor = config, processor

    def get_hf_config(self):
        return self.config

    def get_hf_processor(self, **given):
        assert not given
        return self.processor

    def get_num_image_tokens(self, **size) -> int:
        return DENSE


@dataclass
class Inputs:
    prompt: list[int]
    mm_data_items: object
    hf_processor_mm_kwargs: dict = field(default_factory=dict)


class Processor:
    """vLLM's processor: from a prompt's images to fields, as far as the plug-in takes part."""

    def __init__(self, info) -> None:
        self.info = info

    def apply(self, inputs, timing_ctx):
        given = inputs.hf_processor_mm_kwargs
        count = inputs.mm_data_items.get_all_counts().get("image", 0)
        data = self._call_hf_processor({"images": count}, given)
        fields = self._get_mm_fields_config(data, given)
        return given, self._postprocess_hf_mm_data({}, given, data), fields

    def _call_hf_processor(self, hf_data, hf_kwargs):
        self.info.get_hf_processor(**hf_kwargs)
        return {"pixel_values": torch.zeros(hf_data["images"], 3, 8, 8)}

    def _postprocess_hf_mm_data(self, mm_inputs, hf_processor_mm_kwargs, processed_data):
        return processed_data

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs):
        return {"pixel_values": "batched image"}


class Model:
    """vLLM's model: a tower that makes rows of noise, and embeddings."""

    def __init__(self, *, vllm_config, prefix="") -> None:
        self.config = vllm_config
        torch.manual_seed(0)
        table = torch.randn(200, WIDTH)
        self.language_model = SimpleNamespace(embed_input_ids=lambda ids: table[ids])

    def embed_multimodal(self, *, pixel_values):
        torch.manual_seed(1)
        return torch.randn(len(pixel_values), DENSE, WIDTH)

    def load_weights(self, weights):
        return {name for name, _ in weights}


MEMBERS = {
    "vllm": {"ModelRegistry": None},
    "vllm.model_executor": {},
    "vllm.model_executor.models": {},
    "vllm.model_executor.models.llava": {
        "LlavaDummyInputsBuilder": object,
        "LlavaForConditionalGeneration": Model,
        "LlavaMultiModalProcessor": Processor,
        "LlavaProcessingInfo": Info,
    },
    "vllm.multimodal": {
        "MULTIMODAL_REGISTRY": SimpleNamespace(register_processor=lambda *_, **__: lambda cls: cls)
    },
    "vllm.multimodal.inputs": {
        "MultiModalFieldConfig": SimpleNamespace(batched=lambda modality: f"batched {modality}")
    },
}


@pytest.fixture
def llava(monkeypatch):
    """`serving.llava`, imported over the stand-in; neither stays imported."""
    for name, members in MEMBERS.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    name = "trimtok_cli.serving.llava"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)  # so that it is taken away again
    return module


def config(method="trimtokenator", **params):
    settings = {"method": method, "params": {"keep": "9", **params}}
    return SimpleNamespace(trimtok=settings, model_type="llava", image_token_index=IMAGE_ID)


@pytest.fixture
def demo():
    return AutoProcessor.from_pretrained(ROOT / "samples" / "demo" / "model")


def asked(llava, demo, text, images=1, **settings):
    """(arguments that are hashed, fields of the images, their configuration) for a prompt."""
    processor = llava.Processor(llava.Info(config(**settings), demo))
    items = SimpleNamespace(get_all_counts=lambda: {"image": images})
    return processor.apply(Inputs(demo.tokenizer(text).input_ids, items), None)


@pytest.mark.parametrize("keep", ["9", "11%", "0.5", "100", "all"])
def test_an_image_has_as_many_placeholders_as_tokens_are_left_of_it(llava, demo, keep):
    info = llava.Info(config(keep=keep), demo)
    count = info.get_num_image_tokens(image_width=8, image_height=8)
    assert count == parse_budget(keep).count(DENSE)
    model = llava.TrimtokLlava(vllm_config=config(keep=keep))
    words = torch.tensor([[10, 11], [12, 13]])
    left = model.embed_multimodal(pixel_values=torch.zeros(2, 3, 8, 8), **{llava.WORDS: words})
    assert [len(rows) for rows in left] == [count, count]


def test_the_question_is_a_part_of_what_is_hashed_and_of_each_image(llava, demo):
    hashed, fields, _ = asked(llava, demo, "USER: <image>\n<image>\nIs it red? ASSISTANT:", 2)
    words = hashed[llava.WORDS]
    assert demo.tokenizer.decode(words) == "Is it red?"
    assert [each.tolist() for each in fields[llava.WORDS]] == [list(words)] * 2
    other, _, _ = asked(llava, demo, "USER: <image>\n<image>\nWhat is it? ASSISTANT:", 2)
    assert other[llava.WORDS] != words


def test_words_that_nobody_reads_keep_no_cache_apart(llava, demo):
    hashed, fields, _ = asked(llava, demo, "USER: <image>\nIs it red? ASSISTANT:", method="uniform")
    assert hashed == {} and fields.keys() == {"pixel_values"}
    model = llava.TrimtokLlava(vllm_config=config("uniform"))
    assert [len(rows) for rows in model.embed_multimodal(pixel_values=torch.zeros(1, 3, 8, 8))] == [
        9
    ]


def test_a_trial_prompt_without_text_has_words_as_well(llava, demo):
    processor = llava.Processor(llava.Info(config(), demo))
    items = SimpleNamespace(get_all_counts=lambda: {"image": 1})
    hashed, _, _ = processor.apply(Inputs([IMAGE_ID], items), None)
    assert hashed == {llava.WORDS: (0,)}


@pytest.mark.parametrize("images", [0, 2])
def test_a_placeholder_in_the_text_is_refused(llava, demo, images):
    with pytest.raises(ValueError, match=f"1 placeholders for {images} images: write <image>"):
        asked(llava, demo, "USER: Is <image> red? ASSISTANT:", images)


def test_words_of_unequal_lengths_choose_as_each_alone(llava):
    model = llava.TrimtokLlava(vllm_config=config())
    pixels = torch.zeros(2, 3, 8, 8)
    words = [torch.tensor([10, 11, 12]), torch.tensor([13])]
    together = model.embed_multimodal(pixel_values=pixels, **{llava.WORDS: words})
    for i, each in enumerate(words):
        same = torch.stack([each, each])
        alone = model.embed_multimodal(pixel_values=pixels, **{llava.WORDS: same})[i]
        assert torch.equal(together[i], alone)
    assert not torch.equal(together[0], together[1])


def test_weights_have_the_names_that_vllm_looks_for(llava):
    model = llava.TrimtokLlava(vllm_config=config())
    names = {
        "model.vision_tower.encoder.layers.0.x": "model.vision_tower.vision_model.encoder.layers.0.x",
        "vision_tower.vision_model.embeddings.y": "vision_tower.vision_model.embeddings.y",
        "model.language_model.layers.0.z": "model.language_model.layers.0.z",
    }
    assert model.load_weights([(name, None) for name in names]) == {*names.values()}


def test_the_plug_in_names_the_model_by_its_module(llava, monkeypatch):
    told = {}
    registry = SimpleNamespace(register_model=told.__setitem__)
    monkeypatch.setattr(sys.modules["vllm"], "ModelRegistry", registry)
    plugin.register()
    ((name, place),) = told.items()
    module, _, member = place.partition(":")
    assert name == plugin.ARCHITECTURE
    assert getattr(sys.modules[module], member) is llava.TrimtokLlava
