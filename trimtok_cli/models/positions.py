"""The positions of a language model, and how much of a prompt and its answer fits them.

Knows numbers and sentences alone: no model, no tensor.
"""

from typing import Any


def num_positions(config: Any) -> int | None:
    """The positions that a text configuration promises, after RoPE scaling; None where unknown.

    Linear and dynamic scaling stretch `max_position_embeddings`. YaRN stretches the length that the
    model was trained on. `max_position_embeddings` already counts the other types (llama3,
    longrope, M-RoPE's sections) and those that differ between layers (Gemma 3). A sliding window is
    no limit.
    """
    named = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type")
    factor = rope.get("factor") or 1
    if not isinstance(named, int) or named <= 0:
        return None
    if rope_type == "yarn":
        return max(named, int((rope.get("original_max_position_embeddings") or named) * factor))
    return int(named * factor) if rope_type in ("linear", "dynamic") else named


def shortage(limit: int | None, used: int, *, visual: int) -> str:
    """The sentence for a prompt that uses more positions than the limit; "" for one that fits.

    visual: the number of the prompt's visual tokens.
    """
    if limit is None or used <= limit:
        return ""
    return (
        f"the prompt takes {used:,} positions, {visual:,} of its tokens are visual, and the "
        f"model has {limit:,}: "
        "fewer --frames, a smaller --keep, --max-pixels or a shorter question makes it fit."
    )


def steps_that_fit(limit: int | None, used: int, steps: int) -> int:
    """The number of an answer's `steps` tokens that were predicted within the limit, at least 1.

    used: positions of the prompt. limit: the model's positions; None where unknown.
    """
    return steps if limit is None else max(1, min(steps, limit - used + 1))
