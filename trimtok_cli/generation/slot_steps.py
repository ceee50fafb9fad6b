"""Prefills into KV slots and decode steps over them: the device's side of the continuous loop.

The tensors that a step reads stay in place, so that a step can be recorded. Prefills of few tokens
are recorded as well, where a device records. The slots in use are
always the first ones. Knows no answer's end and no sampling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.generation import slot_attention
from trimtok_cli.generation.kv_slots import KVSlots
from trimtok_cli.generation.masks import step_masks, types_of_layer
from trimtok_cli.generation.padding import bucket, pad_right
from trimtok_cli.generation.recorded_prefills import RecordedPrefills
from trimtok_cli.generation.types import LanguageModel
from trimtok_cli.tokens import Prompt


class SlotSteps:
    """The cache, a device's recorded steps, and the id and position of each slot's last token."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.slots = KVSlots(model.config, model.dtype, model.device)
        self.graphs = CudaGraphs(model.device)
        self.prefills = RecordedPrefills(
            model, self.slots, CudaGraphs(model.device, "prefills of few tokens")
        )
        # A GPU's libraries build a plan for every new shape, so that few lengths are prefilled.
        self.in_buckets = self.graphs.used
        # Whether steps attend to the places in use, without masks.
        self.unmasked = slot_attention.fits(
            model.config, model.dtype, model.device, self.slots.width
        )
        self.ids = torch.zeros(0, dtype=torch.long, device=model.device)
        self.positions = self.ids

    def clear(self) -> None:
        """Gives the cache's memory back, and forgets the recordings that read it."""
        self.slots.clear()
        self.graphs.clear()
        self.prefills.clear()

    def reserve(self, slots: int, length: int, positions: Tensor) -> None:
        """Makes room for `slots` slots of `length` places. positions: those of any prompt."""
        self._reserve(slots, length, positions.unsqueeze(-2))

    def prefill(self, first: int, prompts: Sequence[Prompt]) -> Tensor:
        """Prefills the slots from `first` on; returns the logits (B, V) behind each prompt."""
        padded = max(map(len, prompts))
        if self.in_buckets:
            padded = min(bucket(padded), self.slots.length)
        if self.prefills.takes(len(prompts), padded):
            return self.prefills(first, prompts, padded, self.positions)
        embeds, positions = pad_right(prompts, padded)
        with self.slots.filling(first, [len(prompt) for prompt in prompts]):
            logits = self.model.forward(embeds, None, positions, self.slots, prompts)
        self.positions[..., first : first + len(prompts), :] = positions[..., -1:] + 1
        return logits

    def take(self, first: int, chosen: Tensor) -> None:
        """Sets the next tokens (B,) of the slots from `first` on; a negative one is no token."""
        self.ids[first : first + len(chosen)] = chosen.clamp(min=0)

    def decode(self, count: int, span: int, *, even: bool) -> Tensor:
        """Logits (count, V) of one more token for each of the first `count` slots.

        Attention sees `span` places of each slot. even: the slots all have one length.
        """
        if self.graphs.used:
            step, slots = self._uneven_step, self.slots
            return self.graphs(step, count, span, slots.rows, slots.length)
        if even and not self.unmasked:
            return self._step(count, span, None)
        return self._uneven_step(count, span)

    def advance(self, count: int, chosen: Tensor) -> None:
        """Hands a step's tokens to the next step, one place further on."""
        self.take(0, chosen)
        self.positions[..., :count, :] += 1
        self.slots.lengths[:count] += 1

    def move(self, source: int, target: int, length: int) -> None:
        """Moves the contents of slot `source`, `length` places, to slot `target`."""
        self.slots.move(source, target, length)
        self.ids[target] = self.ids[source]
        self.positions[..., target, :] = self.positions[..., source, :]

    def leave(self, in_use: int) -> None:
        """Frees the slots from `in_use` on.

        A recorded step still includes free slots, which then write to place 0: every slot has it.
        """
        self.slots.lengths[in_use:] = 0

    def make_room(self, length: int, most: int) -> None:
        """Makes room for slots of `length` places: shorter slots double, up to `most` places."""
        if not self.slots.holds(self.slots.rows, length):
            doubled = min(2 * self.slots.length, most)
            self._reserve(self.slots.rows, max(length, doubled), self.positions)

    def _reserve(self, rows: int, length: int, positions: Tensor) -> None:
        if self.slots.holds(rows, length):
            return
        # The recordings read tensors that are made anew here.
        self.graphs.clear()
        self.prefills.graphs.clear()
        self.slots.reserve(rows, length)
        if len(self.ids) < self.slots.rows:
            more = self.slots.rows - len(self.ids)
            self.ids = torch.cat([self.ids, self.ids.new_zeros(more)])
            empty = positions.new_zeros(*positions.shape[:-2], self.slots.rows, 1)
            if self.positions.dim() > 1:
                empty[..., : self.positions.shape[-2], :] = self.positions
            self.positions = empty

    def _uneven_step(self, count: int, span: int) -> Tensor:
        """A step over slots of unequal length; every number that it depends on is on the device."""
        if not self.unmasked:
            return self._step(count, span, self._masks(count, span))
        config, slots = self.model.config, self.slots
        used = slot_attention.used_places(slots.lengths[:count], slots.length)
        types = types_of_layer(config)
        with slot_attention.attending(config):
            return self._step(count, span, dict.fromkeys(types, used) if len(types) > 1 else used)

    def _step(self, count: int, span: int, mask: Tensor | dict[str, Tensor] | None) -> Tensor:
        self.slots.stepping(count, span, even=mask is None)
        embeds = self.model.embed_ids(self.ids[:count, None])
        return self.model.forward(embeds, mask, self.positions[..., :count, :], self.slots)

    def _masks(self, count: int, span: int) -> Tensor | dict[str, Tensor]:
        """Masks (count, 1, 1, span) of the places that each slot has written."""
        ends = self.slots.lengths[:count, None]
        places = torch.arange(span, device=ends.device)
        return step_masks(self.model.config, self.model.dtype, places, ends)
