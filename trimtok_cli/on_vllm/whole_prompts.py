"""Models of vLLM that read a whole prompt as rows (S, D) with three positions each (M-RoPE).

vLLM gives plain prompt embeddings the positions 0 to S - 1. So a prompt goes over as the one item
of a prompt of one token: `rows` (1, S, D) and `positions` (1, 3, S). The token is replaced by S
placeholders, whose embeddings are the rows. An answer goes on behind the last position. The vision
tower is not loaded.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataParser
from vllm.multimodal.processing import PromptReplacement

FIELDS = {"rows", "positions"}


def _fields(*_: Any) -> dict[str, MultiModalFieldConfig]:
    return {
        "rows": MultiModalFieldConfig.batched("image"),
        "positions": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
    }


class Parser(MultiModalDataParser):
    """Takes a prompt's rows and positions as one item."""

    def _parse_image_data(self, data: Any) -> Any:
        return DictEmbeddingItems(
            data, modality="image", required_fields=FIELDS, fields_factory=_fields
        )


class _Info:
    """Mixed into a family's processing info: it has the parser above."""

    def get_data_parser(self) -> Parser:
        return Parser(expected_hidden_size=self._get_expected_hidden_size())  # type: ignore[attr-defined]


class _Processor:
    """Mixed into a family's processor: a placeholder for each row of the item."""

    def _get_mm_fields_config(self, *_: Any) -> dict[str, MultiModalFieldConfig]:
        return _fields()

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> list[PromptReplacement]:
        token = self.info.get_hf_config().image_token_id  # type: ignore[attr-defined]

        def placeholders(number: int) -> list[int]:
            return [token] * out_mm_kwargs["image"][number]["rows"].data.shape[-2]

        return [PromptReplacement("image", [token], placeholders)]


class _Model:
    """Mixed into a family's model: the item's rows are the embeddings, its positions the prompt's.

    What vLLM tries itself with before a run has no such item and goes the family's own way.
    """

    def embed_multimodal(self, **given: Any) -> Any:
        if "rows" not in given:
            return super().embed_multimodal(**given)  # type: ignore[misc]
        return [rows.reshape(-1, rows.shape[-1]) for rows in given["rows"]]

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """(3, S) positions, and what the next token's position is beyond its place."""
        items = [each.data for each in mm_features if each.data is not None]
        found = [item["positions"].data for item in items if "positions" in item]
        if not found:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        positions = found[0].reshape(3, -1).to(torch.long)
        return positions, int(positions[:, -1].max()) + 1 - len(input_tokens)


class Qwen2VLInfo(_Info, Qwen2VLProcessingInfo):
    pass


class Qwen2VLProcessor(_Processor, Qwen2VLMultiModalProcessor):
    pass


class Qwen2_5_VLInfo(_Info, Qwen2_5_VLProcessingInfo):
    pass


class Qwen2_5_VLProcessor(_Processor, Qwen2_5_VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2VLProcessor, info=Qwen2VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class TrimtokQwen2VL(_Model, Qwen2VLForConditionalGeneration):
    """`qwen2_vl`."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLProcessor, info=Qwen2_5_VLInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class TrimtokQwen2_5_VL(_Model, Qwen2_5_VLForConditionalGeneration):
    """`qwen2_5_vl`."""
