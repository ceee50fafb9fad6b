"""A model that the caller has loaded: its adapter, and the samples that it is given.

Knows no pruner and no loop.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from trimtok_cli.errors import UsageError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import TEXT_TENSORS, Inputs
from trimtok_cli.models.registry import ADAPTERS
from trimtok_cli.models.told import as_batch
from trimtok_cli.models.vision.clip_text import ClipText

CACHES = ("cache", "past_key_values")

# Arguments of a forward pass that the engine works out itself.
OURS = (*TEXT_TENSORS, *CACHES, "position_ids", "cache_position", "return_dict", "logits_to_keep")


def adapter_of(model: Any, processor: Any = None, clip_text: str | None = None) -> Adapter:
    """The adapter of a model that is loaded already."""
    if isinstance(model, Adapter):
        return model
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UsageError("a compiled model cannot be pruned: give the model as it was before.")
    if hasattr(model, "get_base_model"):  # PEFT's wrapper; its layers stay in the model
        model = model.get_base_model()
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in ADAPTERS or not hasattr(model, "lm_head"):
        raise UsageError(
            f"{type(model).__name__} cannot be pruned: take a model that answers (Auto"
            f"ModelForImageTextToText) of one of the families {', '.join(sorted(ADAPTERS))}."
        )
    if len({*(getattr(model, "hf_device_map", None) or {}).values()}) > 1:
        raise UsageError("a model that lies on several devices cannot be pruned: use one device.")
    attention = model.get_decoder().config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise UsageError(
            f"the model attends by {attention}, and pruning runs under sdpa and eager: call "
            "model.set_attn_implementation('sdpa') first."
        )
    name = model.name_or_path or type(model).__name__
    if processor is None:
        try:
            processor = AutoProcessor.from_pretrained(
                model.name_or_path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise UsageError(
                f"the processor of {name} is not beside it: pass the one that makes your inputs, "
                "as in TrimTokenator(keep=64)(model, processor)."
            ) from error
    adapter = ADAPTERS[family](model, processor, name=name, revision="")
    adapter.clip_text = ClipText(clip_text, adapter.device) if clip_text else None
    return adapter


def is_media(name: str, value: Any) -> bool:
    """Whether an argument of a forward pass holds images or videos."""
    return isinstance(value, Tensor) and name not in (*OURS, "inputs_embeds", "labels")


def samples_of(
    adapter: Adapter, ids: Tensor, given: Mapping[str, Any], copies: int
) -> tuple[list[Inputs], dict[str, Tensor]]:
    """The samples of a batch, and the tensors of its images and videos.

    copies: rows for each prompt, one after the other.
    """
    asked = {
        name: torch.tensor(value) if isinstance(value, list) and value else value
        for name, value in given.items()
        if value is not None and value is not False and name not in (*OURS, "use_cache")
    }
    media = {name: value for name, value in asked.items() if is_media(name, value)}
    if others := asked.keys() - media.keys():
        raise UsageError(
            f"a pruned model does not take {', '.join(sorted(others))}: leave it out, or run the "
            "model outside the block."
        )
    mask = given.get("attention_mask")
    if mask is None:
        mask = torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise UsageError("a pruned model takes the attention_mask that its processor returns.")
    text = {
        name: given[name][::copies].cpu()
        for name in TEXT_TENSORS
        if given.get(name) is not None and name != "attention_mask"
    }
    read = {
        name: value.cpu() if name in adapter.host_tensors else value
        for name, value in media.items()
    }
    return as_batch(adapter, ids[::copies].cpu(), mask[::copies].cpu(), read, text), read
