"""The flow: samples in, results out. `answer` is one batch from top to bottom; `answer_all` runs a stream of samples.

Knows no method and no family: a pruner is a value (None is dense), a model is an Adapter.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice

import torch

from trimtok_cli.ahead import AHEAD, prepare_ahead
from trimtok_cli.continuous import Continuous
from trimtok_cli.data import Comparison, Kept, Result, Sample, Seconds
from trimtok_cli.decoding import Batches, Done, Take, Times, apart, done_of, generate
from trimtok_cli.errors import ModelError
from trimtok_cli.memory import MOST_ROWS, forget_frames, in_halves
from trimtok_cli.models.base import Adapter
from trimtok_cli.prepare import Ask, Failed, Prepared, prepare
from trimtok_cli.pruners import Pruner, reads_tower
from trimtok_cli.results import failure, positions_used, question_of, result_of, too_long
from trimtok_cli.rules import Rules
from trimtok_cli.sampling import Lots
from trimtok_cli.stages import RunningStages, reduce_prompts
from trimtok_cli.timing import Clock, reset_peak
from trimtok_cli.tokens import Prompt, VisualTokens

log = logging.getLogger("trimtok")


@dataclass(frozen=True)
class Encoded:
    """A batch behind the vision tower: everything that is the same whatever is pruned."""

    prepared: Sequence[Prepared]
    tokens: Sequence[VisualTokens]
    prompts: Sequence[Prompt]
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """A sample behind the pruner, ready for the language model. tokens: only where the pruner goes on inside of it.

    positions: those of the model that its prompt takes.
    """

    prepared: Prepared
    prompt: Prompt
    kept: tuple[Kept, ...]
    num_visual: int
    grid: tuple[int, ...]
    seconds: Seconds
    positions: int
    tokens: VisualTokens | None = None
    number: int = 0

    @property
    def sample(self) -> Sample:
        return self.prepared.sample


@dataclass(frozen=True)
class Lost:
    """A sample that does not reach the language model."""

    sample: Sample
    number: int


def answer(adapter: Adapter, pruner: Pruner | None, samples: Sequence[Sample], ask: Ask) -> list[Result]:
    """One batch, top to bottom. Raises SampleError (or what the libraries raise) if any of the samples cannot be answered."""
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
    """The vision tower and the projector, and the dense prompts. taps: whether a pruner may ask something of the tower."""
    clock = Clock(adapter.device)
    tokens = adapter.encode_many([each.inputs for each in prepared], taps=taps)
    prompts = [
        replace(adapter.embed(each.inputs, visual), seed=each.seed) for each, visual in zip(prepared, tokens, strict=True)
    ]
    return Encoded(prepared, tokens, prompts, clock.mark() / len(prepared))


@torch.inference_mode()
def prune(adapter: Adapter, pruner: Pruner | None, batch: Encoded) -> list[Waiting]:
    """What the language model is to read of each sample. The dense visual tokens are let go where nobody will ask for them."""
    clock = Clock(adapter.device)
    prompts, kept = reduce_prompts(
        pruner, batch.prompts, batch.tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
    )  # fmt: skip
    spent, goes_on = Seconds(encode=batch.seconds, prune=clock.mark() / len(prompts)), goes_inside(adapter, pruner)
    return [
        Waiting(
            each, prompt, alive, len(visual), visual.grids[0] if visual.grids else (),
            replace(spent, load=each.seconds.load, prepare=each.seconds.prepare), positions_used(adapter, prompt),
            visual if goes_on else None,
        )
        for each, visual, prompt, alive in zip(batch.prepared, batch.tokens, prompts, kept, strict=True)
    ]  # fmt: skip


def finish(adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask, loop=None) -> list[Result]:
    """Prune, prefill, decode: one batch, in its order. Raises what the first sample that fails ends in."""
    loop = loop or language_model(adapter, pruner, ask, rows=len(batch.prompts))
    waiting = [replace(each, number=i) for i, each in enumerate(prune(adapter, pruner, batch))]
    for each in waiting:
        if error := too_long(adapter, each):
            raise error
    left = iter(waiting)
    done = sorted(loop.run(lambda count: [(each, each.prompt) for each in islice(left, count)]), key=lambda each: each.key.number)
    for each in done:
        if each.error:
            raise each.error
    return [result_of(adapter, pruner, each) for each in done]


LOOPS = {"continuous": Continuous, "simple": Batches}


def goes_inside(adapter: Adapter, pruner: Pruner | None) -> bool:
    return pruner is not None and any(layer > 0 for layer in pruner.stages(adapter.num_layers))


def language_model(adapter: Adapter, pruner: Pruner | None, ask: Ask, *, rows: int | None):
    """The token loop of a run: its `run(take)` turns waiting prompts into answers as they end.

    A pruner that goes on inside the model leaves caches of unequal lengths, layer by layer: its samples run one at a time.
    """
    if goes_inside(adapter, pruner):
        return _Inside(adapter, pruner, ask)
    return LOOPS[ask.decode](adapter, rows=rows, max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)


class _Inside:
    """Prompts one by one, under a pruner that reduces inside the language model."""

    def __init__(self, adapter: Adapter, pruner: Pruner, ask: Ask) -> None:
        self.adapter, self.pruner = adapter, pruner
        self.rules = Rules(adapter, max_new_tokens=ask.max_new_tokens, sampling=ask.sampling)

    def run(self, take: Take) -> Iterator[Done]:
        while taken := take(1):
            group, lost = apart(taken)
            yield from lost
            for each, prompt in group:
                try:
                    yield self._one(each, prompt)
                except ModelError:
                    raise
                except Exception as error:
                    yield Done(each, None, Times(0.0, 0.0), 1, forget_frames(error))

    def _one(self, each: Waiting, prompt: Prompt) -> Done:
        decoder, renumber = self.adapter.model.get_decoder(), self.adapter.renumbers
        with RunningStages(decoder, self.pruner, prompt, each.tokens, renumber=renumber) as stages:
            (said,), times = generate(self.adapter, [stages.plain], rules=self.rules)
        spent = replace(each.seconds, prune=each.seconds.prune + stages.seconds)
        key = replace(each, kept=tuple(stages.kept), seconds=spent)
        return done_of(key, said, Times(times.prefill - stages.seconds, times.decode), 1)


def answer_all(
    adapter: Adapter, pruner: Pruner | None, samples: Iterable[Sample], ask: Ask, *, batch_size: int | None = 1, workers: int = 0
) -> Iterator[Result]:
    """Results in the order of the samples; at most `batch_size` are under way at once, None is as many as memory allows.

    A sample that fails becomes a Result with an error; only a ModelError ends the run. workers: processes that prepare samples
    ahead; 0 prepares each where it is due.
    """
    ahead = max(
        AHEAD * workers, 2 * (batch_size or MOST_ROWS[adapter.device.type])
    )  # the next batch is prepared while this one runs
    loop = language_model(adapter, pruner, ask, rows=batch_size)
    with closing(prepare_ahead(adapter.preprocessor, samples, ask, workers=workers, ahead=ahead)) as prepared:
        stream = seeded(prepared, ask) if loop.rules.samples else prepared  # what was asked before is only kept where it matters
        yield from _in_order(adapter, pruner, enumerate(stream), ask, loop)


def _in_order(
    adapter: Adapter, pruner: Pruner | None, stream: Iterator[tuple[int, Prepared | Failed]], ask: Ask, loop
) -> Iterator[Result]:
    """Answers end in any order; each waits here for those before it."""
    ready: dict[int, Result] = {}
    upcoming, taps = 0, reads_tower(pruner)

    def reduced(group: list[tuple[int, Prepared]]) -> list[Waiting]:
        waiting = prune(adapter, pruner, encode(adapter, [each for _, each in group], taps=taps))
        return [replace(each, number=number) for (number, _), each in zip(group, waiting, strict=True)]

    def take(count: int) -> list[tuple[Waiting | Lost, Prompt | Exception]]:
        """As many samples as there are free places, through the vision tower and the pruner together."""
        group = list(islice(stream, count))
        reset_peak(adapter.device)
        found = [(Lost(each.sample, number), each.error) for number, each in group if isinstance(each, Failed)]
        for (number, each), made in in_halves(reduced, [one for one in group if isinstance(one[1], Prepared)], adapter.device):
            error = made if isinstance(made, Exception) else too_long(adapter, made)
            found.append((Lost(each.sample, number), error) if error else (made, made.prompt))
        return found

    for done in loop.run(take):
        error = done.error and failure(done.key.sample, pruner, ask, done.error)
        ready[done.key.number] = error or result_of(adapter, pruner, done)
        while upcoming in ready:
            yield ready.pop(upcoming)
            upcoming += 1


def compare_all(adapter: Adapter, pruners: Sequence[Pruner | None], samples: Iterable[Sample], ask: Ask) -> Iterator[Comparison]:
    """Every sample answered by every pruner, its images read and encoded once. Samples run alone, for honest times.

    The order of the pruners turns with each sample, so that none is always the first to run. The first sample is run
    once beforehand and thrown away: a first pass pays for kernels and caches.
    """
    if any(goes_inside(adapter, pruner) for pruner in pruners):
        ask = replace(ask, decode="simple")  # methods that go on inside the model know no other: the same loop for all
    shared = language_model(adapter, None, ask, rows=1)  # one cache for all of them, as each would have in a run of its own
    loops = [language_model(adapter, pruner, ask, rows=1) if goes_inside(adapter, pruner) else shared for pruner in pruners]
    taps, warm = reads_tower(*pruners), False
    lots = Lots()
    for number, sample in enumerate(samples):
        try:
            reset_peak(adapter.device)
            seed = lots.number(sample.names, question_of(sample, ask))
            batch = encode(adapter, [replace(prepare(adapter.preprocessor, sample, ask), seed=seed)], taps=taps)
            if not warm:
                batch = encode(adapter, batch.prepared, taps=taps)
                for pruner, loop in zip(pruners, loops, strict=True):
                    if adapter.device.type == "cuda":  # steps are recorded in the loop that replays them
                        _attempt(adapter, pruner, batch, ask, loop)
                    else:
                        _attempt(adapter, pruner, batch, replace(ask, max_new_tokens=2))
                batch, warm = encode(adapter, batch.prepared, taps=taps), True
            order = [(i + number) % len(pruners) for i in range(len(pruners))]
            done = {i: _attempt(adapter, pruners[i], batch, ask, loops[i]) for i in order}
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


def _attempt(adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask, loop=None) -> Result:
    """One sample, one way. A method that cannot run on this model fails alone; the others are still compared."""
    try:
        return finish(adapter, pruner, batch, ask, loop)[0]
    except ModelError:
        raise
    except Exception as error:
        return failure(batch.prepared[0].sample, pruner, ask, error)
