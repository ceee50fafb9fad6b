"""Pieces of a decoder layer and of a vision tower as one kernel launch each: a rotation in place of
ten, a norm of eight, a gate of two, and CLIP's activation of three.

Every product and sum is rounded to the tensors' dtype as the library's own operations round it, so
that the results are the library's. Needs Triton. Knows no model.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 8  # of one program
WIDTH = 1024  # values of one program
QUICK = 1.702  # of CLIP's activation


@triton.jit
def _rotary_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    length,
    query_heads,
    key_heads,
    query_sample,
    query_place,
    query_head,
    key_sample,
    key_place,
    key_head,
    cos_sample,
    cos_place,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Rotates some heads of one token. Outputs are (tokens, heads, 2 HALF), contiguous."""
    token = tl.program_id(0).to(tl.int64)
    sample, place = token // length, token % length
    group, groups = tl.program_id(1), tl.cdiv(query_heads, HEADS)
    given = query + sample * query_sample + place * query_place
    out, heads, stride = query_out, query_heads, query_head
    if group >= groups:
        given = key + sample * key_sample + place * key_place
        out, heads, stride = key_out, key_heads, key_head
        group -= groups
    head, half = group * HEADS + tl.arange(0, HEADS), tl.arange(0, BLOCK)
    there = half < HALF
    real = (head[:, None] < heads) & there[None, :]
    start = given + head[:, None] * stride + half[None, :]
    first = tl.load(start, mask=real, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=real, other=0.0).to(tl.float32)
    at = sample * cos_sample + place * cos_place + half
    first_cos = tl.load(cos + at, mask=there, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + at + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + at, mask=there, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + at + HALF, mask=there, other=0.0).to(tl.float32)[None, :]
    one = (first * first_cos).to(TYPE).to(tl.float32)
    one -= (second * first_sin).to(TYPE).to(tl.float32)
    two = (second * second_cos).to(TYPE).to(tl.float32)
    two += (first * second_sin).to(TYPE).to(tl.float32)
    end = out + (token * heads + head[:, None]) * (2 * HALF) + half[None, :]
    tl.store(end, one.to(TYPE), mask=real)
    tl.store(end + HALF, two.to(TYPE), mask=real)


@triton.jit
def _gated_kernel(gate, up, out, width, gate_row, up_row, BLOCK: tl.constexpr, TYPE: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < width
    opened = tl.load(gate + row * gate_row + at, mask=real, other=0.0).to(tl.float32)
    opened = (opened / (1.0 + tl.exp(-opened))).to(TYPE).to(tl.float32)
    product = opened * tl.load(up + row * up_row + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, product.to(TYPE), mask=real)


@triton.jit
def _quick_gelu_kernel(
    given, out, count, FACTOR: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    values = tl.load(given + at, mask=real, other=0.0).to(tl.float32)
    share = (values * FACTOR).to(TYPE).to(tl.float32)
    share = (1.0 / (1.0 + tl.exp(-share))).to(TYPE).to(tl.float32)
    tl.store(out + at, (values * share).to(TYPE), mask=real)


@triton.jit
def _norm_kernel(
    rows, scale, out, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    lane = tl.arange(0, BLOCK)
    real = lane < WIDTH
    values = tl.load(rows + start + lane, mask=real, other=0.0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, axis=0) / WIDTH + eps)
    scales = tl.load(scale + lane, mask=real, other=0.0).to(tl.float32)
    tl.store(out + start + lane, (normed * scales).to(TYPE), mask=real)


TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Query (B, H, S, d) and key (B, K, S, d), rotated by the angles (B or 1, S, d).

    All have one dtype, and the values of a head lie side by side. The results are views of tensors
    (B, S, heads, d), as the library's are.
    """
    batch, heads, length, width = query.shape
    key_heads = key.shape[1]
    outs = [query.new_empty(batch, length, each, width) for each in (heads, key_heads)]
    strides = [each.stride() for each in (query, key)]
    places = [number for row, head, place, _ in strides for number in (row, place, head)]
    grid = (batch * length, triton.cdiv(heads, HEADS) + triton.cdiv(key_heads, HEADS))
    if batch * length:
        _launch(
            _rotary_kernel,
            grid,
            query,
            *(key, cos, sin, *outs, length, heads, key_heads, *places),
            *(cos.stride(0) if len(cos) > 1 else 0, cos.stride(1)),
            HALF=width // 2,
            BLOCK=triton.next_power_of_2(width // 2),
            HEADS=HEADS,
        )
    return outs[0].transpose(1, 2), outs[1].transpose(1, 2)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of two tensors (..., N) of one shape and dtype; the result is contiguous.

    Their rows may lie apart, as those of two parts of one tensor do, but all equally far.
    """
    out = gate.new_empty(gate.shape)
    width = gate.shape[-1]
    if gate.numel():
        rows = [each.view(-1, width) for each in (gate, up, out)]
        grid = (len(rows[0]), triton.cdiv(width, WIDTH))
        strides = [each.stride(0) for each in rows[:2]]
        _launch(_gated_kernel, grid, *rows, width, *strides, BLOCK=WIDTH)
    return out


def quick_gelu(given: Tensor) -> Tensor:
    """x sigmoid(1.702 x) of a contiguous tensor."""
    out = torch.empty_like(given)
    if given.numel():
        grid = (triton.cdiv(given.numel(), WIDTH),)
        _launch(_quick_gelu_kernel, grid, given, out, given.numel(), FACTOR=QUICK, BLOCK=WIDTH)
    return out


def norm(rows: Tensor, scale: Tensor, eps: float) -> Tensor:
    """The RMS norm of contiguous rows (..., D) as wide as the scale (D,), which has their dtype."""
    out = torch.empty_like(rows)
    width = rows.shape[-1]
    if rows.numel():
        block = triton.next_power_of_2(width)
        warps = min(max(block // 512, 1), 16)
        sizes = {"WIDTH": width, "BLOCK": block, "num_warps": warps}
        _launch(_norm_kernel, (rows.numel() // width,), rows, scale, out, eps, **sizes)
    return out


def _launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *rest: Any, **sizes: int) -> None:
    # Triton launches on the current device, which need not be the one of the tensors. Without
    # fusing a product into a sum, float32 is rounded as the library rounds it.
    with torch.cuda.device_of(first):
        kernel[grid](first, *rest, **sizes, TYPE=TYPES[first.dtype], enable_fp_fusion=False)
