"""How much memory there is, what a key/value cache takes of it, and what running out of it looks like. Knows no method."""

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from trimtok_cli.errors import ModelError

Item = TypeVar("Item")
Made = TypeVar("Made")

MOST_ROWS = {"cuda": 64, "mps": 16, "cpu": 8}  # beyond these a larger batch gains little
PREFILL_TOKENS = 16_384  # of one prefill, padding counted: enough to fill a GPU, and its activations stay small
SHARE = 0.85  # of the free memory; the rest is the allocator's own


def out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator has a class of its own for it; the CPU's, and CUDA's libraries, raise a RuntimeError."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def forget_frames(error: Exception) -> Exception:
    """The error without the tensors that the frames of its traceback hold."""
    traceback.clear_frames(error.__traceback__)
    return error


def free_bytes(device: torch.device) -> int:
    """What could still be allocated, counting what torch holds in reserve."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not Linux
        return 8 << 30


def release(device: torch.device) -> None:
    """Gives what is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def cache_bytes(config, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes in a decoder of this config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * dtype.itemsize


def rows_for(adapter, prompt: int, new_tokens: int) -> int:
    """How many answers fit at once where a prompt has so many tokens."""
    config = adapter.model.get_decoder().config
    return rows_that_fit(config, adapter.dtype, adapter.device, length=prompt + new_tokens)


def rows_that_fit(config, dtype: torch.dtype, device: torch.device, *, length: int, prefill_tokens: int = PREFILL_TOKENS) -> int:
    """How many answers of `length` tokens can be under way at once; at least 1.

    A row needs its keys and values and, while it waits, its prompt. A prefill of `prefill_tokens` needs a layer's
    activations: about three times the MLP's width and eight times the model's.
    """
    row = length * (cache_bytes(config, dtype) + config.hidden_size * dtype.itemsize)
    prefill = prefill_tokens * (3 * config.intermediate_size + 8 * config.hidden_size) * dtype.itemsize
    fit = int((SHARE * free_bytes(device) - prefill) / row)
    return max(1, min(fit, MOST_ROWS.get(device.type, 8)))


def in_halves(
    work: Callable[[list[Item]], list[Made]], items: list[Item], device: torch.device
) -> Iterator[tuple[Item, Made | Exception]]:
    """Each item with what `work` makes of it. A batch that fails is tried again in halves, so that only the item fails that
    cannot be done even alone, and a batch that is too large for the memory finds its size."""
    if not items:
        return
    try:
        made = work(items)
    except ModelError:
        raise
    except Exception as error:
        failed = forget_frames(error)
    else:
        yield from zip(items, made, strict=True)
        return
    if out_of_memory(failed):
        release(device)
    if len(items) == 1:
        yield items[0], failed
        return
    middle = len(items) // 2
    yield from in_halves(work, items[:middle], device)
    yield from in_halves(work, items[middle:], device)
