"""Whether a model was loaded with all of its weights."""

import re
from typing import Any

import torch

from trimtok_cli.models.broken import Broken
from trimtok_cli.models.folder import _first_sentence

LOOKED_AT = 1024  # numbers of a matrix

NAMED = 3  # of the tensors that are missing, so many are named

# Weights that no answer depends on: SigLIP's pooling head, which some checkpoints were saved
# without.
UNREAD = re.compile(r"vision_(tower|model)\.(vision_model\.)?head\.")

_DECODER_LAYER = re.compile(r"(?:language_model|text_model|^model)(?:\.model)?\.layers\.(\d+)\.")


def check_weights(info: dict[str, Any], *, layers: int = 0) -> None:
    """Raises Broken where the library's report of what it loaded has weights that are random now,
    and names them.

    What a model shares with another tensor, or computes itself, the library does not count as
    missing. layers: how many the decoder has, where that is known; a checkpoint that has more of
    them was made for another config.json.
    """
    found = [
        int(match[1]) + 1
        for name in info["unexpected_keys"]
        if (match := _DECODER_LAYER.search(name))
    ]
    if layers and max(found, default=0) > layers:
        raise Broken(
            f"its config.json says {layers} layers, and its weights have {max(found)}; copy "
            "or download it again"
        )
    missing = sorted(name for name in info["missing_keys"] if not UNREAD.search(name))
    if missing:
        others = sorted(info["unexpected_keys"])
        hint = (
            f"; it has {len(others)} that the model does not know ({others[0]})" if others else ""
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
        more = f" and {len(shapes) - 1} more" if shapes[1:] else ""
        raise Broken(
            f"its weights are not of the sizes that its config.json says ({shapes[0]}{more})"
        )
    if info.get("error_msgs"):
        raise Broken(f"its weights do not fit the model ({_first_sentence(info['error_msgs'][0])})")


def check_filled(network: torch.nn.Module) -> None:
    """Raises Broken where a matrix holds nothing but zeros: its file was made as long as it should
    be, but not filled.

    Looks at about a thousand of its numbers, evenly spaced.
    """
    matrices = (
        (name, each)
        for name, each in network.named_parameters()
        if each.ndim > 1 and min(each.shape) > 1
    )
    empty = [
        name
        for name, each in matrices
        if not each.flatten()[:: each.numel() // LOOKED_AT + 1].any()
    ]
    if empty:
        raise Broken(
            f"its weights hold nothing but zeros in {_count(empty)}; copy or download the "
            "checkpoint again"
        )


def _count(names: list[str]) -> str:
    listed = ", ".join(names[:NAMED]) + (
        f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )
    return f"{len(names)} tensor{'s' if names[1:] else ''} ({listed})"


def _shape(sizes: Any) -> str:
    return " x ".join(map(str, sizes)) or "a number"
