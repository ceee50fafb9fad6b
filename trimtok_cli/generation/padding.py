"""Right padding: prompts of unequal length as one batch that needs no mask.

A row sees itself and the rows before it, so no row of a prompt sees the padding behind it, and no
row sees nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.tokens import Prompt

# Tokens of padding that cost about as much as a second prefill, which reads all weights once more.
# On other devices it would also be launched once more, which was not weighed against padding.
PADDING = {"cpu": 64}


def pad_right(prompts: Sequence[Prompt], length: int | None = None) -> tuple[Tensor, Tensor]:
    """The padded prompts: embeds (B, S, D), positions (B, S) or (3, B, S).

    length S: at least the longest prompt's, which is the default. A prompt's last row is repeated
    behind it: attention reads those keys too and gives them the weight 0, and 0 times a number that
    overflowed is NaN. Copies of a row of the prompt overflow no sooner than the prompt.
    """
    first = prompts[0]
    length = length or max(len(prompt) for prompt in prompts)
    embeds = first.embeds.new_empty(len(prompts), length, first.embeds.shape[-1])
    positions = first.positions.new_empty(*first.positions.shape[:-1], len(prompts), length)
    write_padded(prompts, embeds, positions)
    return embeds, positions


def write_padded(prompts: Sequence[Prompt], embeds: Tensor, positions: Tensor) -> None:
    """Writes the padded prompts into tensors of the shapes that `pad_right` returns."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    # The row of all prompts' rows that each place holds; found on the host, copied once.
    places = torch.arange(embeds.shape[1]).minimum(lengths[:, None] - 1)
    rows = on_device(places + (lengths.cumsum(0) - lengths)[:, None], embeds.device)
    embeds.copy_(torch.cat([prompt.embeds for prompt in prompts])[rows])
    positions.copy_(torch.cat([prompt.positions for prompt in prompts], -1)[..., rows])


def like_lengths(lengths: Sequence[int], tokens: int, padding: int | None) -> Iterator[int]:
    """How many of the next lengths make up each batch; `lengths` ascend.

    A batch of several has at most so many tokens, padding counted, and so many of padding; None is
    any number.
    """
    count = total = 0
    for length in lengths:
        padded = (count + 1) * length
        added = padded - total - length
        if count and (padded > tokens or (padding is not None and added > padding)):
            yield count
            count = total = 0
        count, total = count + 1, total + length
    if count:
        yield count


def bucket(length: int, least: int = 32) -> int:
    """The length that a batch is padded to where few shapes are wanted.

    Steps of `least` places up to 512, and of their share of each power of two from there on: 32
    adds at most an eighth to a long prompt, 8 at most a 32nd.
    """
    step = max(least, (1 << max(length - 1, 0).bit_length()) * least >> 9)
    return -(-length // step) * step
