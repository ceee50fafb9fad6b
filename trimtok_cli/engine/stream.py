"""The figure: prepare, encode, prune, prefill, decode; a stream of samples in, results out.

Read `answer_all` first. Knows no method and no family.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Failed, Result, Sample
from trimtok_cli.device import frozen_heap, reset_peak
from trimtok_cli.engine.answer import reduce
from trimtok_cli.engine.loops import loop_for, rules_for
from trimtok_cli.engine.order import InOrder, numbered
from trimtok_cli.engine.results import failed_result, failure_of, result_of
from trimtok_cli.generation.capacity import most_ahead
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.pool import PREFETCH, prefetch
from trimtok_cli.prepare.sample import Ask, Prepared
from trimtok_cli.pruners.base import Pruner


def answer_all(
    adapter: Adapter,
    pruner: Pruner | None,
    samples: Iterable[Sample],
    ask: Ask,
    *,
    batch_size: int | None = 1,
    workers: int = 0,
) -> Iterator[Result]:
    """Results in the order of the samples.

    batch_size: the most samples under way at once; None is as many as memory allows. workers:
    processes that prepare samples in advance; 0 prepares each sample when it is due. A sample that
    fails becomes a Result with an error; only a ModelError ends the run.
    """
    check_settings(RunConfig, batch_size=batch_size or "auto", workers=workers)
    rules = rules_for(adapter, ask)
    loop = loop_for(adapter, pruner, rules, decode=ask.decode, batch_limit=batch_size)
    turn = InOrder()
    # The next batch is prepared while the current batch runs.
    ahead = max(PREFETCH * workers, 2 * (batch_size or most_ahead(adapter.device)))
    with (
        frozen_heap(),
        closing(
            prefetch(adapter.preprocessor, samples, ask, workers=workers, ahead=ahead)
        ) as prepared,
    ):
        stream = numbered(prepared, ask, seeds=rules.samples)
        while True:
            group = list(islice(stream, loop.room()))
            if not group and not loop.busy:
                return
            ready, failed = split(group)
            if ready:
                reset_peak(adapter.device)
                pruned, broken = reduce(adapter, pruner, ready)
                loop.add(pruned)
                failed += broken
            for finished in loop.step() if loop.busy else ():
                if finished.error:
                    failed.append(failure_of(finished.request, finished.error))
                else:
                    turn.put(finished.request.number, result_of(adapter, pruner, finished))
            for each in failed:
                turn.put(each.number, failed_result(each, pruner, ask))
            yield from turn.due()


def split(group: Sequence[Prepared | Failed]) -> tuple[list[Prepared], list[Failed]]:
    """The samples that are prepared, and the samples that failed, which never reach the model."""
    ready = [each for each in group if isinstance(each, Prepared)]
    return ready, [each for each in group if isinstance(each, Failed)]
