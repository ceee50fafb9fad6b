"""Masks of decode steps: one new token for each of several answers of unequal length."""

from typing import Any

import torch
from torch import Tensor


def types_of_layer(config: Any) -> set[str]:
    """The types of layer of a decoder, by its config: `full_attention`, `sliding_attention`."""
    window = getattr(config, "sliding_window", None)
    usual = ["sliding_attention" if window else "full_attention"]
    return set(getattr(config, "layer_types", None) or usual)


def step_masks(
    config: Any, dtype: torch.dtype, places: Tensor, ends: Tensor
) -> Tensor | dict[str, Tensor]:
    """Masks (B, 1, 1, K) of the keys that each answer's new token sees, as scores to add.

    places (K,) or (B, K): the place of each key in its own answer. ends (B, 1): the place of the
    new token; keys at later places are not the answer's. config: the decoder's. A dict of masks,
    keyed by type of layer, if the decoder has several types.
    """
    window: Any = getattr(config, "sliding_window", None)
    masks = {}
    for kind in types_of_layer(config):
        seen = places <= ends
        if kind == "sliding_attention":
            seen &= places > ends - window
        scores = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        masks[kind] = scores.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None]
    return masks if len(masks) > 1 else masks[kind]
