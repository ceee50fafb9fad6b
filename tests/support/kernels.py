"""The Triton kernels against plain forms of the same arithmetic, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from trimtok_cli.generation import slot_attention_triton
from trimtok_cli.models import fused_triton
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


def check_fused(device: torch.device | str, dtypes: Sequence[torch.dtype]) -> None:
    """Raises AssertionError where, on this device, a fused piece of a decoder layer differs from
    the library's operations: rotations not by a bit, the gate by a rounding.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for dtype in dtypes:
        for batch, length, heads, key_heads, width in (
            (1, 1, 4, 4, 16),
            (3, 5, 9, 2, 80),
            (2, 7, 17, 1, 6),
        ):
            query, key = (
                draw(batch, length, each, width).to(device, dtype).transpose(1, 2)
                for each in (heads, key_heads)
            )
            for rows in {1, batch}:
                cos, sin = draw(2, rows, length, width).to(device, dtype)
                found = fused_triton.rotary(query, key, cos, sin)
                for one, other in zip(
                    found, apply_rotary_pos_emb(query, key, cos, sin), strict=True
                ):
                    assert one.dtype == dtype and torch.equal(one, other), (dtype, width, rows)
        for width in (6, 64, 700):
            rows, scale = draw(2, 3, width).to(device, dtype), draw(width).to(device, dtype)
            wanted = torch.nn.functional.rms_norm(rows.float(), (width,), scale.float(), 1e-6)
            bits = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6}
            found = fused_triton.norm(rows, scale, 1e-6).float()
            torch.testing.assert_close(found, wanted, **bits)
        bits = 2 * torch.finfo(dtype).eps
        apart = (4 * draw(2, 3, 1, 1300)).to(device, dtype)
        halves = (4 * draw(3, 2, 2 * 1300)).to(device, dtype).split(1300, -1)  # of one product
        for gate, up in (apart, halves):
            wanted = torch.nn.functional.silu(gate) * up
            found = fused_triton.gated(gate, up)
            assert found.is_contiguous()
            torch.testing.assert_close(found, wanted, rtol=bits, atol=1e-6)
        given = (4 * draw(3, 7, 300)).to(device, dtype)
        wanted = given * torch.sigmoid(fused_triton.QUICK * given)
        found = fused_triton.quick_gelu(given)
        torch.testing.assert_close(found, wanted, rtol=2 * bits, atol=1e-6)


SHAPES_ATTENDED = (
    (1, 4, 4, 16, 40, 0),
    (3, 6, 2, 24, 300, 0),
    (2, 8, 1, 16, 700, 0),
    (2, 4, 2, 16, 300, 9),
    (40, 20, 20, 16, 140, 0),
)
"""(rows, heads, kv_heads, width, span, window)"""
SMALL = ((1, 4, 4, 16, 40, 0), (2, 6, 2, 24, 300, 0), (2, 2, 1, 16, 150, 9))


def check_attention(
    device: torch.device | str,
    dtypes: Sequence[torch.dtype],
    shapes: Sequence[tuple[int, int, int, int, int, int]],
) -> None:
    """Raises AssertionError where, on this device, attention over the places in use differs from
    the library's under a mask."""
    generator = torch.Generator().manual_seed(2)
    for dtype in dtypes:
        for rows, heads, kv_heads, width, span, window in shapes:
            query = torch.randn(rows, heads, 1, width, generator=generator).to(device, dtype)
            store = torch.randn(2, rows, span + 5, kv_heads, width, generator=generator)
            key, value = store.to(device, dtype)[:, :, :span].transpose(2, 3)
            used = torch.randint(1, span + 1, (rows,), generator=generator).to(torch.int32)
            used[0], used[-1] = 1, span
            places = torch.arange(span)
            seen = places < used[:, None]
            if window:
                seen &= places >= used[:, None] - window
            # What lies behind the end must not matter, whatever it is.
            value[~seen.to(device)[:, None].expand(-1, kv_heads, -1)] = float("nan")
            found = slot_attention_triton.attend_used(
                query[:, :, 0], key, value, used.to(device), scale=0.3, window=window
            )
            wanted = torch.nn.functional.scaled_dot_product_attention(
                query.float(),
                key.float(),
                value.float().nan_to_num(),
                seen.to(device)[:, None, None],
                scale=0.3,
                enable_gqa=True,
            )[:, :, 0]
            bits = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(found.float(), wanted, rtol=bits, atol=bits)


def check_writes(device: torch.device | str, dtypes: Sequence[torch.dtype]) -> None:
    """Raises AssertionError where, on this device, a token is not written as an index writes it."""
    generator = torch.Generator().manual_seed(3)
    for dtype in dtypes:
        for rows, heads, width in ((1, 1, 16), (3, 9, 24)):
            made = torch.randn(2, rows, heads, width, generator=generator).to(device, dtype)
            key, value = made[:, :, :, None]
            found = torch.zeros(2, rows + 2, 50, heads, width, device=device, dtype=dtype)
            wanted = found.clone()
            ends = torch.randint(0, 50, (rows,), generator=generator).to(device)
            slot_attention_triton.write_token(key, value, *found, ends)
            wanted[:, torch.arange(rows, device=device), ends] = made
            assert torch.equal(found, wanted), (dtype, rows)


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
