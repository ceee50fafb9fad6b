"""FastV: behind K decoder layers, keep the visual tokens that the last token attends to most.

Paper: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764. Score: attention of layer K -
1, mean over heads, row of the prompt's last token. The paper's text speaks of the attention that a
token receives on average; the published code uses the last token alone, and so does this. Tokens
are pruned once, at the prefill; positions keep their ids.

Decided here: K is 2 as in the paper's runs of 32 and 40 layers, and 1 below 24 layers. Ties go to
the lowest index. Each image has a budget of its own, although all images share one softmax. Where a
family needs all visual tokens in its first layers (deepstack), K is the layer behind those.
"""

from dataclasses import dataclass
from typing import ClassVar

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage, top_places
from trimtok_cli.pruners.layerwise import (
    COUNTS,
    LAYER,
    check_reachable,
    image_targets,
    last_row_score,
    layers_within,
    scaled_layers,
)
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection


def fastv_kept(
    num_dense: int, target: int, layer: int, num_layers: int, counts: str = "final"
) -> int:
    """The number of an image's N tokens that stay behind layer K.

    `final`: the target. `layer-mean`: the number whose mean over all L layers is the target, (K N +
    (L - K) kept) / L, rounded half up, at least 1. Raises ValueError where the first K layers alone
    exceed the target.
    """
    if counts == "final" or target >= num_dense:
        return min(target, num_dense)
    check_reachable(num_dense, target, layer, num_layers)
    rest = num_layers - layer
    return max((2 * (num_layers * target - layer * num_dense) + rest) // (2 * rest), 1)


@dataclass(frozen=True)
class FastV(Pruner):
    """layer: K, how many decoder layers see all visual tokens (default 2, below 24 layers 1).

    counts: `final`, keep is what stays behind layer K (the paper's R, from the other side);
    `layer-mean`, keep is the mean over all decoder layers.
    """

    name: ClassVar[str] = "fastv"
    where: ClassVar[str] = "layers"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str] = "2403.06764"
    licence: ClassVar[str] = "none"
    renumbers: ClassVar[bool] = False

    layer: int | None = param(None, LAYER, least=1)
    counts: str = param("final", choices=COUNTS)

    def stages(self, num_layers: int) -> tuple[int, ...]:
        if self.layer is None:
            return scaled_layers((2,), min(num_layers, 32))
        return layers_within("fastv", f"layer={self.layer}", (self.layer,), num_layers)

    def select(self, stage: Stage) -> Selection:
        score = last_row_score(stage, stage.layer - 1)
        kept = []
        for places, dense, target in image_targets(self, stage):
            try:
                count = fastv_kept(dense, target, stage.layer, stage.num_layers, self.counts)
            except ValueError as error:
                raise UsageError(f"fastv: {error}.") from None
            kept.append((places, count))
        return Selection(top_places(score, kept))
