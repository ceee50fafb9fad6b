"""Our Triton kernels on the pretended device: a launch is one kernel, whose values torch computes.

A kernel that is not in KERNELS is counted as well, but its results have no meaning. Code that tries
a kernel before it is used then goes on without it. Knows no model and no loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from torch.utils._python_dispatch import _disable_current_modes as outside

from trimtok_cli.bench.tally import Tally
from trimtok_cli.generation.slot_attention import has_kernels


class Stand(NamedTuple):
    """What stands for a kernel, by the kernel's own arguments.

    values: writes the results. moved: its bytes, where these are not those of all its tensors.
    """

    values: Callable[..., None]
    moved: Callable[..., int] = lambda *given: sum(_tensors(given))


@contextmanager
def tried_anew() -> Iterator[None]:
    """A block whose findings about kernels on a device are no other device's of its name."""
    has_kernels.cache_clear()
    try:
        yield
    finally:
        has_kernels.cache_clear()


def launch(
    tally: Tally, recorder: Any, kernel: Any, *given: Any, grid: Any = None, **constants: Any
) -> None:
    """Counts a launch; writes the values of small results, at each replay of a recording too."""
    name = getattr(kernel, "__name__", "triton")
    stand = KERNELS.get(name)
    tally.kernel(name, (stand or Stand(_nothing)).moved(*given))
    values = [_values_of(each) if isinstance(each, Tensor) else each for each in given]
    if stand is None or any(each is None for each in values):
        return
    run = partial(stand.values, *values, **constants)
    with outside():
        run()
    if recorder.recording is not None:
        recorder.recording.append(run)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _tensors(given: tuple) -> list[int]:
    return [each.nbytes for each in given if isinstance(each, Tensor)]


def _values_of(tensor: Tensor) -> Tensor | None:
    return tensor.__dict__.get("values") if isinstance(tensor, FakeTensor) else tensor


def _gated(gate: Tensor, up: Tensor, out: Tensor, *_: Any, **__: Any) -> None:
    out.copy_(silu(gate) * up)


def _quick_gelu(given: Tensor, out: Tensor, *_: Any, FACTOR: float, **__: Any) -> None:
    out.copy_(given * torch.sigmoid(FACTOR * given))


def _norm(rows: Tensor, scale: Tensor, out: Tensor, eps: float, **_: Any) -> None:
    out.copy_(rms_norm(rows.float(), scale.shape, scale.float(), eps))


def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *outs: Any, **_: Any) -> None:
    for given, out in zip((query, key), outs, strict=False):
        first, second = given.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        rotated = given * cos[:, None] + turned * sin[:, None]
        out.copy_(rotated.transpose(1, 2))


def _write(
    key: Tensor,
    value: Tensor,
    kept_keys: Tensor,
    kept_values: Tensor,
    ends: Tensor,
    *_: Any,
    **__: Any,
) -> None:
    rows = torch.arange(len(key))
    kept_keys[rows, ends[: len(key)]] = key[:, :, 0]
    kept_values[rows, ends[: len(key)]] = value[:, :, 0]


def _written(key: Tensor, value: Tensor, kept_keys: Tensor, kept_values: Tensor, *_: Any) -> int:
    return 2 * (key.nbytes + value.nbytes)


def _stretch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    used: Tensor,
    out: Tensor,
    most: Tensor,
    total: Tensor,
    scale: float,
    window: int,
    *_: Any,
    STRETCHES: int,
    **__: Any,
) -> None:
    """Every stretch has the whole result, so that all of them together have it as well."""
    places = torch.arange(key.shape[2])
    seen = places < used[:, None]
    if window:
        seen &= places >= used[:, None] - window
    found = scaled_dot_product_attention(
        query[:, :, None],
        key,
        value,
        attn_mask=seen[:, None, None],
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if STRETCHES == 1:
        out.copy_(found[:, :, 0])
        return
    out.copy_(found.expand_as(out))
    most.fill_(0)
    total.fill_(1)


def _join(parts: Tensor, most: Tensor, total: Tensor, out: Tensor, **_: Any) -> None:
    out.copy_(parts[:, :, 0])


KERNELS: dict[str, Stand] = {
    "_gated_kernel": Stand(_gated),
    "_norm_kernel": Stand(_norm),
    "_quick_gelu_kernel": Stand(_quick_gelu),
    "_rotary_kernel": Stand(_rotary),
    "_write_kernel": Stand(_write, _written),
    "_stretch_kernel": Stand(_stretch),
    "_join_kernel": Stand(_join),
}
"""The kernels of models/fused_triton.py and generation/slot_attention_triton.py, by their names."""
