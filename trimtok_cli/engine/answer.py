"""The steps of one batch: encode, prune, and the language model.

A pruner is a value, and None is dense; a model is an Adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from trimtok_cli.data import Failed, Result, Sample, Seconds
from trimtok_cli.device import Clock, reset_peak
from trimtok_cli.engine.batch import Encoded, Pruned
from trimtok_cli.engine.loops import loop_for, prunes_in_decoder, rules_for
from trimtok_cli.engine.order import numbered
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.engine.results import positions_used, result_of, too_long
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.generation.types import Loop, run
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower

Encoding = Callable[[Sequence[Prepared]], list[Encoded]]


def answer(
    adapter: Adapter, pruner: Pruner | None, samples: Sequence[Sample], ask: Ask
) -> list[Result]:
    """Answers one batch. Raises the first sample's error: SampleError, or an error of a library."""
    reset_peak(adapter.device)
    prepared = [prepare(adapter.preprocessor, sample, ask) for sample in samples]
    encoded = encode(adapter, list(numbered(prepared, ask)), signals=reads_tower(pruner))
    loop = loop_for(
        adapter, pruner, rules_for(adapter, ask), decode=ask.decode, batch_limit=len(samples)
    )
    return finish(adapter, pruner, encoded, loop)


@torch.inference_mode()
def encode(
    adapter: Adapter, prepared: Sequence[Prepared], *, signals: bool = True
) -> list[Encoded]:
    """Runs the vision tower and the projector, and lays out the dense prompts.

    signals: whether a pruner may ask for signals of the tower.
    """
    clock = Clock(adapter.device)
    # Whatever another thread is at, the tower runs with the same kernels.
    with adapter.kernels():
        tokens = adapter.encode_many([each.inputs for each in prepared], signals=signals)
    prompts = [
        replace(prompt, seed=each.seed)
        for each, prompt in zip(
            prepared, adapter.embed_many([each.inputs for each in prepared], tokens), strict=True
        )
    ]
    share = Seconds(encode=clock.mark() / len(prepared))
    return [
        Encoded(each, visual, prompt, each.seconds + share)
        for each, visual, prompt in zip(prepared, tokens, prompts, strict=True)
    ]


@torch.inference_mode()
def prune(adapter: Adapter, pruner: Pruner | None, encoded: Sequence[Encoded]) -> list[Pruned]:
    """Prunes each prompt. Dense visual tokens are released unless a later stage needs them."""
    clock = Clock(adapter.device)
    prompts, kept = reduce_prompts(
        pruner,
        [each.prompt for each in encoded],
        [each.tokens for each in encoded],
        num_layers=adapter.num_layers,
        renumber=adapter.renumbers,
    )
    share = Seconds(prune=clock.mark() / len(prompts))
    goes_on = prunes_in_decoder(adapter, pruner)
    return [
        Pruned(
            prompt=prompt,
            number=each.prepared.number,
            prepared=each.prepared,
            kept=alive,
            num_visual=len(each.tokens),
            grid=each.tokens.grids[0] if each.tokens.grids else (),
            seconds=each.seconds + share,
            positions=positions_used(adapter, prompt),
            tokens=each.tokens if goes_on else None,
        )
        for each, prompt, alive in zip(encoded, prompts, kept, strict=True)
    ]


def reduce(
    adapter: Adapter,
    pruner: Pruner | None,
    prepared: Sequence[Prepared],
    encoding: Encoding | None = None,
) -> tuple[list[Pruned], list[Failed]]:
    """Encodes and prunes samples together; returns the pruned samples and the failed ones.

    A batch that breaks is tried again in halves, so that a sample fails only by itself. encoding:
    stands in the place of `encode`.
    """
    encoding = encoding or partial(encode, adapter, signals=reads_tower(pruner))
    ready: list[Pruned] = []
    failed: list[Failed] = []

    def work(group: list[Prepared]) -> list[Pruned]:
        return prune(adapter, pruner, encoding(group))

    for each, made in in_halves(work, list(prepared), adapter.device):
        error = made if isinstance(made, Exception) else too_long(adapter, made)
        if error:
            failed.append(Failed(each.sample, error, each.number))
        elif isinstance(made, Pruned):
            ready.append(made)
    return ready, failed


def finish(
    adapter: Adapter, pruner: Pruner | None, encoded: Sequence[Encoded], loop: Loop
) -> list[Result]:
    """Prunes and generates a batch; results in its order. Raises the first sample's error."""
    pruned = prune(adapter, pruner, encoded)
    for request in pruned:
        if error := too_long(adapter, request):
            raise error
    finished = sorted(run(loop, pruned), key=lambda each: each.request.number)
    for each in finished:
        if each.error:
            raise each.error
    return [result_of(adapter, pruner, each) for each in finished]
