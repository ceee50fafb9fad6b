"""Cosines, ties and precision that the greedy searches share."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 400_000_000  # bytes of the largest temporary; a batch that needs more goes through in parts


def cosines(visual: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, D) -> cosine similarities (B, N, N) in float32 and which tokens have length zero (B,
    N); theirs are all 0.

    16-bit tokens on a GPU are multiplied as they are: their products are exact in float32, where
    they are summed, and the lengths are divided out afterwards. That is float32's accuracy at the
    speed of 16 bits; unit vectors rounded to 16 bits would change what is kept.
    """
    as_it_is = visual.is_cuda and visual.dtype in (torch.bfloat16, torch.float16)
    visual = visual if as_it_is else visual.float()
    length = torch.linalg.vector_norm(visual, dim=-1, dtype=torch.float32)
    zero, length = length == 0, length.clamp(min=1e-30)
    if as_it_is:
        # torch before 2.8 has no such argument, and not every device has such a product.
        with contextlib.suppress(TypeError, RuntimeError):
            product = torch.bmm(visual, visual.mT, out_dtype=torch.float32)
            return product.div_(length[:, :, None]).div_(length[:, None, :]), zero
    unit = F.normalize(visual.float(), dim=-1, eps=1e-30)
    with full_float32():
        return unit @ unit.mT, zero


def first_of_best(score: Tensor, slack: Tensor | float) -> Tensor:
    """(B, N) -> (B,): the lowest index whose score is within `slack` (one number, or (B, 1)) of the
    row's best.
    """
    return (score >= score.amax(dim=1, keepdim=True) - slack).int().argmax(dim=1)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Products of float32 in float32 on CUDA too, whatever the process allows (TF32 keeps 11 bits);
    restored afterwards.
    """
    matmul = torch.backends.cuda.matmul
    # Reading the old switch where somebody has set the new one raises.
    name, exact = (
        ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    )
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def in_parts(function: Callable[..., Tensor], bytes_each: int, *batches: Tensor | None) -> Tensor:
    """function(*batches), in parts of the batch whose temporary of `bytes_each` a sample stays
    under LIMIT.
    """
    step = max(LIMIT // max(bytes_each, 1), 1)
    parts = [[None] * len(batches[0]) if batch is None else batch.split(step) for batch in batches]
    return torch.cat([function(*part) for part in zip(*parts, strict=False)])
