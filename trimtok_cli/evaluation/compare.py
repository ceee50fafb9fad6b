"""Every sample answered in several ways, its images read and encoded once. Knows no file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from trimtok_cli.data import Comparison, Failed, Result, Sample
from trimtok_cli.device import frozen_heap, peak_bytes, reset_peak
from trimtok_cli.engine.answer import encode, finish
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import loop_for, prunes_in_decoder, rules_for
from trimtok_cli.engine.results import failed_result, shown
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.seeds import SampleSeeds
from trimtok_cli.generation.types import Loop
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower


def compare_all(
    adapter: Adapter, pruners: Sequence[Pruner | None], samples: Iterable[Sample], ask: Ask
) -> Iterator[Comparison]:
    """A Comparison for every sample: answered by every pruner, images read and encoded once.

    Samples run alone, for true times. A setting's peak of memory is its own, or the vision tower's
    if that is higher; the cache is shared. The order of the pruners turns with each sample, so that
    none is always the first to run. The first sample runs once beforehand and is thrown away: a
    first pass pays for kernels and caches, and a first file for libraries. Raises ModelError; any
    other error is the sample's.
    """
    loops = _loops(adapter, pruners, ask)
    signals = reads_tower(*pruners)
    seeds = SampleSeeds()
    warm = False
    with frozen_heap():
        for number, sample in enumerate(samples):
            try:
                reset_peak(adapter.device)
                seed = seeds.number(sample.names, ask.question(sample), sample.turn)
                prepared = replace(prepare(adapter.preprocessor, sample, ask), seed=seed)
                (encoded,) = encode(adapter, [prepared], signals=signals)
                tower = peak_bytes(adapter.device)
                if not warm:
                    _warm_up(adapter, pruners, prepared, loops, ask, signals)
                    prepared = replace(prepare(adapter.preprocessor, sample, ask), seed=seed)
                    (encoded,) = encode(adapter, [prepared], signals=signals)
                    warm = True
                order = [(i + number) % len(pruners) for i in range(len(pruners))]
                results = {i: _attempt(adapter, pruners[i], encoded, ask, loops[i]) for i in order}
                yield _comparison(encoded, [results[i] for i in range(len(pruners))], tower)
            except ModelError:
                raise
            except Exception as error:
                failed = Failed(sample, error)
                yield Comparison(
                    sample, tuple(failed_result(failed, each, ask) for each in pruners)
                )


def _loops(adapter: Adapter, pruners: Sequence[Pruner | None], ask: Ask) -> list[Loop]:
    """A loop for each pruner. Pruners of the prompt share one loop and its cache."""
    rules = rules_for(adapter, ask)
    shared = loop_for(adapter, None, rules, decode=ask.decode)
    return [
        loop_for(adapter, pruner, rules, decode=ask.decode)
        if prunes_in_decoder(adapter, pruner)
        else shared
        for pruner in pruners
    ]


def _warm_up(
    adapter: Adapter,
    pruners: Sequence[Pruner | None],
    prepared: Prepared,
    loops: Sequence[Loop],
    ask: Ask,
    signals: bool,
) -> None:
    (encoded,) = encode(adapter, [prepared], signals=signals)
    # On CUDA steps are recorded in the loop that replays them; elsewhere two tokens are enough.
    if adapter.device.type != "cuda":
        loops = _loops(adapter, pruners, replace(ask, max_new_tokens=2))
    for pruner, loop in zip(pruners, loops, strict=True):
        _attempt(adapter, pruner, encoded, ask, loop)


def _attempt(
    adapter: Adapter, pruner: Pruner | None, encoded: Encoded, ask: Ask, loop: Loop
) -> Result:
    """One sample answered in one way. A method that cannot run on this model fails alone."""
    reset_peak(adapter.device)
    try:
        return shown(finish(adapter, pruner, [encoded], loop)[0], ask)
    except ModelError:
        raise
    except Exception as error:
        return failed_result(Failed(encoded.prepared.sample, error), pruner, ask)


def _comparison(encoded: Encoded, results: Sequence[Result], tower: int) -> Comparison:
    """tower: the vision tower's peak of memory, in bytes."""
    tokens = encoded.tokens
    return Comparison(
        sample=encoded.prepared.sample,
        results=tuple(replace(each, peak_bytes=max(each.peak_bytes, tower)) for each in results),
        boxes=tuple(tuple(round(x, 5) for x in box) for box in tokens.box.tolist()),
        visual_index=tuple(tokens.visual_index.tolist()),
        frame=() if tokens.frame is None else tuple(tokens.frame.tolist()),
        kinds=encoded.prepared.inputs.kinds,
    )
