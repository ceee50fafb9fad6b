"""The order of a run: a number and a seed for each sample, and results in that order."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from trimtok_cli.data import Failed, Result
from trimtok_cli.generation.seeds import SampleSeeds
from trimtok_cli.prepare.sample import Ask, Prepared

Item = TypeVar("Item", Prepared, Prepared | Failed)


def numbered(prepared: Iterable[Item], ask: Ask, *, seeds: bool = True) -> Iterator[Item]:
    """Gives each sample its number, and a seed that depends on the images and the question.

    seeds: without seeds, no memory is held of the questions asked before.
    """
    lots = SampleSeeds()
    for number, each in enumerate(prepared):
        if seeds and isinstance(each, Prepared):
            sample = each.sample
            seed = lots.number(sample.names, ask.question(sample), sample.turn)
            each = replace(each, seed=seed)
        yield replace(each, number=number)


class InOrder:
    """Puts results in order: a result waits here for all results before it."""

    def __init__(self) -> None:
        self.waiting: dict[int, Result] = {}
        self.next = 0

    def put(self, number: int, result: Result) -> None:
        self.waiting[number] = result

    def due(self) -> Iterator[Result]:
        while self.next in self.waiting:
            yield self.waiting.pop(self.next)
            self.next += 1
