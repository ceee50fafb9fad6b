"""PyramidDrop: at three depths, keep the visual tokens that the last token attends to most.

Paper: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction", arXiv 2410.17247. Score: attention of the layer in front of which tokens are dropped, on
the hidden states that enter it, mean over heads, row of the prompt's last token. Stage i leaves
floor(lambda^i N) of an image's N dense tokens. The published ratios 0.5, 0.25, 0.125 at [8, 16, 24]
(`ratios`) cannot average fewer than 144 of 576. For smaller budgets the authors keep the powers of
one lambda, move the layers to [2, 8, 16] of 32 and solve for lambda. `keep` does the same here, at
other depths scaled.

Decided here: ties go to the lowest index. Each image has a budget and counts of its own (the
published code prunes the first image only), never less than 1 token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage, top_places
from trimtok_cli.pruners.layerwise import (
    COUNTS,
    LAYER_LIST,
    check_reachable,
    image_targets,
    last_row_score,
    layers_within,
    moved_layers,
    scaled_layers,
)
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection

# Layers of 32, where a budget decides.
LAYERS = (2, 8, 16)

# Layers of 32, with the published ratios.
PUBLISHED = (8, 16, 24)


def pyramid_counts(
    num_dense: int, target: int, layers: Sequence[int], num_layers: int, counts: str = "final"
) -> tuple[int, ...]:
    """The numbers of an image's N tokens that stay in front of each of `layers`.

    `final`: the last is `target`, so lambda = (target / N)^(1 / stages). `layer-mean`: lambda has
    two digits, as published; bisection finds the lambda whose mean over all layers, counts rounded
    down, is closest to the target (ties: fewer tokens). With 576 tokens, 32 layers and [2, 8, 16]:
    64 -> 0.19 -> 109, 20, 3. Raises ValueError where the layers in front of the first stage alone
    exceed the target.
    """
    depth = len(layers)
    if target >= num_dense:
        return (num_dense,) * depth
    if counts == "final":
        ratio = (target / num_dense) ** (1 / depth)
        # 1e-9: floor(0.5^2 * 576) must be 144 although the root came out a hair below 0.5.
        powers = [int(num_dense * ratio ** (i + 1) + 1e-9) for i in range(depth - 1)]
        return (*(max(power, target) for power in powers), target)
    check_reachable(num_dense, target, layers[0], num_layers)

    def level(hundredths: int) -> tuple[int, ...]:
        return tuple(max(num_dense * hundredths**i // 100**i, 1) for i in range(1, depth + 1))

    def total(hundredths: int) -> int:
        ends = [*layers[1:], num_layers]
        spans = zip(level(hundredths), layers, ends, strict=True)
        return layers[0] * num_dense + sum(count * (end - start) for count, start, end in spans)

    low, high = 0, 100  # total(low) <= wanted < total(high), or low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= target * num_layers else (low, middle)
    return level(
        min((low, high), key=lambda hundredths: abs(total(hundredths) - target * num_layers))
    )


def ratio_counts(num_dense: int, ratios: Sequence[float]) -> tuple[int, ...]:
    """floor(ratio N) tokens for each ratio, as published; never less than 1."""
    # 1e-9: floor(0.29 * 100) must be 29 although the float product is 28.999...
    return tuple(max(int(num_dense * ratio + 1e-9), 1) for ratio in ratios)


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """The paper's pruner, with keep or with ratios.

    counts: with `final`, keep counts the tokens behind the last stage; with `layer-mean`, keep is
    the mean over all decoder layers. ratios: the shares of an image's dense tokens that stay behind
    each stage, published [0.5, 0.25, 0.125]; with ratios keep has no say. layers: the layers in
    front of which tokens leave, one for each ratio; by default [8, 16, 24] of 32 with three ratios,
    as published, and [2, 8, 16] of 32 without.
    """

    name: ClassVar[str] = "pyramiddrop"
    where: ClassVar[str] = "layers"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str] = "2410.17247"
    licence: ClassVar[str] = "MIT"

    counts: str = param("final", choices=COUNTS)
    layers: tuple[int, ...] | None = param(None, LAYER_LIST, least=1, order="rising")
    ratios: tuple[float, ...] | None = param(
        None,
        "are the shares of the tokens that stay behind each stage, never rising",
        above=0,
        most=1,
        order="falling",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratios is None:
            return
        if self.counts != "final":
            raise ValueError(
                "with counts=layer-mean the ratios follow from keep: give one of the two"
            )
        if len(self.ratios) != len(self.layers or PUBLISHED):
            raise ValueError(
                f"ratios must be as many as layers, one for each, got {len(self.ratios)} and "
                f"{len(self.layers or PUBLISHED)}"
            )

    @property
    def keep_decides(self) -> bool:
        return self.ratios is None

    def stages(self, num_layers: int) -> tuple[int, ...]:
        if self.layers is not None:
            return layers_within(
                "pyramiddrop", f"layers={list(self.layers)}", self.layers, num_layers
            )
        return scaled_layers(LAYERS if self.ratios is None else PUBLISHED, num_layers)

    def select(self, stage: Stage) -> Selection:
        layers, number = moved_layers(stage, self.stages(stage.num_layers))
        score = last_row_score(stage, stage.layer)
        kept = []
        for places, dense, target in image_targets(self, stage):
            if self.ratios is not None:
                # A model too shallow for all stages has lost the first of them.
                levels = ratio_counts(dense, self.ratios[-len(layers) :])
            else:
                try:
                    levels = pyramid_counts(dense, target, layers, stage.num_layers, self.counts)
                except ValueError as error:
                    raise UsageError(f"pyramiddrop: {error}.") from None
            kept.append((places, levels[number]))
        return Selection(top_places(score, kept))
