"""Attention of decode steps that reads the places in use and no others, and needs no mask.

torch's variable-length attention takes the number of keys of each answer from the device, shares
keys among grouped query heads and splits long answers. Where torch has none that does, kernels of
our own do (`slot_attention_triton`). Either is registered with the library as one more attention
function, which the decoder's own config names during a step. In place of a mask, which the library
hands on as it is, that function is given the `used_places`. Knows no model.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from trimtok_cli.device import out_of_memory

log = logging.getLogger("trimtok")

NAME = "trimtok_slots"
# The flash kernels behind variable-length attention take no others.
DTYPES = (torch.float16, torch.bfloat16)
WIDEST = 256
_NEEDED = {"scale", "window_size", "enable_gqa", "seqused_k"}


@cache
def variable_length() -> Callable[..., Any] | None:
    """torch's variable-length attention, if it can read a part of each sequence; else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if set(known) >= _NEEDED else None


def heads_and_width(config: Any) -> tuple[int, int]:
    """The heads of a decoder's keys, and the width of one."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, width


def fits(config: Any, dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether the steps of a decoder can attend by `attend`; if not, they attend under masks.

    A decoder that is not run by the library's `sdpa` may have sinks or soft caps, which `attend`
    lacks as well.
    """
    return (
        device.type == "cuda"
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and (by_torch(dtype, width) or (width <= WIDEST and has_kernels(device, dtype)))
    )


def by_torch(dtype: torch.dtype, width: int) -> bool:
    """Whether torch's own attention takes heads of this width and dtype."""
    return dtype in DTYPES and width % 8 == 0 and width <= WIDEST and variable_length() is not None


@cache
def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether our own kernels can be compiled and run on this device."""
    try:
        from trimtok_cli.generation.slot_attention_triton import attend_used

        kept = torch.ones(1, 1, 16, 16, device=device, dtype=dtype)
        used = torch.ones(1, device=device, dtype=torch.int32)
        found = attend_used(kept[:, :, 0], kept, kept, used, scale=1.0)
        return torch.equal(found, kept[:, :, 0])
    except Exception as error:
        if out_of_memory(error):
            raise
        log.debug("decode steps attend under masks, because Triton cannot be used: %s", error)
        return False


def token_writer(device: torch.device, dtype: torch.dtype) -> Callable[..., None] | None:
    """What writes a step's keys and values by one kernel on this device; None where nothing does.

    It takes key, value, kept_keys, kept_values, ends: see `slot_attention_triton.write_token`.
    """
    if device.type != "cuda" or not has_kernels(device, dtype):
        return None
    from trimtok_cli.generation.slot_attention_triton import write_token

    return write_token


def used_places(lengths: Tensor, slot: int) -> Tensor:
    """(1, 1, 3, B + 1) int32: what `attend` is given in place of a mask.

    Row 0: where each slot's query begins, among all queries. Row 1: where its keys begin, among the
    keys of all slots. Row 2: its number of keys, with the new token's. lengths (B,): the place of
    each new token. slot: places of a slot.
    """
    numbers = torch.arange(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    used = torch.nn.functional.pad(lengths.to(torch.int32) + 1, (0, 1))
    return torch.stack([numbers, numbers * slot, used])[None, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The library's form of an attention function: returns (B, 1, heads, head_dim), no weights.

    query (B, heads, 1, head_dim); key and value (B, kv_heads, span, head_dim) are views of the KV
    slots, and no slot uses more places than span. attention_mask: the `used_places`.
    """
    queries_from, keys_from, used = attention_mask[0, 0].unbind()
    varlen = variable_length()
    if varlen is None or (query.is_cuda and not by_torch(query.dtype, query.shape[-1])):
        from trimtok_cli.generation.slot_attention_triton import attend_used

        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        found = attend_used(
            query[:, :, 0], key, value, used[:-1], scale=scale, window=sliding_window or 0
        )
        return found[:, None], None
    # A window counts the token itself; here it counts the tokens before it.
    window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
    attended = varlen(
        query[:, :, 0],
        _in_a_row(key),
        _in_a_row(value),
        queries_from,
        keys_from,
        1,
        key.shape[2],
        scale=scaling,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
        seqused_k=used[:-1],
    )
    return attended[:, None], None


def _in_a_row(kept: Tensor) -> Tensor:
    """A view (tokens, heads, head_dim) of the slots that (B, heads, span, head_dim) is a view of.

    It begins with the first slot's first place, and ends with the last one that is seen.
    """
    count, heads, span, width = kept.shape
    row, head, token, _ = kept.stride()
    return kept.as_strided(((count - 1) * (row // token) + span, heads, width), (token, head, 1))


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """A block in which the decoder of this config attends by `attend`."""
    AttentionInterface.register(NAME, attend)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
