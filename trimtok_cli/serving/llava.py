"""LLaVA-1.5 inside vLLM, whose images take as many tokens as the pruner leaves of them.

vLLM's processor writes so many placeholders, and hands the words that a method reads to the model
with each image. The words are a part of the image's hash, so that one image under two questions has
two entries in each of vLLM's caches. Runs in vLLM's processes and is imported there alone; the
README beside it says on which of vLLM's own names it leans.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

from trimtok_cli.models.registry import ADAPTERS
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.serving.plugin import SETTINGS
from trimtok_cli.serving.pruning import Words, prune

# The name by which the words travel beside an image.
WORDS = "trimtok_words"


def _pruner(config: Any) -> Pruner | None:
    settings = getattr(config, SETTINGS)
    return build_pruner(settings["method"], settings["params"])


def _without_words(given: Mapping[str, object]) -> dict[str, object]:
    """Arguments for the library's processor, which knows nothing of words."""
    return {name: value for name, value in given.items() if name != WORDS}


class Info(LlavaProcessingInfo):
    """The number of an image's tokens: what the pruner leaves of it."""

    @cached_property
    def pruner(self) -> Pruner | None:
        return _pruner(self.get_hf_config())

    def get_hf_processor(self, **given: object) -> Any:
        return super().get_hf_processor(**_without_words(given))

    def get_num_image_tokens(self, **size: int) -> int:
        dense = super().get_num_image_tokens(**size)
        return dense if self.pruner is None else self.pruner.keep.count(dense)


class Processor(LlavaMultiModalProcessor):
    """Adds the words that the pruner reads to each image of a prompt."""

    @cached_property
    def words(self) -> Words:
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        preprocessor = ADAPTERS[config.model_type].preprocessing(processor, self.info.model_id)
        return Words(self.info.pruner, preprocessor, config.image_token_index)

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Raises ValueError, which vLLM answers with status 400, for a text with a placeholder."""
        images = inputs.mm_data_items.get_all_counts().get("image", 0)
        written = list(inputs.prompt).count(self.words.image_id)
        if written != images:
            raise ValueError(
                f"the prompt has {written} placeholders for {images} images: write "
                f"{self.info.get_hf_processor().image_token} otherwise in the text."
            )
        words = self.words(inputs.prompt)
        if words is not None:
            # vLLM's own prompt for a trial run may have no text at all.
            given = {**inputs.hf_processor_mm_kwargs, WORDS: words or (0,)}
            inputs = replace(inputs, hf_processor_mm_kwargs=given)
        return super().apply(inputs, timing_ctx)

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._call_hf_processor(hf_data, _without_words(hf_kwargs))

    def _postprocess_hf_mm_data(
        self, mm_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any], processed_data: Any
    ) -> Any:
        found = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
        if WORDS in hf_processor_mm_kwargs and "pixel_values" in found:
            words = torch.tensor(hf_processor_mm_kwargs[WORDS])
            found[WORDS] = [words] * len(found["pixel_values"])
        return found

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, WORDS: MultiModalFieldConfig.batched("image")}


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaDummyInputsBuilder)
class TrimtokLlava(LlavaForConditionalGeneration):
    """vLLM's LLaVA, which prunes the projected tokens of its images."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pruner = _pruner(self.config)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return super().load_weights((_vllm_name(name), tensor) for name, tensor in weights)

    def embed_multimodal(self, **given: Any) -> Any:
        words = given.pop(WORDS, None)
        images = super().embed_multimodal(**given)
        if self.pruner is None or not len(images):
            return images
        ids = [None] * len(images) if words is None else list(words)
        return prune(self.pruner, list(images), ids, self.language_model.embed_input_ids)


def _vllm_name(name: str) -> str:
    """The name of a weight as vLLM's towers have it.

    transformers 5.23 and later leave out `vision_model.` in the names of a tower's weights.
    """
    head, tower, rest = name.partition("vision_tower.")
    return (
        f"{head}{tower}vision_model.{rest}"
        if tower and not rest.startswith("vision_model.")
        else name
    )
