"""How many answers fit: what a key/value cache takes of a device's memory. Knows no method."""

import torch

from trimtok_cli.device import free_bytes
from trimtok_cli.generation.rules import Rules
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.tokens import Prompt


def likely_length(adapter: Adapter, rules: Rules, prompt: Prompt) -> int:
    """New tokens that memory is counted for: no more than the model has positions for, however many
    are allowed.
    """
    places = (
        getattr(adapter.model.get_decoder().config, "max_position_embeddings", None) or rules.most
    )
    return min(rules.most, max(places - len(prompt), 1))


MOST_ROWS = {"cuda": 64, "mps": 16, "cpu": 8}  # beyond these a larger batch gains little

PREFILL_TOKENS = (
    16_384  # of one prefill, padding counted: enough to fill a GPU, and its activations stay small
)

SHARE = 0.85  # of the free memory; the rest is the allocator's own


def cache_bytes(config, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in a decoder of this config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * dtype.itemsize


def rows_for(adapter, prompt: int, new_tokens: int) -> int:
    """How many answers fit at once where a prompt has so many tokens."""
    config = adapter.model.get_decoder().config
    return rows_that_fit(config, adapter.dtype, adapter.device, length=prompt + new_tokens)


def rows_that_fit(
    config,
    dtype: torch.dtype,
    device: torch.device,
    *,
    length: int,
    prefill_tokens: int = PREFILL_TOKENS,
) -> int:
    """How many answers of `length` tokens can be under way at once; at least 1.

    A row needs its keys and values and, while it waits, its prompt. A prefill of `prefill_tokens`
    needs a layer's activations: about three times the MLP's width and eight times the model's.
    """
    row = length * (cache_bytes(config, dtype) + config.hidden_size * dtype.itemsize)
    prefill = (
        prefill_tokens * (3 * config.intermediate_size + 8 * config.hidden_size) * dtype.itemsize
    )
    fit = int((SHARE * free_bytes(device) - prefill) / row)
    return max(1, min(fit, MOST_ROWS.get(device.type, 8)))
