"""The greedy searches as one kernel launch each. Needs Triton.

A program serves one sample and holds its running values in registers. Given the N x N matrix, a
step of the search is one row read, one addition or minimum, and one reduction; as separate launches
each would cost more than it computes. Knows neither where the matrix comes from nor which method
asks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


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
            # Where everything is +inf or NaN, this is still a place in the matrix.
            chosen = tl.minimum(chosen, count - 1)
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
    """`greedy.least_sum` in one launch: (B, N, N) float32 and (B,) int64 -> (B, keep) int64.

    `similarity` is contiguous. Writes on neither input.
    """
    return _launch(_least_sum_kernel, similarity, first, keep)


def farthest(distance: Tensor, first: Tensor, keep: int, tie: float) -> Tensor:
    """`greedy.farthest` in one launch: (B, N, N) float32 and (B,) int64 -> (B, keep) int64.

    `distance` is contiguous. Writes on neither input.
    """
    return _launch(_farthest_kernel, distance, first, keep, tie)


def _launch(kernel: Any, matrix: Tensor, first: Tensor, keep: int, *constants: float) -> Tensor:
    order = torch.empty(len(first), keep, dtype=torch.long, device=first.device)
    block = triton.next_power_of_2(matrix.shape[1])
    warps = min(max(block // 256, 1), 16)  # 8 values a thread, up to the widest block
    # Without fusing a product into a sum the values are those of the plain loop to the last bit.
    options = {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device_of(matrix):
        kernel[(len(first),)](matrix, first, order, matrix.shape[1], keep, *constants, **options)
    return order
