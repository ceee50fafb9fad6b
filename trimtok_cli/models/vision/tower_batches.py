"""Which samples go through the vision tower together, and where each finds its tokens there. Knows
no model.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from trimtok_cli.models.vision.token_layout import TokenLayout

CROP = (
    3 * 336 * 336
    # values of one crop of CLIP's size: the unit in which a pass is measured, whatever the family's
    # own
)


def batch_by_shape(
    media: Sequence[Mapping[str, Tensor]], axis: int, crops: float
) -> list[list[int]]:
    """The numbers of the samples of each pass, from their tensors: those that can be laid together
    along `axis`.

    A pass takes samples in their order and has `crops` crops' worth of pixel values at most; a
    larger sample is alone in it. A sample without tensors is in none.
    """
    found: list[list[int]] = []
    last: dict[tuple, tuple[list[int], float]] = {}
    for number, tensors in enumerate(media):
        if not tensors:
            continue
        alike = tuple(
            (name, *t.shape[:axis], *t.shape[axis + 1 :]) for name, t in sorted(tensors.items())
        )
        size = (
            sum(
                tensor.numel()
                for name, tensor in tensors.items()
                if name.startswith("pixel_values")
            )
            / CROP
        )
        members, filled = last.get(alike, ([], 0.0))
        if not members or filled + size > crops:
            members, filled = [], 0.0
            found.append(members)
        members.append(number)
        last[alike] = members, filled + size
    return found


def tower_offsets(
    places: Sequence[Sequence[TokenLayout]], later: Sequence[Sequence[bool]]
) -> list[list[int]]:
    """For each sample of a pass, where the tower tokens of its images and videos begin: what is
    `later` behind all others.
    """
    order = sorted((late, i, j) for i, sample in enumerate(later) for j, late in enumerate(sample))
    begin = accumulate((places[i][j].tower for _, i, j in order), initial=0)
    found = {(i, j): start for (_, i, j), start in zip(order, begin, strict=False)}
    return [[found[i, j] for j in range(len(sample))] for i, sample in enumerate(places)]
