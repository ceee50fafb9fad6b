"""VTW, visual tokens withdrawal: in front of one decoder layer K all visual tokens leave.

Paper: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", arXiv 2405.05803. No token is scored. The paper finds K once per model: the first K from
5 on at which the next token's distribution hardly changes, on a few samples. `kl_of` and
`first_below` are the arithmetic of this search; the caller runs the model. Survivors (the text)
keep their position ids, the published default.

Decided here: K scales with depth from the published 15 of 32. All images of a prompt leave, not
only the last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.layerwise import COUNTS, LAYER, image_targets, layers_within, scaled_layers
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection


def kl_of(full_logits: Tensor, dropped_logits: Tensor) -> Tensor:
    """KL(dropped || full) of next-token distributions in nats, the mean over the batch.

    (B, V) or (V,) logits at the prompt's last position -> a float32 scalar, the published
    KLDivLoss(batchmean)(log_softmax(full), softmax(dropped)). Raises ValueError where the shapes
    differ.
    """
    if full_logits.shape != dropped_logits.shape or full_logits.dim() not in (1, 2):
        raise ValueError(
            f"both logits must be (B, V) or both (V,), got {tuple(full_logits.shape)} and "
            f"{tuple(dropped_logits.shape)}"
        )
    full = full_logits.float().log_softmax(-1)
    dropped = dropped_logits.float().log_softmax(-1)
    # A token that the shortened prompt rules out with a logit of -inf adds 0, not NaN.
    return torch.where(dropped.isneginf(), 0.0, dropped.exp() * (dropped - full)).sum(-1).mean()


def first_below(kls: Mapping[int, float], eta: float) -> int | None:
    """The lowest layer K of {K: mean KL} whose KL is at most eta, or None.

    Published eta: 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-1.6-7B; published
    candidates: K = 5 .. L - 1. Raises ValueError for an eta below 0.
    """
    if not eta >= 0:
        raise ValueError(f"eta is a KL divergence, 0 or more, got {eta}")
    return next((layer for layer in sorted(kls) if kls[layer] <= eta), None)


def withdrawal_layer(num_dense: int, target: int, num_layers: int) -> int:
    """K at which N tokens over K of L layers average closest to `target`, rounded half up, 1 .. L.

    At K = L the tokens never leave.
    """
    return max((2 * target * num_layers + num_dense) // (2 * num_dense), 1)


@dataclass(frozen=True)
class VTW(Pruner):
    """The paper's pruner. layer: K, the number of decoder layers that see the visual tokens.

    By default K is 15/32 of the layers. counts: with `final`, keep has no say, nothing stays behind
    K. With `layer-mean`, K follows from keep as near as whole layers come: 64 of 576 tokens over 32
    layers is K = 4. Where keep is a count, each image has a K of its own. `layer` must not be given
    with `layer-mean`.
    """

    name: ClassVar[str] = "vtw"
    where: ClassVar[str] = "layers"
    paper: ClassVar[str] = "2405.05803"
    licence: ClassVar[str] = "none"
    renumbers: ClassVar[bool] = False

    layer: int | None = param(None, LAYER, least=1)
    counts: str = param("final", choices=COUNTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.counts != "final":
            raise ValueError(
                "with counts=layer-mean the layer follows from keep: give one of the two"
            )

    @property
    def keep_decides(self) -> bool:
        return self.layer is None

    @property
    def reads_keep(self) -> bool:
        return self.counts != "final"

    @property
    def _one_for_all(self) -> bool:
        """Whether, with layer-mean, one K fits images of every size."""
        return self.keep.share is not None and self.budget == "equal"

    def stages(self, num_layers: int) -> tuple[int, ...]:
        if self.counts == "final":
            if self.layer is None:
                return scaled_layers((15,), num_layers)
            return layers_within("vtw", f"layer={self.layer}", (self.layer,), num_layers)
        if self._one_for_all:
            share = self.keep.share or 0.0  # `_one_for_all` has seen that it is a share
            layer = max(math.floor(share * num_layers + 0.5), 1)
            return (layer,) if layer < num_layers else ()
        # A count's K needs the image's size, which only a stage knows.
        return tuple(range(1, num_layers))

    def select(self, stage: Stage) -> Selection:
        if self.counts == "final" or self._one_for_all:
            return Selection(stage.no_tokens)
        kept = [stage.no_tokens]
        for places, dense, target in image_targets(self, stage):
            if stage.layer < withdrawal_layer(dense, target, stage.num_layers):
                kept.append(places)
        return Selection(torch.cat(kept).sort().values)
