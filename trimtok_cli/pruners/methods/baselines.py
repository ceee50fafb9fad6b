"""Floors: what a method must beat. A random draw of visual tokens, and every n-th one. No paper;
they look at no value.

Both keep exactly the budget of each image, in prompt order. Neither looks at grids or places:
`Uniform` is evenly spaced in the ORDER of the tokens (row by row of a plain grid), so that where
the spacing divides a row's length the kept tokens stand in columns; newlines and the tiles of one
image are tokens like any other.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection


def random_indices(num_visual: int, keep: int, *, seed: int = 0, number: int = 0) -> list[int]:
    """`keep` of the places 0..N-1, ascending: a draw of equal chances that depends on seed, N and
    the image's number alone.

    `keep` >= N keeps all. A smaller keep is a part of a larger one. The same on every device and in
    every release of torch (it is Python's own generator, seeded with text). ValueError where keep
    or N is below 1.
    """
    _check(num_visual, keep)
    draw = random.Random(f"{seed}/{number}/{num_visual}")
    lot = [draw.random() for _ in range(num_visual)]
    return sorted(sorted(range(num_visual), key=lambda i: (lot[i], i))[:keep])


def uniform_indices(num_visual: int, keep: int) -> list[int]:
    """`keep` of the places 0..N-1, ascending: the middles of `keep` equal stretches, floor((i +
    1/2) N / keep).

    `keep` >= N keeps all. ValueError where keep or N is below 1.
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
    """Tokens drawn by chance. The draw of an image depends on seed, token count and its number in
    the prompt alone.
    """

    name: ClassVar[str] = "random"
    licence: ClassVar[str] = ""

    seed: int = param(0)

    def select(self, stage: Stage) -> Selection:
        kept = []
        for rows, count in self.image_budgets(stage):
            number = int(
                stage.tokens.visual_index[
                    stage.prompt.alive[rows[0]].to(stage.tokens.visual_index.device)
                ]
            )
            places = random_indices(len(rows), count, seed=self.seed, number=number)
            kept.append(rows[torch.tensor(places, device=rows.device)])
        return _selection(stage, kept)


@dataclass(frozen=True)
class Uniform(Pruner):
    """Tokens evenly spaced in their order: one-dimensional also where the image is one plain
    grid.
    """

    name: ClassVar[str] = "uniform"
    licence: ClassVar[str] = ""

    def select(self, stage: Stage) -> Selection:
        return _selection(
            stage,
            [
                rows[torch.tensor(uniform_indices(len(rows), count), device=rows.device)]
                for rows, count in self.image_budgets(stage)
            ],
        )
