"""Baselines that every method must beat: a random draw of visual tokens, and evenly spaced ones.

No paper. Both keep exactly the budget of each image, in prompt order, and look at no value, grid or
box. `Uniform` is evenly spaced in the ORDER of the tokens (row by row of a plain grid): where the
spacing divides a row's length, the kept tokens stand in columns. Newlines and the tiles of one
image are tokens like any other.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection


def random_indices(num_visual: int, keep: int, *, seed: int = 0, number: int = 0) -> list[int]:
    """`keep` of the places 0..N-1 drawn with equal chances, ascending.

    The draw depends on seed, N and the image's number alone: Python's own generator is the same on
    every device and in every release of torch. A smaller keep draws a part of a larger one; `keep`
    >= N keeps all. Raises ValueError where keep or N is below 1.
    """
    _check(num_visual, keep)
    generator = random.Random(f"{seed}/{number}/{num_visual}")
    draws = [generator.random() for _ in range(num_visual)]
    return sorted(sorted(range(num_visual), key=lambda i: (draws[i], i))[:keep])


def uniform_indices(num_visual: int, keep: int) -> list[int]:
    """`keep` of the places 0..N-1, the middles of `keep` equal stretches, ascending.

    The i-th is floor((i + 1/2) N / keep). `keep` >= N keeps all. Raises ValueError where keep or N
    is below 1.
    """
    _check(num_visual, keep)
    keep = min(keep, num_visual)
    return [(2 * i + 1) * num_visual // (2 * keep) for i in range(keep)]


def _check(num_visual: int, keep: int) -> None:
    if keep < 1 or num_visual < 1:
        raise ValueError(f"keep and N must be at least 1, got {keep} and {num_visual}")


def _selection(stage: Stage, kept: list[Tensor]) -> Selection:
    return Selection(torch.cat([stage.no_tokens, *kept]).sort().values)


@dataclass(frozen=True)
class Random(Pruner):
    """Tokens drawn by chance.

    An image's draw depends on seed, its token count and its number in the prompt alone.
    """

    name: ClassVar[str] = "random"
    licence: ClassVar[str] = ""

    seed: int = param(0, least=0)

    def select(self, stage: Stage) -> Selection:
        visual_index = stage.tokens.visual_index
        kept = []
        for places, count in self.image_budgets(stage):
            first = stage.prompt.alive[places[0]].to(visual_index.device)
            number = int(visual_index[first])
            indices = random_indices(len(places), count, seed=self.seed, number=number)
            kept.append(places[on_device(torch.tensor(indices), places.device)])
        return _selection(stage, kept)


@dataclass(frozen=True)
class Uniform(Pruner):
    """Tokens evenly spaced in their order, one-dimensional even where the image is a plain grid."""

    name: ClassVar[str] = "uniform"
    licence: ClassVar[str] = ""

    def select(self, stage: Stage) -> Selection:
        kept = [
            places[on_device(torch.tensor(uniform_indices(len(places), count)), places.device)]
            for places, count in self.image_budgets(stage)
        ]
        return _selection(stage, kept)
