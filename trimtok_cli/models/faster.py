"""The decoder's norms and products in faster forms, for the length of a pass.

Modules get a forward function of their own for a pass and lose it again; no class is changed, and
outside a pass the model is the library's. Results differ in the last bits. Knows no family: a norm
is taken by what it computes, not by its name.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

Forward = Callable[[Tensor], Tensor]
# Rows for which a CPU multiplies faster from the other side. A single row is a product of its own,
# and for many rows both sides take the same time.
FEW_ROWS = range(3, 33)


def faster_forms(modules: Iterable[nn.Module], device: torch.device) -> list[tuple[dict, Forward]]:
    """The attributes of each module that has a faster form on a device, with that form.

    On CUDA a norm is one kernel in place of eight. On the CPU a product of few rows reads its
    weights once, where the usual one took up to twice the time.
    """
    found: list[tuple[dict, Forward]] = []
    for module in modules:
        if "forward" in module.__dict__:  # a library's hook, which is not ours to replace
            continue
        form = None
        if device.type == "cuda":
            form = fused_norm(module)
        elif device.type == "cpu" and type(module) is nn.Linear:
            form = few_rows(module) if module.weight.dtype == torch.float32 else None
        if form is not None:
            found.append((module.__dict__, form))
    return found


@contextmanager
def replaced(forms: list[tuple[dict, Forward]]) -> Iterator[None]:
    """A block in which the modules with these attributes run in these forms."""
    for attributes, form in forms:
        attributes["forward"] = form
    try:
        yield
    finally:
        for attributes, _ in forms:
            attributes.pop("forward", None)


def fused_norm(module: nn.Module) -> Forward | None:
    """The module as one call of torch's RMS norm; None if it computes anything else.

    The scale is the weight, or one more than the weight (Gemma).
    """
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    probe = torch.linspace(-1, 2, len(weight), device=weight.device).to(weight.dtype)[None]
    with torch.inference_mode():
        wanted = module(probe).float()
    for scale in (weight, 1 + weight.detach()):
        form = scaled_norm(scale, eps)
        if torch.allclose(form(probe).float(), wanted, rtol=2 * torch.finfo(weight.dtype).eps):
            return form
    return None


def scaled_norm(scale: Tensor, eps: float) -> Forward:
    """torch's own RMS norm of rows as wide as the scale."""
    size = tuple(scale.shape)

    def forward(hidden: Tensor) -> Tensor:
        return rms_norm(hidden, size, scale, eps)

    return forward


def few_rows(module: nn.Linear) -> Forward:
    """The product of a linear layer, with the weights on the left where the rows are few."""
    weight, bias = module.weight, module.bias

    def forward(rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        if len(flat) not in FEW_ROWS:
            return linear(rows, weight, bias)
        product = (weight @ flat.mT).mT.contiguous()
        if bias is not None:
            product += bias
        return product.reshape(*rows.shape[:-1], len(weight))

    return forward
