"""The number of answers that fit in a device's memory beside the model. Knows no method."""

from typing import Any

import torch

from trimtok_cli.device import free_bytes
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import LanguageModel
from trimtok_cli.tokens import Prompt

# Answers at once on each type of device; a larger batch gains little.
MOST_AT_ONCE = {"cuda": 64, "mps": 16, "cpu": 8}
# Tokens of one prefill, padding counted: enough to fill a GPU, with small activations.
PREFILL_TOKENS = 16_384
SHARE = 0.85  # share of the free memory that is used; the rest is left to the allocator


def batch_limit_for(model: LanguageModel, rules: Rules, prompt: Prompt) -> int:
    """The number of answers that fit at once if all prompts are as long as this one."""
    length = len(prompt) + likely_length(model.config, rules, prompt)
    return answers_that_fit(model.config, model.dtype, model.device, length=length)


def likely_length(config: Any, rules: Rules, prompt: Prompt) -> int:
    """The new tokens that memory is counted for, at most as many as the model has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or rules.most
    return min(rules.most, max(positions - len(prompt), 1))


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in a decoder of this config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * dtype.itemsize


def answers_that_fit(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    *,
    length: int,
    prefill_tokens: int = PREFILL_TOKENS,
) -> int:
    """The number of answers of `length` tokens that can be under way at once; at least 1.

    An answer needs its keys and values and, while it waits, its prompt. A prefill of
    `prefill_tokens` needs a layer's activations: about three times the MLP's width and eight times
    the model's.
    """
    answer = length * (cache_bytes(config, dtype) + config.hidden_size * dtype.itemsize)
    prefill = (
        prefill_tokens * (3 * config.intermediate_size + 8 * config.hidden_size) * dtype.itemsize
    )
    fit = int((SHARE * free_bytes(device) - prefill) / answer)
    return max(1, min(fit, MOST_AT_ONCE.get(device.type, 8)))
