"""The flow: samples in, results out. `answer` is the whole system on one screen; `answer_all` runs a stream of samples.

Knows no method and no family: a pruner is a value (None is dense), a model is an Adapter.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch

from trimtok_cli.ahead import AHEAD, prepare_ahead
from trimtok_cli.data import Comparison, Kept, Result, Sample, Seconds, TokenCounts
from trimtok_cli.decoding import Generated, generate
from trimtok_cli.errors import ModelError, sentence
from trimtok_cli.models.base import Adapter
from trimtok_cli.prepare import Ask, Prepared, prepare
from trimtok_cli.pruners import PRUNERS, Pruner
from trimtok_cli.stages import RunningStages, layer_mean, reduce_prompts
from trimtok_cli.timing import Clock, peak_bytes, reset_peak
from trimtok_cli.tokens import Prompt, VisualTokens

log = logging.getLogger("trimtok")


@dataclass(frozen=True)
class Encoded:
    """A batch behind the vision tower: everything that is the same whatever is pruned."""

    prepared: Sequence[Prepared]
    tokens: Sequence[VisualTokens]
    prompts: Sequence[Prompt]
    seconds: float


def answer(adapter: Adapter, pruner: Pruner | None, samples: Sequence[Sample], ask: Ask) -> list[Result]:
    """One batch, top to bottom. Raises SampleError (or what the libraries raise) if any of the samples cannot be answered."""
    reset_peak(adapter.device)
    prepared = [prepare(adapter.preprocessor, sample, ask) for sample in samples]
    return finish(adapter, pruner, encode(adapter, prepared), ask)


@torch.inference_mode()
def encode(adapter: Adapter, prepared: Sequence[Prepared]) -> Encoded:
    """The vision tower and the projector, and the dense prompts."""
    clock = Clock(adapter.device)
    tokens = adapter.encode_many([each.inputs for each in prepared])
    prompts = [adapter.embed(each.inputs, visual) for each, visual in zip(prepared, tokens, strict=True)]
    return Encoded(prepared, tokens, prompts, clock.mark() / len(prepared))


@torch.inference_mode()
def finish(adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask) -> list[Result]:
    """Prune, prefill, decode."""
    clock = Clock(adapter.device)
    prompts, kept = reduce_prompts(
        pruner, batch.prompts, batch.tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
    )  # fmt: skip
    prune, size = clock.mark() / len(prompts), len(prompts)
    if pruner is not None and any(layer > 0 for layer in pruner.stages(adapter.num_layers)):
        # Caches of unequal lengths, layer by layer: these samples run one at a time, and their records say so.
        runs = [_run_inside(adapter, pruner, prompt, visual, ask) for prompt, visual in zip(prompts, batch.tokens, strict=True)]
        kept, size = [stages for _, stages, _ in runs], 1
        answered = [(said, replace(spent, prune=spent.prune + prune)) for said, _, spent in runs]
    else:
        answers, times = generate(adapter, prompts, max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)
        spent = Seconds(prune=prune, prefill=times.prefill / size, decode=times.decode / size)
        answered = [(said, spent) for said in answers]
    results = []
    for each, visual, prompt, alive, (said, spent) in zip(batch.prepared, batch.tokens, prompts, kept, answered, strict=True):
        text, left = len(prompt) - len(prompt.visual), len(alive[-1].tokens)
        counts = TokenCounts(text, len(visual), left, layer_mean(alive, adapter.num_layers), said.steps)
        results.append(
            Result(
                each.sample, each.question, adapter.decode(said.ids), method_name(pruner), counts,
                replace(spent, load=each.seconds.load, prepare=each.seconds.prepare, encode=batch.seconds),
                peak_bytes(adapter.device), alive, visual.grids[0] if visual.grids else (), said.finish, "",
                each.inputs.text, each.media, size,
            )
        )  # fmt: skip
    return results


def _run_inside(
    adapter: Adapter, pruner: Pruner, prompt: Prompt, tokens: VisualTokens, ask: Ask
) -> tuple[Generated, tuple[Kept, ...], Seconds]:
    """One prompt under a pruner that reduces inside the language model."""
    with RunningStages(adapter.model.get_decoder(), pruner, prompt, tokens, renumber=adapter.renumbers) as stages:
        (said,), times = generate(adapter, [stages.plain], max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)
    return said, tuple(stages.kept), Seconds(prune=stages.seconds, prefill=times.prefill - stages.seconds, decode=times.decode)


def answer_all(
    adapter: Adapter, pruner: Pruner | None, samples: Iterable[Sample], ask: Ask, *, batch_size: int = 1, workers: int = 0
) -> Iterator[Result]:
    """Results in the order of the samples. A sample that fails becomes a Result with an error; only a ModelError ends the run.

    workers: processes that prepare samples ahead; 0 prepares each where it is due.
    """
    ahead = max(AHEAD * workers, 2 * batch_size)  # the next batch is prepared while this one runs
    with closing(prepare_ahead(adapter.preprocessor, samples, ask, workers=workers, ahead=ahead)) as stream:
        while batch := list(islice(stream, batch_size)):
            done = iter(_finish_safely(adapter, pruner, [each for each in batch if isinstance(each, Prepared)], ask))
            yield from (
                next(done) if isinstance(each, Prepared) else failure(each.sample, pruner, ask, each.error) for each in batch
            )


def _finish_safely(adapter: Adapter, pruner: Pruner | None, prepared: list[Prepared], ask: Ask) -> list[Result]:
    """A batch that fails is tried again one by one, so that one sample cannot take its neighbours along."""
    if not prepared:
        return []
    try:
        reset_peak(adapter.device)
        return finish(adapter, pruner, encode(adapter, prepared), ask)
    except ModelError:
        raise
    except Exception as error:
        if len(prepared) == 1:
            return [failure(prepared[0].sample, pruner, ask, error)]
    return [result for each in prepared for result in _finish_safely(adapter, pruner, [each], ask)]


def compare_all(adapter: Adapter, pruners: Sequence[Pruner | None], samples: Iterable[Sample], ask: Ask) -> Iterator[Comparison]:
    """Every sample answered by every pruner, its images read and encoded once. Samples run alone, for honest times.

    The order of the pruners turns with each sample, so that none is always the first to run. The first sample is run
    once beforehand and thrown away: a first pass pays for kernels and caches.
    """
    warm = False
    for number, sample in enumerate(samples):
        try:
            reset_peak(adapter.device)
            batch = encode(adapter, [prepare(adapter.preprocessor, sample, ask)])
            if not warm:
                batch = encode(adapter, batch.prepared)
                for pruner in pruners:
                    _attempt(adapter, pruner, batch, replace(ask, max_new_tokens=2))
                batch, warm = encode(adapter, batch.prepared), True
            order = [(i + number) % len(pruners) for i in range(len(pruners))]
            done = {i: _attempt(adapter, pruners[i], batch, ask) for i in order}
            tokens = batch.tokens[0]
            boxes = tuple(tuple(round(x, 5) for x in box) for box in tokens.box.tolist())
            yield Comparison(
                sample, tuple(done[i] for i in range(len(pruners))), boxes, tuple(tokens.visual_index.tolist()),
                tuple(tokens.frame.tolist()) if tokens.frame is not None else (), batch.prepared[0].inputs.kinds,
            )  # fmt: skip
        except ModelError:
            raise
        except Exception as error:
            yield Comparison(sample, tuple(failure(sample, pruner, ask, error) for pruner in pruners))


def _attempt(adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask) -> Result:
    """One sample, one way. A method that cannot run on this model fails alone; the others are still compared."""
    try:
        return finish(adapter, pruner, batch, ask)[0]
    except ModelError:
        raise
    except Exception as error:
        return failure(batch.prepared[0].sample, pruner, ask, error)


def failure(sample: Sample, pruner: Pruner | None, ask: Ask, error: Exception) -> Result:
    """The row of a sample that could not be answered."""
    log.debug("sample %s failed", sample.id, exc_info=error)
    question = ask.prompt if sample.question is None else sample.question
    return Result(sample, question, method=method_name(pruner), error=sentence(error))


def method_name(pruner: Pruner | None) -> str:
    """The name under which a pruner stands in the registry."""
    return next(name for name, kind in PRUNERS.items() if kind is (None if pruner is None else type(pruner)))
