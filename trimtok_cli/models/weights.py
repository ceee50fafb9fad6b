"""Checks on a loaded model: all of its weights were read, and they are numbers. Knows no family."""

import re
from typing import Any

import torch

from trimtok_cli.models.broken import Broken
from trimtok_cli.models.folder import first_sentence
from trimtok_cli.models.weight_files import DECODER_LAYER

SAMPLED = 1024  # numbers of a matrix that are looked at

MOST_NAMED = 3  # tensors that a sentence names

# Weights that no answer depends on: SigLIP's pooling head, which some checkpoints were saved
# without.
UNREAD = re.compile(r"vision_(tower|model)\.(vision_model\.)?head\.")


def check_weights(info: dict[str, Any], *, layers: int = 0) -> None:
    """Raises Broken where weights are missing, have another shape, or are of more layers.

    info: transformers' report on loading. It does not count as missing a tensor that the model
    shares with another one, or computes. layers: those of the decoder, 0 where unknown; weights of
    more layers were made for another config.json.
    """
    layers_read = [
        int(match[1]) + 1
        for name in info["unexpected_keys"]
        if (match := DECODER_LAYER.search(name))
    ]
    if layers and max(layers_read, default=0) > layers:
        raise Broken(
            f"its config.json says {layers} layers, and its weights have {max(layers_read)}; copy "
            "or download it again"
        )
    missing = sorted(name for name in info["missing_keys"] if not UNREAD.search(name))
    if missing:
        unknown = sorted(info["unexpected_keys"])
        hint = (
            f"; it has {len(unknown)} that the model does not know ({unknown[0]})"
            if unknown
            else ""
        )
        raise Broken(
            f"its weights lack {_count(missing)} that the model needs{hint}; copy or "
            "download the checkpoint again"
        )
    shapes = sorted(
        f"{name} is {_shape(have)}, not {_shape(want)}"
        for name, have, want in info["mismatched_keys"]
    )
    if shapes:
        others = f" and {len(shapes) - 1} more" if shapes[1:] else ""
        raise Broken(
            f"its weights are not of the sizes that its config.json says ({shapes[0]}{others})"
        )
    if info.get("error_msgs"):
        raise Broken(f"its weights do not fit the model ({first_sentence(info['error_msgs'][0])})")


def check_filled(network: torch.nn.Module) -> None:
    """Raises Broken where a matrix holds nothing but zeros, as in a file that was never filled.

    Looks at about SAMPLED numbers of each matrix, evenly spaced.
    """
    empty = [
        name
        for name, matrix in network.named_parameters()
        if matrix.ndim > 1
        and min(matrix.shape) > 1
        and not matrix.flatten()[:: matrix.numel() // SAMPLED + 1].any()
    ]
    if empty:
        raise Broken(
            f"its weights hold nothing but zeros in {_count(empty)}; copy or download the "
            "checkpoint again"
        )


def _count(names: list[str]) -> str:
    """The number of these tensors, and the first of their names."""
    listed = ", ".join(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        listed += f", and {len(names) - MOST_NAMED} more"
    return f"{len(names)} tensor{'s' if names[1:] else ''} ({listed})"


def _shape(sizes: Any) -> str:
    return " x ".join(map(str, sizes)) or "a number"
