"""Left padding: prompts of unequal length as one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.tokens import Prompt


def pad_left(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The padded prompts: embeds (B, S, D), mask (B, S), positions (B, S) or (3, B, S).

    The mask holds ones and zeros, or is None if nothing is padded.
    """
    longest = max(len(prompt) for prompt in prompts)
    first = prompts[0]
    embeds = first.embeds.new_zeros(len(prompts), longest, first.embeds.shape[-1])
    positions = first.positions.new_zeros(*first.positions.shape[:-1], len(prompts), longest)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=embeds.device)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        embeds[row, start:] = prompt.embeds
        positions[..., row, start:] = prompt.positions
        mask[row, start:] = 1
    # There is no mask without padding: attention kernels are faster, and the library builds the
    # causal mask itself.
    return embeds, None if all(len(prompt) == longest for prompt in prompts) else mask, positions
