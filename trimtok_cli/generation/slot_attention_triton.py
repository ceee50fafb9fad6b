"""A step's new token of each slot written into the cache, and its attention over the places in use.

The keys and values of a layer are written by one kernel launch. Attention is two launches at most.

A program reads a stretch of one slot's keys and values for the query heads that share them. Where
there are too few slots and heads to fill a device, a slot has several stretches, whose results a
second kernel puts together. Needs Triton. Knows no model and no cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 8  # of one program that writes
PLACES = 64  # of one pass of a program's loop
PROGRAMS = 512  # about what a device needs in order to read as fast as it can
SHORTEST = 128  # places of a stretch at least


@triton.jit
def _stretch_kernel(
    query,
    key,
    value,
    used,
    out,
    most,
    total,
    scale,
    window,
    stretch,
    query_row,
    query_head,
    kept_row,
    kept_head,
    kept_place,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    PLACES: tl.constexpr,
    STRETCHES: tl.constexpr,
):
    row, head, number = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    end = tl.load(used + row)
    begin = tl.maximum(tl.where(window > 0, end - window, 0), number * stretch)
    end = tl.minimum(end, (number + 1) * stretch)
    member, lane = tl.arange(0, MEMBERS), tl.arange(0, LANES)
    wide = lane < WIDTH
    real = (member[:, None] < GROUP) & wide[None, :]
    asked = head * GROUP + member
    query += row * query_row + asked[:, None] * query_head + lane[None, :]
    questions = tl.load(query, mask=real, other=0.0)
    highest, weight = tl.full([MEMBERS], float("-inf"), tl.float32), tl.zeros([MEMBERS], tl.float32)
    summed = tl.zeros([MEMBERS, LANES], tl.float32)
    key += row * kept_row + head * kept_head
    value += row * kept_row + head * kept_head
    for first in range(begin, end, PLACES):
        place = (first + tl.arange(0, PLACES)).to(tl.int64)
        there = place < end
        seen = there[:, None] & wide[None, :]
        keys = tl.load(key + place[:, None] * kept_place + lane[None, :], mask=seen, other=0.0)
        scores = tl.dot(questions, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, axis=1))
        share = tl.exp(scores - new[:, None])
        fade = tl.exp(highest - new)
        weight = weight * fade + tl.sum(share, axis=1)
        values = tl.load(value + place[:, None] * kept_place + lane[None, :], mask=seen, other=0.0)
        more = tl.dot(share.to(values.dtype), values, input_precision="ieee")
        summed = summed * fade[:, None] + more
        highest = new
    # A part of the result, which `_join_kernel` puts together, or all of it.
    at = (row * tl.num_programs(1) * GROUP + asked) * STRETCHES + number
    if STRETCHES == 1:
        summed = summed / weight[:, None]
    else:
        tl.store(most + at, highest, mask=member < GROUP)
        tl.store(total + at, weight, mask=member < GROUP)
    tl.store(out + at[:, None] * WIDTH + lane[None, :], summed.to(out.dtype.element_ty), mask=real)


@triton.jit
def _join_kernel(
    parts,
    most,
    total,
    out,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    STRETCHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    asked = tl.program_id(0).to(tl.int64)
    number, lane = tl.arange(0, BLOCK), tl.arange(0, LANES)
    real = number < STRETCHES
    highest = tl.load(most + asked * STRETCHES + number, mask=real, other=float("-inf"))
    share = tl.exp(highest - tl.max(highest, axis=0))
    weight = tl.sum(share * tl.load(total + asked * STRETCHES + number, mask=real, other=0.0))
    start = parts + (asked * STRETCHES + number)[:, None] * WIDTH + lane[None, :]
    seen = real[:, None] & (lane < WIDTH)[None, :]
    summed = tl.sum(share[:, None] * tl.load(start, mask=seen, other=0.0), axis=0)
    tl.store(out + asked * WIDTH + lane, (summed / weight).to(out.dtype.element_ty), lane < WIDTH)


@triton.jit
def _write_kernel(
    key,
    value,
    kept_keys,
    kept_values,
    ends,
    heads,
    key_row,
    key_head,
    value_row,
    value_head,
    kept_row,
    kept_place,
    kept_head,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, LANES)
    real = (head[:, None] < heads) & (lane[None, :] < WIDTH)
    to = row * kept_row + tl.load(ends + row) * kept_place
    to += head[:, None] * kept_head + lane[None, :]
    start = key + row * key_row + head[:, None] * key_head + lane[None, :]
    tl.store(kept_keys + to, tl.load(start, mask=real), mask=real)
    start = value + row * value_row + head[:, None] * value_head + lane[None, :]
    tl.store(kept_values + to, tl.load(start, mask=real), mask=real)


def write_token(
    key: Tensor, value: Tensor, kept_keys: Tensor, kept_values: Tensor, ends: Tensor
) -> None:
    """Writes a token's key and value (B, heads, 1, d) into the first B slots of a layer's cache.

    kept_keys, kept_values (rows, places, heads, d), of the same strides; ends (B,) int64: the place
    in each slot. The values of a head lie side by side.
    """
    rows, heads, _, width = key.shape
    with torch.cuda.device_of(key):
        _write_kernel[(rows, triton.cdiv(heads, HEADS))](
            *(key, value, kept_keys, kept_values, ends, heads),
            *key.stride()[:2],
            *value.stride()[:2],
            *kept_keys.stride()[:3],
            WIDTH=width,
            LANES=triton.next_power_of_2(width),
            HEADS=HEADS,
        )


def attend_used(
    query: Tensor, key: Tensor, value: Tensor, used: Tensor, *, scale: float, window: int = 0
) -> Tensor:
    """(B, heads, d): attention of one query a slot over the first places of that slot.

    query (B, heads, d); key and value (B, kv_heads, span, d), of the same strides; used (B,) int32:
    the places in use, at least one of each slot. window: the last places alone; 0 is all. The
    values of a head lie side by side.
    """
    rows, heads, width = query.shape
    kv_heads, span = key.shape[1:3]
    group = heads // kv_heads
    stretches = min(triton.cdiv(PROGRAMS, rows * kv_heads), triton.cdiv(span, SHORTEST))
    out = query.new_empty(rows, heads, width)
    parts = most = total = out
    if stretches > 1:
        parts = query.new_empty(rows, heads, stretches, width, dtype=torch.float32)
        most, total = parts.new_empty(2, rows, heads, stretches)
    lanes = max(16, triton.next_power_of_2(width))
    # Triton launches on the current device, which need not be the one of the tensors.
    with torch.cuda.device_of(query):
        _stretch_kernel[(rows, kv_heads, stretches)](
            *(query, key, value, used, parts, most, total),
            *(scale, window, triton.cdiv(span, stretches)),
            *query.stride()[:2],
            *key.stride()[:3],
            GROUP=group,
            MEMBERS=max(16, triton.next_power_of_2(group)),
            WIDTH=width,
            LANES=lanes,
            PLACES=PLACES,
            STRETCHES=stretches,
        )
        if stretches > 1:
            _join_kernel[(rows * heads,)](
                *(parts, most, total, out),
                WIDTH=width,
                LANES=lanes,
                STRETCHES=stretches,
                BLOCK=triton.next_power_of_2(stretches),
            )
    return out
