"""The continuous loop of a pruner that reduces inside the decoder.

A prefill runs through the pruner's stages, and leaves the layers behind a stage with shorter
prompts. From then on answers are under way as in every continuous loop: the layers between two
stages are a group with lengths, masks and positions of its own. `Layerwise` is the oracle of this
loop. Knows no method and no family by name.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Kept, Seconds
from trimtok_cli.engine.batch import Pruned
from trimtok_cli.engine.decoder_stages import Ragged, RunningStages
from trimtok_cli.engine.decoder_steps import Rotary, behind_stages, stage_layers
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.slot_steps import Mask, SlotSteps
from trimtok_cli.generation.types import Finished
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.pruners.base import Pruner

# Prompts whose rows in each layer are remembered, to foresee those of the next ones.
LAST = 64


class StagedLoop(Continuous):
    """Runs answers as `Continuous` does; its requests are `Pruned`, with their dense tokens.

    A request returns with the tokens that every stage kept; its seconds include its share of the
    pruner's choices.
    """

    def __init__(self, adapter: Adapter, pruner: Pruner, rules: Rules, **options: Any) -> None:
        """options: those of `Continuous`."""
        self.stages = StagedSteps(adapter, pruner)
        super().__init__(adapter, rules, steps=self.stages, **options)

    def step(self) -> list[Finished]:
        return [self._noted(finished) for finished in super().step()]

    def _noted(self, finished: Finished) -> Finished:
        request = finished.request
        kept, seconds = self.stages.chosen.pop(id(request), ((), 0.0))
        if finished.generated is None:
            return finished
        pruned = replace(request, kept=kept, seconds=request.seconds + Seconds(prune=seconds))
        spent = replace(finished.seconds, prefill=finished.seconds.prefill - seconds)
        return replace(finished, request=pruned, seconds=spent)


class StagedSteps(SlotSteps):
    """Prefills through a pruner's stages, and decode steps over the slots that they leave.

    chosen: the tokens that each stage kept, and the seconds of the choice, by the `id` of the
    request.
    """

    waits = True  # for the pruner's choices

    def __init__(self, adapter: Adapter, pruner: Pruner) -> None:
        stages = stage_layers(pruner, adapter.num_layers, adapter.deepstack_layers)
        self.groups = [0, *stages]
        super().__init__(adapter, self.groups)
        self.adapter, self.pruner = adapter, pruner
        self.renumber = adapter.renumbers and pruner.renumbers
        self.rotary = Rotary(adapter.model.get_decoder())
        self.chosen: dict[int, tuple[tuple[Kept, ...], float]] = {}
        self.choosing = 0.0  # seconds of the choices in the last prefill
        # The rows of the last prompts in each group of layers.
        self.last: deque[list[int]] = deque(maxlen=LAST)

    def rows_held(self, longest: int) -> Sequence[int]:
        """Rows in each layer of a prompt of `longest`, as the last ones that are no longer had.

        What it has more than the longest of them may stay in all layers.
        """
        known = [rows for rows in self.last if rows[0] <= longest]
        if not known:
            return ()
        most = [max(rows) for rows in zip(*known, strict=True)]
        return [most[group] + longest - most[0] for group in self.slots.group_of]

    def take_in(self, first: int, requests: Sequence[Any]) -> Tensor:
        """Prefills the requests, those of one shape that follow each other together.

        Requests that a stage leaves unequally long are prefilled one by one.
        """
        places = list(self.slots.places)
        logits: list[Tensor] = []
        self.choosing = 0.0
        for alike in _runs(requests, shape_of):
            begin = first + sum(len(each) for each in logits)
            try:
                logits.append(self._through_stages(begin, alike))
            except Ragged:
                for number, request in enumerate(alike):
                    logits.append(self._through_stages(begin + number, [request]))
        if places != self.slots.places:
            self.forget_recordings()
        # All of them share the seconds of the prefill, and so those of the choices in it.
        for request in requests:
            self.chosen[id(request)] = self.chosen[id(request)][0], self.choosing / len(requests)
        return torch.cat(logits)

    def _through_stages(self, first: int, requests: Sequence[Pruned]) -> Tensor:
        """Prefills requests of one shape into the slots from `first` on. Raises Ragged."""
        with RunningStages(
            self.rotary.decoder,
            self.pruner,
            [request.prompt for request in requests],
            dense_tokens(requests),
            renumber=self.adapter.renumbers,
        ) as stages:
            logits = self._fill(first, stages.plain, len(requests[0].prompt))
        self.choosing += stages.seconds
        self.last.append([self.slots.prompt_rows[group] for group in range(len(self.groups))])
        for request, kept in zip(requests, stages.kept, strict=True):
            self.chosen[id(request)] = tuple(kept), 0.0
        return logits

    def _forward(self, embeds: Tensor, masks: Sequence[Mask], positions: Tensor) -> Tensor:
        """A decode step. A new token's position behind a stage that renumbers is its place."""
        deeper = range(1, self.slots.num_groups) if self.renumber else ()
        ends = [self.slots.ends(group, len(embeds))[:, None] for group in deeper]
        with behind_stages(self.rotary, self.groups, masks, ends):
            return super()._forward(embeds, masks, positions)


def dense_tokens(requests: Sequence[Pruned]) -> list[Any]:
    """The dense visual tokens of each request."""
    tokens = [request.tokens for request in requests if request.tokens is not None]
    if len(tokens) < len(requests):
        raise LookupError("a pruner that goes on inside the decoder needs the dense tokens")
    return tokens


def shape_of(request: Pruned) -> tuple[int, ...]:
    """The rows of a request's prompt, its visual rows, and the dense tokens of each of its images.

    Requests that are equal in these have equal budgets, so every stage leaves them equally long. A
    pruner that shares a budget out by what the images show may still leave them unequal.
    """
    images = () if request.tokens is None else request.tokens.visual_index.bincount().tolist()
    return (len(request.prompt), len(request.prompt.visual), *images)


def _runs(requests: Sequence[Pruned], key: Callable[[Pruned], Hashable]) -> Iterator[list[Pruned]]:
    """The requests in their order, in lists of those that follow each other and have one key."""
    return (list(alike) for _, alike in groupby(requests, key))
