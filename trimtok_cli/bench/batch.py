"""One batch from prepared inputs to its last token, stage by stage, with a fixed number of new
tokens. Knows no YAML.

On CUDA encode and prune lie between events in the device's queue, read after one wait; prefill and
decode are the token loop's own times, which wait for the device once a block of tokens.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from trimtok_cli.device import wait
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.engine.loops import goes_inside
from trimtok_cli.engine.prompt_stage import layer_mean, reduce_prompts
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import generate
from trimtok_cli.generation.types import Generated, Times
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.preprocessor import Inputs
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import build_pruner, own_params, reads_tower
from trimtok_cli.tokens import Prompt, VisualTokens

Decoder = Callable[[Sequence[Prompt]], tuple[list[Generated], Times]]

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


def continuous(adapter: Adapter, new_tokens: int) -> Decoder:
    return Continuous(adapter, max_new_tokens=new_tokens, stop=False).batch


def simple(adapter: Adapter, new_tokens: int) -> Decoder:
    return partial(generate, adapter, max_new_tokens=new_tokens, stop=False)


DECODERS: dict[str, Callable[[Adapter, int], Decoder]] = {
    "continuous": continuous,
    "simple": simple,
}

"""Token loops by the names that a YAML uses for them. One that is made may keep what it has for the
next batch.
"""


class Marks:
    """Moments between stages; `seconds` are those between one and the next."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.moments = device, []
        self.mark()

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.moments.append(event)
            return
        wait(self.device)
        self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        wait(self.device)
        pairs = pairwise(self.moments)
        if self.device.type == "cuda":
            return [first.elapsed_time(second) / 1000 for first, second in pairs]
        return [second - first for first, second in pairs]


@torch.inference_mode()
def run_batch(
    adapter: Adapter,
    pruner: Pruner | None,
    inputs: Sequence[Inputs],
    *,
    new_tokens: int,
    decoder: Decoder,
) -> Spent:
    """Encode, prune, prefill and decode, the end token ignored. Inside the model the plain loop
    runs, as in the engine.
    """
    wait(adapter.device)
    start, marks = time.perf_counter(), Marks(adapter.device)
    tokens = adapter.encode_many(inputs, taps=reads_tower(pruner))
    prompts = [adapter.embed(each, visual) for each, visual in zip(inputs, tokens, strict=True)]
    marks.mark()
    text = [len(prompt) - len(prompt.visual) for prompt in prompts]
    prompts, kept = reduce_prompts(
        pruner, prompts, tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
    )
    marks.mark()
    prune = 0.0
    if goes_inside(adapter, pruner):
        kept, prune, prefill, last = _run_inside(
            adapter, pruner, prompts, tokens, simple(adapter, new_tokens)
        )
    else:
        _, times = decoder(prompts)
        prefill, last = times.prefill, times.decode
    wait(adapter.device)
    wall = time.perf_counter() - start
    encode, before = marks.seconds()
    means = tuple(layer_mean(stages, adapter.num_layers) for stages in kept)
    return Spent(
        encode, before + prune, prefill, last, wall, tuple(map(len, tokens)), means, tuple(text)
    )


def _run_inside(
    adapter: Adapter,
    pruner: Pruner,
    prompts: Sequence[Prompt],
    tokens: Sequence[VisualTokens],
    decoder: Decoder,
) -> tuple[list, float, float, float]:
    """Under a pruner that reduces inside the language model, one prompt at a time, as the engine
    does it.
    """
    kept, prune, prefill, last = [], 0.0, 0.0, 0.0
    for prompt, visual in zip(prompts, tokens, strict=True):
        with RunningStages(
            adapter.model.get_decoder(), pruner, prompt, visual, renumber=adapter.renumbers
        ) as stages:
            _, times = decoder([stages.plain])
        kept.append(tuple(stages.kept))
        prune, prefill, last = (
            prune + stages.seconds,
            prefill + times.prefill - stages.seconds,
            last + times.decode,
        )
    return kept, prune, prefill, last


def make_pruner(method: str, keep: str, params: Mapping[str, Any], seed: int) -> Pruner | None:
    """The pruner of a name; `METHOD.NAME` among the parameters is for that method alone. Raises
    UsageError.
    """
    return build_pruner(method, {"keep": keep, "seed": seed, **own_params(method, params)})
