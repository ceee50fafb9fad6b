"""A stream of samples: read ahead, answered as they fit, handed over in input order."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

from trimtok_cli.data import Result, Sample
from trimtok_cli.device import reset_peak
from trimtok_cli.engine.answer import encode, prune, seeded
from trimtok_cli.engine.batch import Lost, Waiting
from trimtok_cli.engine.loops import language_model
from trimtok_cli.engine.results import failure, result_of, too_long
from trimtok_cli.generation.capacity import MOST_ROWS
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.pool import AHEAD, prepare_ahead
from trimtok_cli.prepare.sample import Ask, Failed, Prepared
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower
from trimtok_cli.tokens import Prompt


def answer_all(
    adapter: Adapter,
    pruner: Pruner | None,
    samples: Iterable[Sample],
    ask: Ask,
    *,
    batch_size: int | None = 1,
    workers: int = 0,
) -> Iterator[Result]:
    """Results in the order of the samples; at most `batch_size` are under way at once, None is as
    many as memory allows.

    A sample that fails becomes a Result with an error; only a ModelError ends the run. workers:
    processes that prepare samples ahead; 0 prepares each where it is due.
    """
    ahead = max(
        AHEAD * workers, 2 * (batch_size or MOST_ROWS[adapter.device.type])
    )  # the next batch is prepared while this one runs
    loop = language_model(adapter, pruner, ask, rows=batch_size)
    with closing(
        prepare_ahead(adapter.preprocessor, samples, ask, workers=workers, ahead=ahead)
    ) as prepared:
        stream = (
            seeded(prepared, ask) if loop.rules.samples else prepared
        )  # what was asked before is only kept where it matters
        yield from _in_order(adapter, pruner, enumerate(stream), ask, loop)


def _in_order(
    adapter: Adapter,
    pruner: Pruner | None,
    stream: Iterator[tuple[int, Prepared | Failed]],
    ask: Ask,
    loop,
) -> Iterator[Result]:
    """Answers end in any order; each waits here for those before it."""
    ready: dict[int, Result] = {}
    upcoming, taps = 0, reads_tower(pruner)

    def reduced(group: list[tuple[int, Prepared]]) -> list[Waiting]:
        waiting = prune(adapter, pruner, encode(adapter, [each for _, each in group], taps=taps))
        return [
            replace(each, number=number) for (number, _), each in zip(group, waiting, strict=True)
        ]

    def take(count: int) -> list[tuple[Waiting | Lost, Prompt | Exception]]:
        """As many samples as there are free places, through the vision tower and the pruner
        together.
        """
        group = list(islice(stream, count))
        reset_peak(adapter.device)
        found = [
            (Lost(each.sample, number), each.error)
            for number, each in group
            if isinstance(each, Failed)
        ]
        for (number, each), made in in_halves(
            reduced, [one for one in group if isinstance(one[1], Prepared)], adapter.device
        ):
            error = made if isinstance(made, Exception) else too_long(adapter, made)
            found.append((Lost(each.sample, number), error) if error else (made, made.prompt))
        return found

    for done in loop.run(take):
        error = done.error and failure(done.key.sample, pruner, ask, done.error)
        ready[done.key.number] = error or result_of(adapter, pruner, done)
        while upcoming in ready:
            yield ready.pop(upcoming)
            upcoming += 1
