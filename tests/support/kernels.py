"""The Triton kernels against the plain loops over the same matrix, on any device."""

import torch
from torch import Tensor

from trimtok_cli.pruners.kernels import greedy, greedy_triton, numerics

SHAPES = (
    (1, 1, 4, 1),
    (2, 2, 8, 2),
    (3, 65, 16, 1),
    (3, 100, 16, 100),
    (2, 460, 64, 64),
    (1, 2304, 64, 288),
)
# a seed of `_tokens` whose closest decision, of all that `check_kernels` has made, is 20 times
# float32's rounding
CLEAR = 58


def check_kernels(device: torch.device | str) -> None:
    """Raises RuntimeError where, on this device, a kernel takes other tokens than the plain loop
    over the same matrix.

    On tokens without near-ties it also holds what the device keeps of them, in float32 and 16 bits,
    against a CPU's choice.
    """
    for batch, count, width, keep in SHAPES:
        visual = _tokens(batch, count, width, seed=count)
        visual[:, count // 2 :: 7] = visual[:, :1].clone()  # duplicates
        similarity, _ = numerics.cosines(visual.to(device))
        first = numerics.first_of_best(-similarity.mean(dim=2), greedy.ROUNDING)
        found = (
            greedy_triton.least_sum(similarity, first, keep),
            greedy_triton.farthest(1 - similarity, first, keep, greedy.TIE),
        )
        wanted = (
            greedy.least_sum(similarity.clone(), first, keep),
            greedy.farthest(1 - similarity, first, keep),
        )
        for name, one, other in zip(("RepMax", "max-min"), found, wanted, strict=True):
            _same(
                f"the {name} kernel, {batch} x {count} tokens, {keep} kept, on {device}", one, other
            )
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        visual = _tokens(2, 460, 256, seed=CLEAR).to(dtype)
        for name, search in (("RepMax", greedy.repmax), ("max-min", greedy.max_min)):
            _same(
                f"{name} of {dtype} tokens on {device}",
                search(visual.to(device), 64),
                search(visual.float(), 64),
            )


def _same(what: str, found: Tensor, wanted: Tensor) -> None:
    if not torch.equal(found.cpu(), wanted.cpu()):
        step = int((found.cpu() != wanted.cpu()).any(dim=0).int().argmax())
        raise RuntimeError(f"{what}: other tokens than the reference, from step {step} on.")


def _tokens(batch: int, count: int, width: int, seed: int) -> Tensor:
    """(batch, count, width): a mean common to all, a field of few dimensions, and noise."""
    generator = torch.Generator().manual_seed(seed)
    mean, field, base, noise = (
        torch.randn(batch, *shape, generator=generator)
        for shape in ((1, width), (count, 8), (8, width), (count, width))
    )
    return 0.5 * mean + 0.3 * field @ base + noise
