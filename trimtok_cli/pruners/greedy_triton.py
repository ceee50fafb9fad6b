"""The greedy searches as one kernel launch each: a program per sample, its running values in registers. Needs Triton.

Given the N x N matrix, a step of the search is one row read, one addition or minimum, and one reduction; as separate
launches each would cost more than it computes. Knows neither where the matrix comes from nor which method asks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtok_cli.pruners import greedy

SHAPES = ((1, 1, 4, 1), (2, 2, 8, 2), (3, 65, 16, 1), (3, 100, 16, 100), (2, 460, 64, 64), (1, 2304, 64, 288))
CLEAR = 58  # a seed of `_tokens` whose closest decision, of all that `check_kernels` has made, is 20 times float32's rounding


@triton.jit
def _least_sum_kernel(matrix, first, order, count, keep, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    matrix += sample * count * count
    places = tl.arange(0, BLOCK)
    real = places < count
    sigma = tl.where(real, 0.0, float("inf"))
    chosen = tl.load(first + sample).to(tl.int32)
    for t in range(keep):
        if t > 0:
            chosen = tl.argmin(sigma, axis=0, tie_break_left=True).to(tl.int32)
            chosen = tl.minimum(chosen, count - 1)  # where everything is +inf or NaN: still a place in the matrix
        tl.store(order + sample * keep + t, chosen.to(tl.int64))
        row = tl.load(matrix + chosen.to(tl.int64) * count + places, mask=real, other=float("inf"))
        sigma = tl.where(places == chosen, float("inf"), sigma + row)


@triton.jit
def _farthest_kernel(matrix, first, order, count, keep, tie, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    matrix += sample * count * count
    places = tl.arange(0, BLOCK)
    real = places < count
    nearest = tl.where(real, float("inf"), float("-inf"))
    chosen = tl.load(first + sample).to(tl.int32)
    for t in range(keep):
        if t > 0:
            best = tl.max(nearest, axis=0)
            chosen = tl.min(tl.where(nearest >= best - tie, places, count - 1), axis=0)
        tl.store(order + sample * keep + t, chosen.to(tl.int64))
        row = tl.load(matrix + chosen.to(tl.int64) * count + places, mask=real, other=float("-inf"))
        # A chosen token's -inf stays: it is below every distance.
        nearest = tl.where(places == chosen, float("-inf"), tl.minimum(nearest, row))


def least_sum(similarity: Tensor, first: Tensor, keep: int) -> Tensor:
    """`greedy.least_sum` in one launch: (B, N, N) float32, contiguous, and (B,) int64 -> (B, keep) int64. Writes on neither."""
    return _launch(_least_sum_kernel, similarity, first, keep)


def farthest(distance: Tensor, first: Tensor, keep: int, tie: float) -> Tensor:
    """`greedy.farthest` in one launch: (B, N, N) float32, contiguous, and (B,) int64 -> (B, keep) int64. Writes on neither."""
    return _launch(_farthest_kernel, distance, first, keep, tie)


def _launch(kernel, matrix: Tensor, first: Tensor, keep: int, *more: float) -> Tensor:
    order = torch.empty(len(first), keep, dtype=torch.long, device=first.device)
    block = triton.next_power_of_2(matrix.shape[1])
    warps = min(max(block // 256, 1), 16)  # 8 values a thread, up to the widest block
    # No fusion of a product into a sum: the values are those of the plain loop to the last bit.
    options = {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}
    kernel[(len(first),)](matrix, first, order, matrix.shape[1], keep, *more, **options)
    return order


def check_kernels(device: torch.device | str) -> None:
    """Raises RuntimeError where, on this device, a kernel takes other tokens than the plain loop over the same matrix.

    On tokens without near-ties it also holds what the device keeps of them, in float32 and 16 bits, against a CPU's choice.
    """
    for batch, count, width, keep in SHAPES:
        visual = _tokens(batch, count, width, seed=count)
        visual[:, count // 2 :: 7] = visual[:, :1].clone()  # twins
        similarity, _ = greedy.cosines(visual.to(device))
        first = greedy.first_of_best(-similarity.mean(dim=2), greedy.ROUNDING)
        found = least_sum(similarity, first, keep), farthest(1 - similarity, first, keep, greedy.TIE)
        wanted = greedy.least_sum(similarity.clone(), first, keep), greedy.farthest(1 - similarity, first, keep)
        for name, one, other in zip(("RepMax", "max-min"), found, wanted, strict=True):
            _same(f"the {name} kernel, {batch} x {count} tokens, {keep} kept, on {device}", one, other)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        visual = _tokens(2, 460, 256, seed=CLEAR).to(dtype)
        for name, search in (("RepMax", greedy.repmax), ("max-min", greedy.max_min)):
            _same(f"{name} of {dtype} tokens on {device}", search(visual.to(device), 64), search(visual.float(), 64))


def _same(what: str, found: Tensor, wanted: Tensor) -> None:
    if not torch.equal(found.cpu(), wanted.cpu()):
        step = int((found.cpu() != wanted.cpu()).any(dim=0).int().argmax())
        raise RuntimeError(f"{what}: other tokens than the reference, from step {step} on.")


def _tokens(batch: int, count: int, width: int, seed: int) -> Tensor:
    """(batch, count, width): a mean common to all, a field of few dimensions, and noise."""
    dice = torch.Generator().manual_seed(seed)
    mean, field, base, noise = (
        torch.randn(batch, *shape, generator=dice) for shape in ((1, width), (count, 8), (8, width), (count, width))
    )
    return 0.5 * mean + 0.3 * field @ base + noise
