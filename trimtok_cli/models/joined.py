"""Linear layers of one input as one product: query, key and value, an MLP's gate and rise.

A device reads the weights of one product faster than those of three. The weights are laid out once,
one layer's behind the other's: each module keeps its own, as a view. Knows no model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trimtok_cli.device import out_of_memory


def joinable(parts: Sequence[object], owners: dict[Tensor, int]) -> bool:
    """Whether these are plain linear layers of one input, whose weights are theirs alone.

    owners: the number of modules that have each weight.
    """
    layers = [part for part in parts if type(part) is nn.Linear and "forward" not in part.__dict__]
    if len(layers) < len(parts):
        return False
    weights = [layer.weight for layer in layers]
    first = weights[0]
    return (
        all(owners.get(weight) == 1 and not weight.is_inference() for weight in weights)
        and len(
            {(each.device, each.dtype, each.shape[1], each.is_contiguous()) for each in weights}
        )
        == 1
        and first.is_contiguous()
        and len({layer.bias is None for layer in layers}) == 1
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    )


class Joined:
    """Linear layers of one input as one product.

    It is computed where the first layer is called; the others are given their share of it if they
    are called with the same tensor, and else compute for themselves.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        with torch.inference_mode(False), torch.no_grad():
            self.weight = _joined([layer.weight for layer in layers])
            self.bias = None if layers[0].bias is None else _joined([each.bias for each in layers])
        self.layers = layers
        self.given: Tensor | None = None
        self.shares: list[Tensor] = []

    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(..., K) -> each layer's (..., N_i): views of one tensor (..., sum of N_i)."""
        return linear(rows, self.weight, self.bias).split(self.sizes, -1)

    def first(self, rows: Tensor) -> Tensor:
        """The forward function of the first layer."""
        first, *self.shares = self(rows)
        self.given = rows
        return first

    def other(self, number: int):
        """The forward function of another layer."""
        layer = self.layers[number]

        def forward(rows: Tensor) -> Tensor:
            if rows is not self.given:
                return linear(rows, layer.weight, layer.bias)
            if number == len(self.layers) - 1:  # nobody asks for the rest
                shares, self.given, self.shares = self.shares, None, []
                return shares[-1]
            return self.shares[number - 1]

        return forward


def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters in one tensor, of which each is a view from then on."""
    whole = torch.cat(list(parameters))
    for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole


def join(parts: Sequence[object], owners: dict[Tensor, int]) -> Joined | None:
    """The layers joined; None where they cannot be, or where memory for it is lacking."""
    if not joinable(parts, owners):
        return None
    try:
        return Joined([part for part in parts if isinstance(part, nn.Linear)])
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None
