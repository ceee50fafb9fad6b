"""Packed tower: images of any size lie in one row, and attend within segments in one call a layer.

A segment is an image, a frame or a window of it. The library gives its attention functions one
segment at a time, and reads their lengths from the device in every layer; here a function of our
own gets all segments at once, and the lengths stay on the host. Knows no family.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

# The library hands the segments over to functions whose name holds `flash`.
_VARLEN = "trimtok_flash_varlen"
_IN_BATCHES = "trimtok_flash_in_batches"

# Names by which the library's towers take the ends of their segments.
_ENDS = ("cu_seqlens", "cu_window_seqlens")


@contextmanager
def packed(
    visual: torch.nn.Module, dtype: torch.dtype, to_device: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within this context, the tower `visual` attends in one call a layer, and reads no grid.

    dtype: of its activations. to_device: moves a CPU tensor to the tower's device without a wait.
    The grids that the tower is called with lie on the CPU. Afterwards the tower is as before.
    """
    varlen = has_varlen(visual.device, dtype)
    AttentionInterface.register(_VARLEN, attend_varlen)
    AttentionInterface.register(_IN_BATCHES, attend_in_batches)

    def compute(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        computed = from_grid(visual, kwargs["grid_thw"])
        moved = {
            # Batches are made on the host, which then reads the lengths without a wait.
            name: value
            if isinstance(value, int) or (name in _ENDS and not varlen)
            else to_device(value)
            for name, value in computed.items()
        }
        return args, kwargs | moved

    before = visual.config._attn_implementation
    visual.config._attn_implementation = _VARLEN if varlen else _IN_BATCHES
    hook = visual.register_forward_pre_hook(compute, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        visual.config._attn_implementation = before


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's attention over segments of any length runs: 16 bits on CUDA, since Ampere."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def from_grid(visual: torch.nn.Module, grid: Tensor) -> dict[str, Tensor | int]:
    """What a tower computes from its grids (images, 3), by the library's own functions.

    A tower takes these arguments in place of computing them.
    """
    config = visual.config
    merge = config.spatial_merge_size
    ends = get_vision_cu_seqlens(grid)
    computed: dict[str, Tensor | int] = {
        "position_ids": get_vision_position_ids(grid, merge),
        "cu_seqlens": ends,
        "max_seqlen": int(ends.diff().max()),
    }
    if getattr(config, "window_size", 0):
        index, ends = get_vision_window_index(
            grid,
            spatial_merge_size=merge,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )
        computed |= {
            "window_index": index,
            "cu_window_seqlens": ends,
            "max_window_seqlen": int(ends.diff().max()),
        }
    if hasattr(visual, "interpolation_mode"):
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        computed |= {"interp_indices": indices, "interp_weights": weights}
    return computed


def attend_varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within segments by one kernel: (1, H, S, d) -> (1, S, H, d).

    cu_seq_lens_q (segments + 1,) int32: the ends of the segments, on the device. max_length_q: of
    the longest.
    """
    # The kernel of torch 2.10 has no scale of its own.
    width = query.shape[-1]
    if abs(scaling * width**0.5 - 1) > 1e-6:
        query = query * (scaling * width**0.5)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    ends = cu_seq_lens_q
    return varlen_attn(*rows, ends, ends, max_length_q, max_length_q)[None], None


def attend_in_batches(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within segments, those of one length as one batch: (1, H, S, d) -> (1, S, H, d).

    cu_seq_lens_q (segments + 1,): the ends of the segments, on the host.
    """
    # Segments of one length that follow each other are a run: a view, which costs no copy.
    runs = [(length, len(list(run))) for length, run in groupby(cu_seq_lens_q.diff().tolist())]
    lengths = [length for length, _ in runs]
    in_runs = [_batches(tensor, runs) for tensor in (query, key, value)]
    attended: list[Tensor] = [query] * len(runs)
    for length in sorted(set(lengths)):
        members = [number for number, other in enumerate(lengths) if other == length]
        batch = [_joined([tensors[number] for number in members]) for tensors in in_runs]
        output = torch.nn.functional.scaled_dot_product_attention(*batch, scale=scaling)
        rows = output.transpose(1, 2).flatten(0, 1)
        sizes = [length * runs[number][1] for number in members]
        for number, part in zip(members, rows.split(sizes), strict=True):
            attended[number] = part
    return _joined(attended)[None], None


def _batches(tensor: Tensor, runs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(1, H, S, d) -> (n, H, length, d) for each run of n segments of this length."""
    pieces = tensor[0].split([length * count for length, count in runs], dim=1)
    return [
        piece.unflatten(1, (count, length)).transpose(0, 1)
        for piece, (length, count) in zip(pieces, runs, strict=True)
    ]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors behind each other along their first axis; a single one is not copied."""
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
