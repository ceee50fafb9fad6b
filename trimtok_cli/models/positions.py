"""How many positions a language model has, and what of a prompt and its answer fits them: numbers
and sentences alone.
"""

from typing import Any


def num_positions(config: Any) -> int | None:
    """The positions that a text configuration promises, RoPE scaling counted; None where it says
    nothing.

    Linear and dynamic scaling stretch what the configuration names; YaRN stretches what the model
    was trained on. The other kinds (llama3, longrope, M-RoPE's sections), and those that differ
    between layers (Gemma 3), are in the number already. A sliding window is no limit.
    """
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1
    if not isinstance(most, int) or most <= 0:
        return None
    if kind == "yarn":
        return max(most, int((rope.get("original_max_position_embeddings") or most) * factor))
    return int(most * factor) if kind in ("linear", "dynamic") else most


def shortage(limit: int | None, used: int, *, visual: int) -> str:
    """The sentence for a prompt that takes more positions than there are; "" for one that fits.
    visual: its visual tokens.
    """
    if limit is None or used <= limit:
        return ""
    return (
        f"the prompt takes {used:,} positions, {visual:,} of its tokens are visual, and the "
        f"model has {limit:,}: "
        "fewer --frames, a smaller --keep, --max-pixels or a shorter question makes it fit."
    )


def steps_that_fit(limit: int | None, used: int, steps: int) -> int:
    """How many of an answer's `steps` tokens were predicted at positions that the model has; at
    least the first.
    """
    return steps if limit is None else max(1, min(steps, limit - used + 1))
