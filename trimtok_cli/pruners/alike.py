"""Images of one size and budget, whichever samples they are of, chosen from by one call.

A batch's choice is then a few operations in all, not a few for each sample: on a device, launches
are what a choice costs. Knows no method.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.tokens import Selection

Image = tuple[Stage, Tensor]


def select_alike(
    pruner: Pruner,
    stages: Sequence[Stage],
    choose: Callable[[list[Image], int], Tensor],
    budgets: Callable[[Stage], list[tuple[Tensor, int]]] | None = None,
) -> list[Selection]:
    """A batch's choices, where one call of `choose` serves all images of one size and budget.

    choose([(stage, the image's places (n,)), ...], keep) -> (images, keep) indices into these
    places. It is not asked about images that keep all. budgets takes the place of the pruner's
    `image_budgets`, where something else than images has budgets.
    """
    alike: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for number, stage in enumerate(stages):
        for places, count in (budgets or pruner.image_budgets)(stage):
            alike[len(places), count].append((number, places))
    kept: list[list[Tensor]] = [[] for _ in stages]
    for (size, count), images in sorted(alike.items(), key=lambda each: each[0]):
        chosen = torch.stack([places for _, places in images])
        if count < size:
            indices = choose([(stages[number], places) for number, places in images], count)
            chosen = chosen.gather(1, indices)
        for (number, _), places in zip(images, chosen.sort(dim=1).values, strict=True):
            kept[number].append(places)
    return [Selection(_together(*each)) for each in zip(stages, kept, strict=True)]


def _together(stage: Stage, kept: Sequence[Tensor]) -> Tensor:
    """The places (K,) kept of all images of a sample, ascending, as those of each image are."""
    if len(kept) == 1:
        return kept[0]
    return torch.cat([stage.no_tokens, *kept]).sort().values


def dense_rows(images: Sequence[Image]) -> Tensor:
    """(B, N, D): the visual rows of images that have equally many."""
    return torch.stack([stage.visual_rows(places) for stage, places in images])


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged (M_i, D) -> (B, M, D) filled up with zeros, and the mask (B, M) of real rows."""
    lengths = torch.tensor([len(each) for each in rows])
    places = torch.arange(int(lengths.max()))
    real = places < lengths[:, None]
    joined = torch.cat(list(rows))
    if not len(joined):
        return joined.new_zeros(*real.shape, joined.shape[-1]), real.to(joined.device)
    # Row m of text i is row m behind all rows of the texts before it. The numbers are found on the
    # host, and are one copy to the device.
    behind = (places + (lengths.cumsum(0) - lengths)[:, None]).where(real, 0)
    numbers, real = on_device(torch.stack([behind, real.long()]), joined.device).unbind()
    return joined[numbers].masked_fill_(real[..., None] == 0, 0), real.bool()
