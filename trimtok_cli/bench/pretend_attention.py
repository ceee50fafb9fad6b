"""Attention on the pretended device: one kernel a call, with the bytes and FLOPs that it has.

Knows no model and no loop.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.bench.pretend_calls import outside
from trimtok_cli.bench.tally import Tally

SDPA = torch.nn.functional.scaled_dot_product_attention
# The name of torch's variable-length attention among its operations.
UNEQUAL = "_varlen_attn"
Values = Callable[[Tensor], Tensor | None]


def attend(
    tally: Tally, query, key, value, attn_mask=None, *_: Any, is_causal=False, **named: Any
) -> tuple[Callable, tuple, dict, Tensor]:
    """Counts a call of torch's usual attention.

    Returns how its values are computed (a function, its arguments) and the result without values.
    """
    seen = key.shape[-2] / (2 if is_causal and query.shape[-2] > 1 else 1)
    moved = sum(each.nbytes for each in (query, key, value, query))
    shape = tuple(query.shape), tuple(key.shape), attn_mask is not None, bool(is_causal)
    tally.kernel("attention", moved, 4 * query.numel() * seen, shape)
    batch, heads, length, _ = query.shape
    result = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    run = partial(SDPA, is_causal=is_causal)
    return run, (query, key, value, attn_mask), named, result


def count_unequal(
    tally: Tally,
    values_of: Values,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries_from: Tensor,
    keys_from: Tensor | None,
    most_queries: int,
    most_keys: int,
    *rest: Any,
) -> None:
    """Counts a call of torch's variable-length attention, which reads the keys in use alone."""
    used = rest[4] if len(rest) > 4 else None
    ends = values_of(queries_from)
    starts = ends if keys_from is None else values_of(keys_from)
    numbers = None if used is None else values_of(used)
    read, seen = len(key), most_keys * len(query)
    if ends is not None and starts is not None:
        with outside():
            numbers = starts.diff() if numbers is None else numbers
            read, seen = int(numbers.sum()), int((ends.diff() * numbers).sum())
    place = (key.shape[1] * key.shape[2] + value.shape[1] * value.shape[2]) * key.element_size()
    heads, width = query.shape[1:]
    shape = len(queries_from) - 1, most_queries, most_keys, heads, key.shape[1], width
    tally.kernel("attention", 2 * query.nbytes + read * place, 4 * heads * width * seen, shape)


def attend_unequal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries_from: Tensor,
    keys_from: Tensor | None,
    most_queries: int,
    most_keys: int,
    is_causal: bool = False,
    scale: float | None = None,
    window: list[int] | None = None,
    enable_gqa: bool = False,
    used: Tensor | None = None,
    *_: Any,
) -> tuple[Tensor, ...]:
    """Variable-length attention on the CPU, one sequence at a time: for values of small tensors."""
    if window not in (None, [-1, -1], [-1, 0]):
        raise NotImplementedError(f"a window of {window} tokens on the pretended device")
    ends = queries_from.tolist()
    starts = ends if keys_from is None else keys_from.tolist()
    result = torch.empty_like(query)
    for number, (begin, end) in enumerate(pairwise(ends)):
        first = starts[number]
        last = starts[number + 1] if used is None else first + int(used[number])
        one = (query[begin:end], key[first:last], value[first:last])
        result[begin:end] = SDPA(
            *(each.transpose(0, 1)[None] for each in one),
            is_causal=is_causal and end - begin > 1,
            scale=scale,
            enable_gqa=enable_gqa,
        )[0].transpose(0, 1)
    lse = torch.zeros(query.shape[1], len(query))
    return result, lse, torch.zeros(2, dtype=torch.int64)
