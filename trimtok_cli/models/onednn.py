"""Products of linear layers by oneDNN, for float32 on an x86 CPU.

torch multiplies float32 by MKL there. MKL is Intel's: on CPUs of other makers it leaves wide
registers unused and is slow for few rows; on Intel's own it is slow for the rows of a small batch
alone, of which it takes three at a time. oneDNN is part of torch as well, and takes a while to
start a product. So each product is by the one that suits its size. Knows no model.
"""

import logging
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from trimtok_cli.device import out_of_memory

log = logging.getLogger("trimtok")

# Columns that are added to a matrix whose rows would lie a multiple of 2 KB apart: they would share
# few places of a CPU's cache, which doubles the time of a product of few rows.
EXTRA = 16
SHARED = 512
# Multiply-adds of a product from which on oneDNN pays: it takes about 45 microseconds to start.
LEAST = 1 << 20
# Rows of a product up to which oneDNN pays on a CPU without wide registers (AVX-512), where MKL
# multiplies many rows faster: those of as many answers as a CPU has under way.
FEW = 8
# What an Intel CPU leaves to oneDNN: rows from, rows below, and the numbers of the matrix from.
BATCH = range(4, 16)
LARGE = 1 << 20


@cache
def by_intel() -> bool:
    """Whether Intel made this CPU."""
    file = Path("/proc/cpuinfo")  # elsewhere than on Linux, Python's own name of the CPU says it
    said = file.read_text(errors="replace") if file.exists() else platform.processor()
    return "GenuineIntel" in said


@cache
def operation() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """`linear` by oneDNN; None where torch has no such operation, or none that does the same.

    The operation is torch's own for compiled models, and is not documented.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return None
    try:
        pointwise = torch.ops.mkldnn._linear_pointwise

        def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return pointwise(rows, weight, bias, "none", [], "")

        with torch.inference_mode():
            rows, bias = torch.linspace(-1, 1, 48).reshape(2, 3, 8), torch.linspace(0, 1, 4)
            flat = torch.linspace(-2, 2, 32)
            for weight in (flat.reshape(4, 8), flat.reshape(8, 4).t()):
                wanted = linear(rows, weight, bias)
                torch.testing.assert_close(product(rows, weight, bias), wanted)
    except Exception as error:
        if out_of_memory(error):
            raise
        log.debug("products are the library's, without oneDNN: %s", error)
        return None
    return product


def suits(rows: int, size: int, *, wide: bool) -> bool:
    """Whether the product of so many rows with a matrix of `size` numbers is oneDNN's.

    wide: whether the CPU has wide registers.
    """
    if by_intel():
        return rows in BATCH and size >= LARGE
    return rows * size >= LEAST and (wide or rows <= FEW)


def product_of(module: nn.Linear, *, relaid: bool) -> Callable[[Tensor], Tensor] | None:
    """The forward function of a linear layer with what is oneDNN's; None where nothing is.

    relaid: the weights may be laid out anew, once and for good, so that a product reads them as
    they lie: the module keeps its weights, with the same values, the other way round in memory,
    which takes at most a 32nd more. Else each product lays them out for itself. On an Intel CPU all
    stay as they are, which is how MKL multiplies one to three rows fastest.
    """
    multiply, weight = operation(), module.weight
    if multiply is None or weight.dtype != torch.float32:
        return None
    laid_out = by_columns(weight)
    if laid_out is not None:
        whole = laid_out
    elif not weight.is_contiguous():
        return None  # oneDNN takes other layouts, by a hundred times slower code
    elif relaid and not by_intel() and not weight.is_inference():
        whole = lay_out(module)  # what was made for inference alone stays
    else:
        whole = weight
    weight, bias = module.weight, module.bias
    size, width = weight.shape
    extra = len(whole) - size
    longer = bias if bias is None or not extra else pad(bias.detach(), (0, extra))
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")

    def forward(rows: Tensor) -> Tensor:
        if not suits(rows.numel() // width, weight.numel(), wide=wide):
            return linear(rows, weight, bias)
        product = multiply(rows, whole, longer)
        return product[..., :size].contiguous() if extra else product

    return forward


def lay_out(module: nn.Linear) -> Tensor:
    """Lays a layer's weights (N, K) out column by column, with rows of zeros behind some sizes N.

    Returns all rows (N or more, K); the module's weights are the first ones.
    """
    size, width = module.weight.shape
    extra = 0 if size % SHARED else EXTRA
    with torch.inference_mode(False), torch.no_grad():
        columns = torch.zeros(width, size + extra)
        columns[:, :size] = module.weight.t()
        module.weight.data = columns.t()[:size]
    return columns.t()


def by_columns(weight: Tensor) -> Tensor | None:
    """What `lay_out` returned for these weights; None if they were not laid out."""
    size, width = weight.shape
    along, across = weight.stride()
    whole = weight.untyped_storage().nbytes() == across * width * weight.element_size()
    if weight.is_contiguous() or along != 1 or across < size or not whole:
        return None
    return weight.detach().as_strided((across, width), (1, across))
