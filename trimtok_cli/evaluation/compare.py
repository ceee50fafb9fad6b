"""Every sample answered in several ways, its images read and encoded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from trimtok_cli.data import Comparison, Result, Sample
from trimtok_cli.device import reset_peak
from trimtok_cli.engine.answer import encode, finish
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import goes_inside, language_model
from trimtok_cli.engine.results import failure, question_of
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.seeds import Lots
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower


def compare_all(
    adapter: Adapter, pruners: Sequence[Pruner | None], samples: Iterable[Sample], ask: Ask
) -> Iterator[Comparison]:
    """Every sample answered by every pruner, its images read and encoded once. Samples run alone,
    for honest times.

    The order of the pruners turns with each sample, so that none is always the first to run. The
    first sample is run once beforehand and thrown away: a first pass pays for kernels and caches.
    """
    if any(goes_inside(adapter, pruner) for pruner in pruners):
        ask = replace(
            ask, decode="simple"
        )  # methods that go on inside the model know no other: the same loop for all
    shared = language_model(
        adapter, None, ask, rows=1
    )  # one cache for all of them, as each would have in a run of its own
    loops = [
        language_model(adapter, pruner, ask, rows=1) if goes_inside(adapter, pruner) else shared
        for pruner in pruners
    ]
    taps, warm = reads_tower(*pruners), False
    lots = Lots()
    for number, sample in enumerate(samples):
        try:
            reset_peak(adapter.device)
            seed = lots.number(sample.names, question_of(sample, ask))
            batch = encode(
                adapter, [replace(prepare(adapter.preprocessor, sample, ask), seed=seed)], taps=taps
            )
            if not warm:
                batch = encode(adapter, batch.prepared, taps=taps)
                for pruner, loop in zip(pruners, loops, strict=True):
                    if (
                        adapter.device.type == "cuda"
                    ):  # steps are recorded in the loop that replays them
                        _attempt(adapter, pruner, batch, ask, loop)
                    else:
                        _attempt(adapter, pruner, batch, replace(ask, max_new_tokens=2))
                batch, warm = encode(adapter, batch.prepared, taps=taps), True
            order = [(i + number) % len(pruners) for i in range(len(pruners))]
            done = {i: _attempt(adapter, pruners[i], batch, ask, loops[i]) for i in order}
            tokens = batch.tokens[0]
            boxes = tuple(tuple(round(x, 5) for x in box) for box in tokens.box.tolist())
            yield Comparison(
                sample,
                tuple(done[i] for i in range(len(pruners))),
                boxes,
                tuple(tokens.visual_index.tolist()),
                tuple(tokens.frame.tolist()) if tokens.frame is not None else (),
                batch.prepared[0].inputs.kinds,
            )
        except ModelError:
            raise
        except Exception as error:
            yield Comparison(
                sample, tuple(failure(sample, pruner, ask, error) for pruner in pruners)
            )


def _attempt(
    adapter: Adapter, pruner: Pruner | None, batch: Encoded, ask: Ask, loop=None
) -> Result:
    """One sample, one way. A method that cannot run on this model fails alone; the others are still
    compared.
    """
    try:
        return finish(adapter, pruner, batch, ask, loop)[0]
    except ModelError:
        raise
    except Exception as error:
        return failure(batch.prepared[0].sample, pruner, ask, error)
