"""Rows of a decoder layer's attention, recomputed from what enters the layer: the model itself stays on its fast kernels.

The layer's own attention module works out its queries and keys, with whatever norms and rotary positions it has, and is
stopped where it would attend. Knows no family and no method.
"""

import copy

import torch
from torch import Tensor
from transformers import AttentionInterface

_NAME = "trimtok_rows"


class _Found(Exception):
    """Carries queries, keys and the scale out of an attention module."""


def _stop(module, query, key, value, attention_mask, scaling=None, **_):
    raise _Found(query, key, module.head_dim**-0.5 if scaling is None else scaling)


def attention_rows(layer, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """hidden (S, D) that enters `layer`, rows (R,) ascending places in it -> (H, R, S) causal probabilities, float32.

    Equals `output_attentions` of an eager forward pass without padding; a sliding window is honoured.
    """
    AttentionInterface.register(_NAME, _stop)
    attention = copy.copy(layer.self_attn)  # shares the weights; only its configuration is its own
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = _NAME
    try:
        attention(layer.input_layernorm(hidden[None]), position_embeddings=position_embeddings, attention_mask=None)
        raise RuntimeError(f"{type(attention).__name__} did not ask for its attention function")
    except _Found as found:
        query, key, scaling = found.args
    heads, places = query.shape[1], torch.arange(len(hidden), device=hidden.device)
    key = key[0].repeat_interleave(heads // key.shape[1], 0).float()
    scores = query[0, :, rows].float() @ key.mT * scaling
    hidden_from = places > rows[:, None]
    if window := getattr(layer.self_attn, "sliding_window", None):
        hidden_from |= places <= rows[:, None] - window
    return scores.masked_fill(hidden_from, -torch.inf).softmax(-1)
