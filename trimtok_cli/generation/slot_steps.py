"""Prefills into KV slots and decode steps over them: the device's side of the continuous loop.

The tensors that a step reads stay in place, so that a step can be recorded. Prefills of few tokens
are recorded as well, where a device records. The slots in use are
always the first ones. Knows no answer's end and no sampling.
"""

from collections.abc import Sequence
from typing import Any

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

Mask = Tensor | dict[str, Tensor]

FINE = 8  # places: matrix products want a multiple of it


class SlotSteps:
    """The cache, a device's recorded steps, and the id and position of each slot's last token.

    groups: the first layer of each group of layers that hold equally many rows of every prompt.
    """

    # Whether a prefill waits for the device by itself.
    waits = False

    def __init__(self, model: LanguageModel, groups: Sequence[int] = (0,)) -> None:
        self.model = model
        self.slots = KVSlots(model.config, model.dtype, model.device, groups)
        self.graphs = CudaGraphs(model.device)
        self.prefills = RecordedPrefills(
            model, self.slots, CudaGraphs(model.device, "prefills of few tokens")
        )
        # A GPU's libraries build a plan for every new shape, so that few lengths are prefilled.
        self.in_buckets = self.graphs.used
        self.unmasked = self.slots.unmasked
        self.ids = torch.zeros(0, dtype=torch.long, device=model.device)
        self.positions = self.ids

    def clear(self) -> None:
        """Gives the cache's memory back, and forgets the recordings that read it."""
        self.slots.clear()
        self.graphs.clear()
        self.prefills.clear()

    def reserve(
        self,
        slots: int,
        length: int,
        positions: Tensor,
        behind: int = 0,
        *,
        in_use: Sequence[int] = (),
        most: int = 0,
    ) -> None:
        """Makes room for `slots` slots of `length` places, `behind` of them for new tokens.

        positions: those of any prompt. in_use: the lengths of the first slots. A cache that is made
        anew keeps these, and other slots up to `most`; it becomes no longer than it must be.
        """
        self.slots.behind = behind
        rows = max(slots, min(self.slots.rows, most))
        self._reserve(slots, (length,), positions.unsqueeze(-2), rows=rows, in_use=in_use)

    def rows_held(self, longest: int) -> Sequence[int]:
        """The rows that each layer holds of a prompt of `longest`; nothing if all hold it whole."""
        return ()

    def take_in(self, first: int, requests: Sequence[Any]) -> Tensor:
        """Prefills the requests' prompts; returns the logits (B, V) behind each."""
        return self.prefill(first, [request.prompt for request in requests])

    def prefill(self, first: int, prompts: Sequence[Prompt]) -> Tensor:
        """Prefills the slots from `first` on; returns the logits (B, V) behind each prompt."""
        longest = max(map(len, prompts))
        padded = min(bucket(longest), self.slots.length) if self.in_buckets else longest
        if self.prefills.takes(len(prompts), padded):
            return self.prefills(first, prompts, padded, self.positions)
        if self.in_buckets:  # of many rows the padding costs more than another shape does
            padded = min(bucket(longest, FINE), self.slots.length)
        return self._fill(first, prompts, padded)

    def _fill(self, first: int, prompts: Sequence[Prompt], padded: int) -> Tensor:
        embeds, positions = pad_right(prompts, padded)
        with self.slots.filling(first, [len(prompt) for prompt in prompts]):
            logits = self.model.forward(embeds, None, positions, self.slots, prompts)
        self.positions[..., first : first + len(prompts), :] = positions[..., -1:] + 1
        return logits

    def take(self, first: int, chosen: Tensor) -> None:
        """Sets the next tokens (B,) of the slots from `first` on; a negative one is no token."""
        self.ids[first : first + len(chosen)] = chosen.clamp(min=0)

    def decode(self, lengths: Sequence[int]) -> Tensor:
        """Logits (B, V) of one more token for each of the first slots, which have these lengths."""
        slots = self.slots
        spans = [length + 1 for length in slots.longest(lengths)]
        if self.graphs.used:
            return self.graphs(self._uneven_step, len(lengths), spans, slots.rows, slots.places)
        if not self.unmasked and self._needs_no_mask(lengths):
            return self._step(len(lengths), spans, [])
        return self._uneven_step(len(lengths), *spans)

    def _needs_no_mask(self, lengths: Sequence[int]) -> bool:
        """Whether a step sees the whole of all slots.

        The library knows windows as well, for layers with the lengths of the first group.
        """
        if self.slots.num_groups > 1 and types_of_layer(self.model.config) != {"full_attention"}:
            return False
        return self.slots.even(lengths)

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
        self.slots.leave(in_use)

    def make_room(self, lengths: Sequence[int], most: Sequence[int]) -> None:
        """Makes room for one more token in each of the first slots, which have these lengths.

        Slots that are too short double, up to the length that they may come to at `most`.
        """
        slots = self.slots
        needed = [length + 1 for length in slots.longest(lengths)]
        if slots.holds(slots.rows, *needed):
            return
        wanted = [
            max(length, min(2 * there, longest)) if length > there else length
            for length, there, longest in zip(
                needed, slots.places, slots.longest(most), strict=True
            )
        ]
        self._reserve(slots.rows, wanted, self.positions, rows=slots.rows)

    def _reserve(
        self,
        needed: int,
        lengths: Sequence[int],
        positions: Tensor,
        *,
        rows: int,
        in_use: Sequence[int] | None = None,
    ) -> None:
        """Makes a cache of `rows` slots, unless `needed` slots of these lengths are there."""
        if self.slots.holds(needed, *lengths):
            return
        self.forget_recordings()
        self.slots.reserve(rows, *lengths, in_use=in_use)
        if len(self.ids) < self.slots.rows:
            more = self.slots.rows - len(self.ids)
            self.ids = torch.cat([self.ids, self.ids.new_zeros(more)])
            empty = positions.new_zeros(*positions.shape[:-2], self.slots.rows, 1)
            if self.positions.dim() > 1:
                empty[..., : self.positions.shape[-2], :] = self.positions
            self.positions = empty

    def forget_recordings(self) -> None:
        """Forgets the recordings, because the tensors that they read are made anew."""
        self.graphs.clear()
        self.prefills.graphs.clear()

    def _uneven_step(self, count: int, *spans: int) -> Tensor:
        """A step over slots of unequal length; every number that it depends on is on the device."""
        slots, config = self.slots, self.model.config
        ends = [slots.ends(group, count) for group in range(slots.num_groups)]
        if not self.unmasked:
            masks = [self._masks(*each) for each in zip(ends, spans, strict=True)]
            return self._step(count, spans, masks)
        used = [
            slot_attention.used_places(each, places)
            for each, places in zip(ends, slots.places, strict=True)
        ]
        types = types_of_layer(config)
        masks = [dict.fromkeys(types, each) if len(types) > 1 else each for each in used]
        with slot_attention.attending(config):
            return self._step(count, spans, masks)

    def _step(self, count: int, spans: Sequence[int], masks: Sequence[Mask]) -> Tensor:
        """A step under the masks of each group of layers; without any, where all slots are even."""
        self.slots.stepping(count, *spans, even=not masks)
        embeds = self.model.embed_ids(self.ids[:count, None])
        return self._forward(embeds, masks, self.positions[..., :count, :])

    def _forward(self, embeds: Tensor, masks: Sequence[Mask], positions: Tensor) -> Tensor:
        mask = masks[0] if masks else None
        return self.model.forward(embeds, mask, positions, self.slots)

    def _masks(self, ends: Tensor, span: int) -> Mask:
        """Masks (count, 1, 1, span) of the places that each slot has written."""
        places = torch.arange(span, device=ends.device)
        return step_masks(self.model.config, self.model.dtype, places, ends[:, None])
