"""Cosines, ties, float32 precision and batches in parts, which the searches share.

Knows no method and no model.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.device import out_of_memory

log = logging.getLogger("trimtok")

# Bytes of the largest temporary; a batch that needs more goes through in parts.
LIMIT = 400_000_000


def cosines(visual: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, D) -> cosine similarities (B, N, N) in float32, and which tokens have length zero.

    The similarities of tokens of length zero, True in the second value (B, N), are all 0. 16-bit
    tokens on a GPU are multiplied as they are: their products are exact in float32, where they are
    summed, and the lengths are divided out afterwards. The result has float32's accuracy at the
    speed of 16 bits; unit vectors rounded to 16 bits would change which tokens are kept.
    """
    in_16_bits = visual.is_cuda and visual.dtype in (torch.bfloat16, torch.float16)
    visual = visual if in_16_bits else visual.float()
    length = torch.linalg.vector_norm(visual, dim=-1, dtype=torch.float32)
    zero = length == 0
    length = length.clamp(min=1e-30)
    if in_16_bits:
        try:
            product = torch.bmm(visual, visual.mT, out_dtype=torch.float32)
            return product.div_(length[:, :, None]).div_(length[:, None, :]), zero
        except RuntimeError as error:
            # The form below would ask for more memory still.
            if out_of_memory(error):
                raise
            log.debug("no product of 16 bits on %s", visual.device, exc_info=error)
    unit = F.normalize(visual.float(), dim=-1, eps=1e-30)
    with full_float32():
        return unit @ unit.mT, zero


def first_of_best(score: Tensor, slack: Tensor | float) -> Tensor:
    """(B, N) -> (B,): the lowest index whose score is within `slack` of the row's best.

    slack: a number, or (B, 1).
    """
    return (score >= score.amax(dim=1, keepdim=True) - slack).int().argmax(dim=1)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiplies float32 in float32 on CUDA too, whatever the process allows (TF32 keeps 11 bits).

    The process's own setting is restored afterwards.
    """
    matmul = torch.backends.cuda.matmul
    # Reading the old switch where somebody has set the new one raises.
    exact: tuple[str, str | bool] = ("allow_tf32", False)
    if hasattr(matmul, "fp32_precision"):
        exact = ("fp32_precision", "ieee")
    name, value = exact
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def in_parts(
    function: Callable[..., Tensor], bytes_each: int, first: Tensor, *others: Tensor | None
) -> Tensor:
    """function(first, *others), called on parts of the batch whose temporaries stay under LIMIT.

    bytes_each: the temporary of one sample.
    """
    step = max(LIMIT // max(bytes_each, 1), 1)
    parts = [
        [None] * len(first) if batch is None else batch.split(step) for batch in (first, *others)
    ]
    return torch.cat([function(*part) for part in zip(*parts, strict=False)])
