"""The flow of one batch, from top to bottom: prepare, encode, prune, then the language model.

A pruner is a value (None is dense), a model is an Adapter.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch

from trimtok_cli.data import Result, Sample, Seconds
from trimtok_cli.device import Clock, reset_peak
from trimtok_cli.engine.batch import Encoded, Waiting
from trimtok_cli.engine.loops import goes_inside, language_model
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.engine.results import positions_used, question_of, result_of, too_long
from trimtok_cli.generation.seeds import Lots
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Failed, Prepared, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower

log = logging.getLogger("trimtok")


def answer(
    adapter: Adapter, pruner: Pruner | None, samples: Sequence[Sample], ask: Ask
) -> list[Result]:
    """One batch, top to bottom. Raises SampleError (or what the libraries raise) if any of the
    samples cannot be answered.
    """
    reset_peak(adapter.device)
    prepared = list(seeded((prepare(adapter.preprocessor, sample, ask) for sample in samples), ask))
    return finish(adapter, pruner, encode(adapter, prepared, taps=reads_tower(pruner)), ask)


def seeded(prepared: Iterable[Prepared | Failed], ask: Ask) -> Iterator[Prepared | Failed]:
    """Each with a seed of its own, by what is asked; in the order of the samples."""
    lots = Lots()
    for each in prepared:
        number = lots.number(each.sample.names, question_of(each.sample, ask))
        yield replace(each, seed=number) if isinstance(each, Prepared) else each


@torch.inference_mode()
def encode(adapter: Adapter, prepared: Sequence[Prepared], *, taps: bool = True) -> Encoded:
    """The vision tower and the projector, and the dense prompts. taps: whether a pruner may ask
    something of the tower.
    """
    clock = Clock(adapter.device)
    tokens = adapter.encode_many([each.inputs for each in prepared], taps=taps)
    prompts = [
        replace(adapter.embed(each.inputs, visual), seed=each.seed)
        for each, visual in zip(prepared, tokens, strict=True)
    ]
    return Encoded(prepared, tokens, prompts, clock.mark() / len(prepared))


@torch.inference_mode()
def prune(adapter: Adapter, pruner: Pruner | None, batch: Encoded) -> list[Waiting]:
    """What the language model is to read of each sample. The dense visual tokens are let go where
    nobody will ask for them.
    """
    clock = Clock(adapter.device)
    prompts, kept = reduce_prompts(
        pruner,
        batch.prompts,
        batch.tokens,
        num_layers=adapter.num_layers,
        renumber=adapter.renumbers,
    )
    spent, goes_on = (
        Seconds(encode=batch.seconds, prune=clock.mark() / len(prompts)),
        goes_inside(adapter, pruner),
    )
    return [
        Waiting(
            each,
            prompt,
            alive,
            len(visual),
            visual.grids[0] if visual.grids else (),
            replace(spent, load=each.seconds.load, prepare=each.seconds.prepare),
            positions_used(adapter, prompt),
            visual if goes_on else None,
        )
        for each, visual, prompt, alive in zip(
            batch.prepared, batch.tokens, prompts, kept, strict=True
        )
    ]


def finish(
    adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask, loop=None
) -> list[Result]:
    """Prune, prefill, decode: one batch, in its order. Raises what the first sample that fails ends
    in.
    """
    loop = loop or language_model(adapter, pruner, ask, rows=len(batch.prompts))
    waiting = [replace(each, number=i) for i, each in enumerate(prune(adapter, pruner, batch))]
    for each in waiting:
        if error := too_long(adapter, each):
            raise error
    left = iter(waiting)
    done = sorted(
        loop.run(lambda count: [(each, each.prompt) for each in islice(left, count)]),
        key=lambda each: each.key.number,
    )
    for each in done:
        if each.error:
            raise each.error
    return [result_of(adapter, pruner, each) for each in done]
