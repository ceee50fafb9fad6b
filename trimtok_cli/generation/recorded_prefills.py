"""Prefills of few tokens, recorded as decode steps are: a device is done with them sooner than a
host has launched their thousand kernels.

Pruned prompts are nearly of one length, so that padded ones have few shapes. What a recorded
prefill reads lies in tensors that stay in place: rows, positions, the slots to fill and each
prompt's last row. Knows no answer.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.device import on_device
from trimtok_cli.generation.kv_slots import KVSlots
from trimtok_cli.generation.padding import write_padded
from trimtok_cli.generation.types import LanguageModel
from trimtok_cli.tokens import Prompt

MOST_PROMPTS = 8
LONGEST = 512
# Tokens of a recorded prefill, padding counted. With more of them a device is busy for longer than
# the launches take, and dummy prompts would cost more than launches.
MOST_TOKENS = 1024


class _Inputs:
    """What recorded prefills read, in tensors that stay in place. All prefills share them."""

    def __init__(self, prompt: Prompt) -> None:
        """prompt: any one, which shows the widths."""
        self.axes = prompt.positions.shape[:-1]
        self.embeds = prompt.embeds.new_empty(MOST_TOKENS, prompt.embeds.shape[-1])
        self.positions = prompt.positions.new_empty(prod(self.axes) * MOST_TOKENS)
        # Each prompt's slot and the number of its last row.
        self.where = prompt.positions.new_empty(2, MOST_PROMPTS)

    def padded(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Views: embeds (B, S, D), positions (B, S) or (3, B, S)."""
        tokens = count * length
        embeds = self.embeds[:tokens].view(count, length, -1)
        positions = self.positions[: prod(self.axes) * tokens].view(*self.axes, count, length)
        return embeds, positions


class RecordedPrefills:
    """Prefills of one model into one cache."""

    def __init__(self, model: LanguageModel, slots: KVSlots, graphs: CudaGraphs) -> None:
        self.model, self.slots, self.graphs = model, slots, graphs
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.graphs.clear()
        self.inputs: _Inputs | None = None

    def takes(self, count: int, length: int) -> bool:
        """Whether a prefill of `count` prompts, padded to `length`, runs here."""
        return (
            self.graphs.used
            and count <= MOST_PROMPTS
            and length <= LONGEST
            and rounded(count) * length <= MOST_TOKENS
            and self.model.plain_prefill
        )

    def __call__(
        self, first: int, prompts: Sequence[Prompt], length: int, positions: Tensor
    ) -> Tensor:
        """Prefills the slots from `first` on; returns the logits (B, V) behind each prompt.

        positions: those of each slot's next token, which are set. Their tensor and the cache stay
        in place until the recordings are cleared.
        """

        def prefill(count: int, length: int) -> Tensor:
            return self._prefill(inputs, count, length, positions)

        count = rounded(len(prompts))
        inputs = self._write(first, prompts, count, length)
        return self.graphs.exactly(prefill, (count, length))[: len(prompts)]

    def _write(self, first: int, prompts: Sequence[Prompt], count: int, length: int) -> "_Inputs":
        """Writes the inputs of a prefill of `count` prompts.

        The surplus ones are the last prompt once more, for the same slot: they write the same keys
        to the same places.
        """
        self.inputs = self.inputs or _Inputs(prompts[0])
        numbers = [min(each, len(prompts) - 1) for each in range(count)]
        write_padded([prompts[each] for each in numbers], *self.inputs.padded(count, length))
        slots = [first + each for each in numbers]
        last = [len(prompts[each]) - 1 for each in numbers]
        self.inputs.where[:, :count] = on_device(torch.tensor([slots, last]), self.model.device)
        return self.inputs

    def _prefill(
        self, inputs: "_Inputs", count: int, length: int, next_positions: Tensor
    ) -> Tensor:
        """A prefill of what was written; every number that it depends on is on the device."""
        embeds, positions = inputs.padded(count, length)
        slots, last = inputs.where[:, :count].unbind()
        with self.slots.prefilling(slots):
            logits = self.model.forward(embeds, None, positions, self.slots, last=last)
        self.slots.lengths[slots] = last + 1
        next_positions[..., slots, :] = positions[..., -1:] + 1
        return logits


def rounded(count: int) -> int:
    """The number of prompts that a prefill of `count` prompts runs with: a power of two."""
    return 1 << (count - 1).bit_length()
