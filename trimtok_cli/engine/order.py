"""The numbers of a run: one for each sample, and a seed that does not depend on it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

from trimtok_cli.data import Failed
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
