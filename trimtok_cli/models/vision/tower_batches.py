"""Tower batches: which samples go through the vision tower together, and where their tokens are.

Knows no model.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from trimtok_cli.models.vision.token_layout import TokenLayout

# Pixel values of one crop of CLIP: the unit of a tower batch's size, for every family.
CROP = 3 * 336 * 336


def batch_by_shape(
    media: Sequence[Mapping[str, Tensor]], axis: int, crops: float
) -> list[list[int]]:
    """The numbers of the samples in each tower batch.

    media: each sample's tensors. The samples of a batch can be concatenated along `axis`, are in
    their order, and have `crops` crops of pixel values together at most. A larger sample is alone.
    A sample without tensors is in no batch.
    """
    batches: list[list[int]] = []
    # For each shape, its last batch and the crops in it.
    open_batches: dict[tuple, tuple[list[int], float]] = {}
    for number, tensors in enumerate(media):
        if not tensors:
            continue
        shape = tuple(
            (name, *tensor.shape[:axis], *tensor.shape[axis + 1 :])
            for name, tensor in sorted(tensors.items())
        )
        size = _crops(tensors)
        members, filled = open_batches.get(shape, ([], 0.0))
        if not members or filled + size > crops:
            members, filled = [], 0.0
            batches.append(members)
        members.append(number)
        open_batches[shape] = members, filled + size
    return batches


def _crops(tensors: Mapping[str, Tensor]) -> float:
    """The pixel values of a sample in crops."""
    pixels = [tensor for name, tensor in tensors.items() if name.startswith("pixel_values")]
    return sum(tensor.numel() for tensor in pixels) / CROP


def tower_offsets(
    layouts: Sequence[Sequence[TokenLayout]], later: Sequence[Sequence[bool]]
) -> list[list[int]]:
    """The offset of each visual's tower tokens within the batch, for each sample.

    layouts, later: one entry for each visual of each sample. Visuals marked `later` follow all
    others.
    """
    order = sorted((late, i, j) for i, sample in enumerate(later) for j, late in enumerate(sample))
    starts = accumulate((layouts[i][j].num_tower_tokens for _, i, j in order), initial=0)
    offset_of = {(i, j): start for (_, i, j), start in zip(order, starts, strict=False)}
    return [[offset_of[i, j] for j in range(len(sample))] for i, sample in enumerate(layouts)]
