"""Attention recomputed from what entered a module, for the rows that a method asks for: the model stays on its fast kernels.

The module's own code works out queries and keys, with whatever norms and rotary positions it has; only where it would
attend, they are noted. Knows no family and no method.
"""

import copy

import torch
from torch import Tensor
from transformers import AttentionInterface

_NAME = "trimtok_note"


def _note(module, query, key, value, attention_mask, scaling=None, **_):
    module.noted.append((query, key, module.head_dim**-0.5 if scaling is None else scaling))
    return query.transpose(1, 2), None


def queries_and_keys(attention, *args, **kwargs) -> list[tuple[Tensor, Tensor, float]]:
    """What an attention module of the library would attend with if it were called so: (B, H, S, d) twice, and the scale.

    One entry for every call of its attention function: towers with images of any size attend image by image.
    """
    AttentionInterface.register(_NAME, _note)
    probe = copy.copy(attention)  # shares the weights; only its configuration is its own
    probe.config = copy.copy(attention.config)
    probe.config._attn_implementation = _NAME
    probe.noted = []
    probe(*args, **kwargs)
    return probe.noted


def attention_rows(layer, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
    """hidden (S, D) that enters decoder `layer`, rows (R,) places in it -> (H, R, S) causal probabilities, float32.

    Equals `output_attentions` of an eager forward pass without padding; a sliding window is honoured.
    """
    normed = layer.input_layernorm(hidden[None])
    ((query, key, scaling),) = queries_and_keys(
        layer.self_attn, normed, position_embeddings=position_embeddings, attention_mask=None
    )
    places = torch.arange(len(hidden), device=hidden.device)
    unseen = places > rows[:, None]
    if window := getattr(layer.self_attn, "sliding_window", None):
        unseen |= places <= rows[:, None] - window
    key = key[0].repeat_interleave(query.shape[1] // key.shape[1], 0)
    scores = query[0, :, rows].float() @ key.float().mT * scaling
    return scores.masked_fill(unseen, -torch.inf).softmax(-1)


def attention_received(query: Tensor, key: Tensor, scaling: float, *, from_first: bool) -> Tensor:
    """(B, H, S, d) twice -> (B, S) float32: attention each place gets, mean over heads.

    From the first place alone (a tower's CLS token), or as the mean over all places, one of the batch at a time.
    """
    if from_first:
        return (query[:, :, :1].float() @ key.float().mT * scaling).softmax(-1).mean(1)[:, 0]
    return torch.stack([(q.float() @ k.float().mT * scaling).softmax(-1).mean((0, 1)) for q, k in zip(query, key, strict=True)])
