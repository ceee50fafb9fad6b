"""The figure: prepare, encode, prune, prefill, decode; a stream of samples in, results out.

Read `answer_all` first. Knows no method and no family.
"""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, ParamSpec

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Failed, Result, Sample
from trimtok_cli.device import frozen_heap
from trimtok_cli.engine.encoder import Ahead, InTurn
from trimtok_cli.engine.loops import loop_for, prunes_in_decoder, rules_for
from trimtok_cli.engine.order import numbered
from trimtok_cli.engine.results import failed_result, failure_of, result_of, shown
from trimtok_cli.engine.shared import Shared
from trimtok_cli.generation.capacity import most_ahead
from trimtok_cli.generation.types import Loop
from trimtok_cli.in_order import InOrder
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.pool import PREFETCH, prefetch
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.prepare.sample import Ask, Prepared
from trimtok_cli.pruners.base import Pruner

LONG = 64  # results from which a run is worth the third of a second that freezing the heap takes

Given = ParamSpec("Given")


def _frozen_when_long(
    answers: Callable[Given, Generator[Result]],
) -> Callable[Given, Iterator[Result]]:
    """Lets garbage collections pass over the model once a run has given its first results."""

    @functools.wraps(answers)
    def run(*args: Given.args, **options: Given.kwargs) -> Iterator[Result]:
        with closing(answers(*args, **options)) as results:
            for number, result in enumerate(results, 1):
                yield result
                if number == LONG:
                    break
            else:
                return
            with frozen_heap():
                yield from results

    return run


@_frozen_when_long
def answer_all(
    adapter: Adapter,
    pruner: Pruner | None,
    samples: Iterable[Sample],
    ask: Ask,
    *,
    batch_size: int | None = 1,
    workers: int = 0,
    processes: Processes | None = None,
    encode_ahead: bool | None = None,
    new_loop: Callable[..., Loop] = loop_for,
    shared: Shared | None = None,
) -> Generator[Result]:
    """Results in the order of the samples.

    batch_size: the most samples under way at once; None is as many as memory allows. workers:
    processes that prepare samples in advance; 0 prepares each sample when it is due. `processes`
    holds those that were started in advance. encode_ahead: whether a second thread encodes and
    prunes the next samples while the loop decodes; by default on CUDA, where workers prepare them.
    new_loop: makes the token loop, as `loop_for` does; another engine brings its own. shared:
    samples that other settings were given, too; this process prepares and encodes them. A sample
    that fails becomes a Result with an error; only a ModelError ends the run.
    """
    check_settings(RunConfig, batch_size=batch_size or "auto", workers=workers)
    rules = rules_for(adapter, ask)
    loop = new_loop(adapter, pruner, rules, decode=ask.decode, batch_limit=batch_size)
    turn = InOrder()
    encoder = _encoder(adapter, pruner, encode_ahead, 0 if shared else workers)
    # The next batches are prepared while the current batch runs.
    batches = 3 if encoder is Ahead else 2
    ahead = max(PREFETCH * workers, batches * (batch_size or most_ahead(adapter.device)))
    reading: dict[str, Any] = {"workers": workers, "ahead": ahead, "processes": processes}
    encoding = shared.encode if shared else None
    with (
        closing(_prepared(adapter, samples, ask, shared, **reading)) as prepared,
        closing(
            encoder(adapter, pruner, numbered(prepared, ask, seeds=rules.samples), encoding)
        ) as encoded,
    ):
        while True:
            pruned, failed = encoded.take(loop.room())
            if not (pruned or failed or loop.busy):
                return
            if pruned:
                loop.add(pruned)
            for finished in loop.step() if loop.busy else ():
                if finished.error:
                    failed.append(failure_of(finished.request, finished.error))
                else:
                    turn.put(
                        finished.request.number, shown(result_of(adapter, pruner, finished), ask)
                    )
            for each in failed:
                turn.put(each.number, failed_result(each, pruner, ask))
            yield from turn.due()


def _encoder(
    adapter: Adapter, pruner: Pruner | None, ahead: bool | None, workers: int
) -> type[InTurn]:
    """The encoder of a run. ahead: see `answer_all`."""
    if ahead is None:
        ahead = adapter.device.type == "cuda" and workers > 0
    # A pruner that goes on inside the decoder would choose in both threads at once.
    return Ahead if ahead and not prunes_in_decoder(adapter, pruner) else InTurn


def _prepared(
    adapter: Adapter, samples: Iterable[Sample], ask: Ask, shared: Shared | None, **reading: Any
) -> Generator[Prepared | Failed]:
    """The samples prepared, in their order; reading: options of `prefetch`."""
    if shared:
        return shared.prepare(samples, ask)
    return prefetch(adapter.preprocessor, samples, ask, **reading)
