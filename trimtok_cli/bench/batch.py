"""One batch from prepared inputs to its last token, with a fixed number of new tokens.

The engine's own functions run, and the times are the engine's. Knows no YAML.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtok_cli.data import Seconds, Setting
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
    """Seconds of a whole batch, and the tokens of its samples.

    wall: from the prepared inputs to the last token, all waiting included. visual, kept, text:
    tokens of each sample; kept is the mean over decoder layers, text counts the other tokens.
    replayed, eager: decode steps that were launched as one recording, and kernel by kernel; both
    are 0 where steps are not recorded at all. prefills_replayed, prefills_eager: the same of the
    prefills that are recorded once they have come often enough.
    """

    encode: float
    prune: float
    prefill: float
    decode: float
    wall: float
    visual: tuple[int, ...]
    kept: tuple[float, ...]
    text: tuple[int, ...]
    replayed: int = 0
    eager: int = 0
    prefills_replayed: int = 0
    prefills_eager: int = 0


class Loops:
    """The generation loops of a cell, in which every answer has exactly `new_tokens` new tokens.

    A loop is kept, as one run would keep it. All settings share one; a setting that prunes inside
    the decoder has a loop of its own.
    """

    def __init__(self, adapter: Adapter, *, decode: str, new_tokens: int, batch: int) -> None:
        self.adapter = adapter
        self.decode = decode
        self.batch = batch
        self.rules = rules_for(adapter, Ask(max_new_tokens=new_tokens), stop=False)
        self.kept: dict[Setting, Loop] = {}

    def of(self, pruner: Pruner | None) -> Loop:
        """The loop that a setting runs in."""
        own = pruner if prunes_in_decoder(self.adapter, pruner) else None
        setting = Setting.of(own)
        if setting not in self.kept:
            self.kept[setting] = self.new(own)
        return self.kept[setting]

    def new(self, pruner: Pruner | None) -> Loop:
        """A fresh loop with a cache of its own.

        A batch that does not fit is an error at once: smaller ones would measure something else.
        """
        return loop_for(
            self.adapter,
            pruner,
            self.rules,
            decode=self.decode,
            batch_limit=self.batch,
            retries=False,
        )

    def renew(self) -> None:
        """Drops all loops after an error, with their caches."""
        self.kept = {}


def run_batch(
    adapter: Adapter, pruner: Pruner | None, prepared: Sequence[Prepared], loop: Loop
) -> Spent:
    """Encodes, prunes, prefills and decodes as the engine does. Raises the error of any answer."""
    before = passes_of(loop)
    wait(adapter.device)
    start = time.perf_counter()
    encoded = encode(adapter, prepared, signals=reads_tower(pruner))
    finished = generate_all(loop, prune(adapter, pruner, encoded))
    wait(adapter.device)
    wall = time.perf_counter() - start
    requests = [answer.request for answer in finished]
    seconds = sum((answer.request.seconds + answer.seconds for answer in finished), Seconds())
    return Spent(
        encode=seconds.encode,
        prune=seconds.prune,
        prefill=seconds.prefill,
        decode=seconds.decode,
        wall=wall,
        visual=tuple(request.num_visual for request in requests),
        kept=tuple(layer_mean(request.kept, adapter.num_layers) for request in requests),
        text=tuple(len(request.prompt) - len(request.prompt.visual) for request in requests),
        **{name: count - before[name] for name, count in passes_of(loop).items()},
    )


def passes_of(loop: Loop) -> dict[str, int]:
    """The passes of a loop so far, by the names of `Spent`. Empty where none are recorded."""
    steps = getattr(loop, "steps", None)
    if steps is None:
        return {}
    prefills = steps.prefills.graphs
    return {
        "replayed": steps.graphs.replayed,
        "eager": steps.graphs.eager,
        "prefills_replayed": prefills.replayed,
        "prefills_eager": prefills.eager,
    }


def generate_all(loop: Loop, requests: Sequence[Request]) -> list[Finished]:
    """The answers of a batch that begins together, in the order of the requests.

    Raises the error of any answer.
    """
    finished = sorted(run(loop, requests), key=lambda answer: answer.request.number)
    for answer in finished:
        if answer.error:
            raise answer.error
    return finished


def make_pruner(method: str, keep: str, params: Mapping[str, Any], seed: int) -> Pruner | None:
    """The pruner of a name; a parameter `METHOD.NAME` is for that method alone.

    Raises UsageError.
    """
    return build_pruner(method, {"keep": keep, "seed": seed, **own_params(method, params)})
