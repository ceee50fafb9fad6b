"""Right padding: prompts of unequal length as one batch that needs no mask.

A row sees itself and the rows before it, so no row of a prompt sees the padding behind it, and no
row sees nothing.
"""

from collections.abc import Sequence

from torch import Tensor

from trimtok_cli.tokens import Prompt


def pad_right(prompts: Sequence[Prompt], length: int | None = None) -> tuple[Tensor, Tensor]:
    """The padded prompts: embeds (B, S, D), positions (B, S) or (3, B, S).

    length S: at least the longest prompt's, which is the default. A prompt's last row is repeated
    behind it: attention reads those keys too and gives them the weight 0, and 0 times a number that
    overflowed is NaN. Copies of a row of the prompt overflow no sooner than the prompt.
    """
    length = length or max(len(prompt) for prompt in prompts)
    first = prompts[0]
    embeds = first.embeds.new_empty(len(prompts), length, first.embeds.shape[-1])
    positions = first.positions.new_empty(*first.positions.shape[:-1], len(prompts), length)
    write_padded(prompts, embeds, positions)
    return embeds, positions


def write_padded(prompts: Sequence[Prompt], embeds: Tensor, positions: Tensor) -> None:
    """Writes the padded prompts into tensors of the shapes that `pad_right` returns."""
    length = embeds.shape[1]
    for row, prompt in enumerate(prompts):
        end = len(prompt)
        embeds[row, :end] = prompt.embeds
        positions[..., row, :end] = prompt.positions
        if end < length:
            embeds[row, end:] = prompt.embeds[-1]
            positions[..., row, end:] = prompt.positions[..., -1:]


def bucket(length: int) -> int:
    """The length that a batch is padded to where few shapes are wanted: at most 1/8 more of it.

    Steps of 32 up to 512, and of an eighth of the power of two below it from there on.
    """
    step = max(32, 1 << max(length - 1, 0).bit_length() >> 4)
    return -(-length // step) * step
