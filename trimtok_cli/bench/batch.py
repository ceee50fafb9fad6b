"""One batch from prepared inputs to its last token, with a fixed number of new tokens.

It runs the engine's own functions, and times are the engine's. Knows no YAML.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtok_cli.data import Seconds
from trimtok_cli.device import wait
from trimtok_cli.engine.answer import encode, prune
from trimtok_cli.engine.loops import loop_for, prunes_in_decoder, rules_for
from trimtok_cli.engine.prompt_stage import layer_mean
from trimtok_cli.generation.types import Finished, Loop, Request, run
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import build_pruner, own_params, reads_tower

STAGES = ("encode", "prune", "prefill", "decode")


@dataclass(frozen=True)
class Spent:
    """Seconds of the whole batch. wall: from the prepared inputs to the last token, all waiting
    included.

    visual, kept: tokens of each sample, kept as the mean over decoder layers; text: its other
    tokens.
    """

    encode: float
    prune: float
    prefill: float
    decode: float
    wall: float
    visual: tuple[int, ...]
    kept: tuple[float, ...]
    text: tuple[int, ...]


class Loops:
    """The loops of a cell, in which every answer has exactly so many new tokens: one for all
    settings, as one run would keep it, and one for each that prunes inside the decoder.
    """

    def __init__(self, adapter: Adapter, *, decode: str, new_tokens: int, batch: int) -> None:
        self.adapter, self.decode, self.batch = adapter, decode, batch
        self.rules = rules_for(adapter, Ask(max_new_tokens=new_tokens), stop=False)
        self.shared: Loop | None = None

    def of(self, pruner: Pruner | None) -> Loop:
        if prunes_in_decoder(self.adapter, pruner):
            return self.new(pruner)
        self.shared = self.shared or self.new(None)
        return self.shared

    def new(self, pruner: Pruner | None) -> Loop:
        return loop_for(
            self.adapter, pruner, self.rules, decode=self.decode, batch_limit=self.batch
        )

    def renew(self) -> None:
        """After an error: a loop that made its batches smaller would measure something else."""
        self.shared = None


def run_batch(
    adapter: Adapter, pruner: Pruner | None, prepared: Sequence[Prepared], loop: Loop
) -> Spent:
    """Encode, prune, prefill and decode as the engine does it. Raises what any answer ends in."""
    wait(adapter.device)
    start = time.perf_counter()
    encoded = encode(adapter, prepared, signals=reads_tower(pruner))
    finished = generate_all(loop, prune(adapter, pruner, encoded))
    wait(adapter.device)
    wall = time.perf_counter() - start
    requests = [each.request for each in finished]
    seconds = sum((each.request.seconds + each.seconds for each in finished), Seconds())
    return Spent(
        encode=seconds.encode,
        prune=seconds.prune,
        prefill=seconds.prefill,
        decode=seconds.decode,
        wall=wall,
        visual=tuple(each.num_visual for each in requests),
        kept=tuple(layer_mean(each.kept, adapter.num_layers) for each in requests),
        text=tuple(len(each.prompt) - len(each.prompt.visual) for each in requests),
    )


def generate_all(loop: Loop, requests: Sequence[Request]) -> list[Finished]:
    """A batch that begins together, in its order. Raises the error that any of it ends in, and
    OutOfMemoryError where the loop had to make the batch smaller.
    """
    finished = sorted(run(loop, requests), key=lambda each: each.request.number)
    for each in finished:
        if each.error:
            raise each.error
    if getattr(loop, "batch_limit", len(requests)) < len(requests):
        raise torch.OutOfMemoryError(f"{len(requests)} answers at a time do not fit")
    return finished


def make_pruner(method: str, keep: str, params: Mapping[str, Any], seed: int) -> Pruner | None:
    """The pruner of a name; `METHOD.NAME` among the parameters is for that method alone. Raises
    UsageError.
    """
    return build_pruner(method, {"keep": keep, "seed": seed, **own_params(method, params)})
