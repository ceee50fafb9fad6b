"""A variant held beside the usual way: rounds in turn, on the same inputs, in one process.

Knows no variant by name.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import count, islice
from typing import Any

from trimtok_cli.bench.batch import STAGES, Loops, Spent, make_pruner, run_batch
from trimtok_cli.bench.grid import filled
from trimtok_cli.bench.variants import Variant, settings
from trimtok_cli.bench.whole_runs import stream
from trimtok_cli.child_process import usual_workers
from trimtok_cli.data import Seconds
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, Prepared, prepare

Facts = dict[str, Any]
PROMPT = "Describe the image in one sentence."


def held_beside(
    adapter: Adapter, variant: Variant, known: Sequence[Prepared], options: argparse.Namespace
) -> dict[str, list[Facts]]:
    """Seconds of the usual way and of the variant, round by round (ABBA)."""
    usual = replace(variant, name="usual", settings={}, batch=0)
    ways = [
        (way.name, _rounds(adapter, way, known, options, number))
        for number, way in enumerate((usual, variant))
    ]
    found: dict[str, list[Facts]] = {name: [] for name, _ in ways}
    warmups = 1 if variant.from_files else 2
    for number in range(-warmups, options.rounds):
        for name, once in ways if number % 2 else ways[::-1]:
            spent = once()
            if number >= 0:
                found[name].append(spent)
    return found


def _rounds(
    adapter: Adapter,
    way: Variant,
    known: Sequence[Prepared],
    options: argparse.Namespace,
    parity: int,
) -> Callable[[], Facts]:
    """What runs one round of a way. parity: of the lengths that this way alone sees."""
    batch = way.batch or max(options.batch)
    if way.from_files:
        return lambda: from_files(adapter, known, options, batch_size=batch, **way.settings)
    pruner = make_pruner("trimtokenator", options.keep, {}, 0)
    new_tokens, size = (2, 1) if way.unseen else (13, batch)
    loop = Loops(adapter, decode="continuous", new_tokens=new_tokens, batch=size).of(None)
    lengths = _longer_and_longer(adapter, known[0], parity)

    def once() -> Facts:
        batches = [[each] for each in islice(lengths, way.unseen)] or [filled(known, batch)]
        with settings(loop, way.settings):
            return times([run_batch(adapter, pruner, each, loop) for each in batches])

    return once


def _longer_and_longer(adapter: Adapter, first: Prepared, parity: int) -> Iterator[Prepared]:
    """One picture's inputs, whose prompts have every second length from the shortest one on."""
    for more in count(parity, 2):
        yield prepare(adapter.preprocessor, first.sample, Ask(PROMPT + "?" * more))


def times(rounds: Sequence[Spent]) -> Facts:
    """Seconds of one sample, and how its steps were launched."""
    samples = sum(len(spent.text) for spent in rounds)
    names = (*STAGES, "wall")
    found = {name: sum(getattr(spent, name) for spent in rounds) / samples for name in names}
    launched = {
        name: sum(getattr(spent, name) for spent in rounds)
        for name in ("replayed", "eager", "prefills_replayed", "prefills_eager")
    }
    return found | launched


def from_files(
    adapter: Adapter,
    known: Sequence[Prepared],
    options: argparse.Namespace,
    *,
    batch_size: int | None,
    **more: Any,
) -> Facts:
    """A whole run from files to answers, with workers. more: further arguments of `answer_all`."""
    samples = list(stream([each.sample for each in known], options.samples))
    ask = Ask(PROMPT, max_new_tokens=options.new_tokens)
    pruner = make_pruner("trimtokenator", options.keep, {}, 0)
    workers = usual_workers() if options.workers is None else options.workers
    start, stages, errors = time.perf_counter(), Seconds(), Counter[str]()
    for result in answer_all(
        adapter, pruner, samples, ask, batch_size=batch_size, workers=workers, **more
    ):
        stages += result.seconds
        errors[result.error or ""] += 1
    wall = time.perf_counter() - start
    return {
        "samples": len(samples),
        "workers": workers,
        "wall": wall,
        "samples_per_second": len(samples) / wall,
        "stages": asdict(stages),
        "answered": errors.pop("", 0),
        "errors": dict(errors),
    }
