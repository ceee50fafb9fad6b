"""FastV: behind the first K decoder layers, keep the visual tokens that the prompt's last token attends to most.

Paper: "An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764. Score: attention of layer K - 1, mean over heads, row
of the prompt's last token. The paper's text speaks of the attention that a token receives on average; the published code
uses the last token alone, and so does this. Pruned once, at the prefill; positions keep their ids.

Decided here: K is 2 as in the paper's runs of 32 and 40 layers, and 1 below 24 layers; ties go to the lowest index; each
image has a budget of its own, although all images share one softmax. Where a family holds its visual tokens together in
the first layers (deepstack), K is the layer behind those.

The helpers of this file serve every method that prunes inside the language model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.tokens import Prompt, Selection

COUNTS = ("final", "layer-mean")


def fastv_kept(num_dense: int, target: int, layer: int, num_layers: int, counts: str = "final") -> int:
    """Tokens that stay of an image's N behind layer K: `target`, or what makes the mean over all layers the target.

    Mean: (K N + (L - K) kept) / L = target, rounded half up, at least 1. Raises ValueError where the first K layers alone
    exceed it.
    """
    if counts == "final" or target >= num_dense:
        return min(target, num_dense)
    check_reachable(num_dense, target, layer, num_layers)
    rest = num_layers - layer
    return max((2 * (num_layers * target - layer * num_dense) + rest) // (2 * rest), 1)


def check_reachable(num_dense: int, target: int, layer: int, num_layers: int) -> None:
    """Raises ValueError where `layer` full layers of N tokens exceed a mean of `target` over all layers."""
    if num_layers * target < layer * num_dense:
        raise ValueError(
            f"a mean of {target} tokens over {num_layers} layers is out of reach, {layer} of them see all {num_dense}: "
            f"keep {-(-layer * num_dense // num_layers)} or more, or count with counts=final"
        )


def scaled_layers(published: Sequence[int], num_layers: int, of: int = 32) -> tuple[int, ...]:
    """Layer positions of a model of `of` layers at another depth: rounded half up, distinct, ascending, in 1..L-1.

    A model with too few layers for all of them loses the first ones.
    """
    layers: list[int] = []
    for layer in published:
        layers.append(max((2 * layer * num_layers + of) // (2 * of), layers[-1] + 1 if layers else 1))
    last = num_layers
    for place in reversed(range(len(layers))):
        last = layers[place] = min(layers[place], last - 1)
    return tuple(layer for layer in layers if layer >= 1)


def check_counts(counts: str) -> None:
    if counts not in COUNTS:
        raise ValueError(f"counts must be one of {', '.join(COUNTS)}, got {counts!r}")


def check_layer(layer: int | None) -> None:
    if layer is not None and (not isinstance(layer, int) or isinstance(layer, bool) or layer < 1):
        raise ValueError(f"layer counts the decoder layers that see all visual tokens, 1 or more, got {layer!r}")


def one_layer(layer: int | None, default: Sequence[int], num_layers: int, name: str) -> tuple[int, ...]:
    """The chosen layer, or the default one; UsageError where the model is not deep enough for the chosen one."""
    if layer is None:
        return tuple(default)
    if layer >= num_layers:
        raise UsageError(f"{name}: layer={layer} is behind the model's last layer, it has {num_layers}: choose less.")
    return (layer,)


def image_targets(pruner: Pruner, stage: Stage) -> list[tuple[Tensor, int, int]]:
    """For each image with tokens left: their places among the stage's visual tokens, its dense count, and its budget.

    The budget is that of the dense prompt, whatever an earlier stage has taken away.
    """
    alive, found = stage.prompt.alive, []
    owner = stage.tokens.visual_index.to(alive.device)
    for rows, target in dense_budgets(pruner, stage):
        left = (owner[alive] == owner[rows[0].to(alive.device)]).nonzero().squeeze(1)
        if len(left):
            found.append((left, len(rows), target))
    return found


def dense_budgets(pruner: Pruner, stage: Stage) -> list[tuple[Tensor, int]]:
    """`pruner.budgets` of the dense prompt: for each image its places among the dense tokens, and how many stay."""
    embeds = stage.tokens.embeds
    places = torch.arange(len(embeds), device=embeds.device)
    return pruner.budgets(Stage(0, embeds, Prompt(embeds, places, places, places, places[:0]), stage.tokens))


def moved_layers(stage: Stage, layers: Sequence[int]) -> tuple[list[int], int]:
    """In front of which layers a method's stages really come, and which of them this one is.

    Deepstack delays stages, and several may fall together: then the last of them is the one that counts.
    """
    first = 1 if stage.prompt.deepstack is None else len(stage.prompt.deepstack)
    moved = [max(layer, first) for layer in layers]
    return moved, max((place for place, layer in enumerate(moved) if layer <= stage.layer), default=0)


def last_row_score(stage: Stage, layer: int) -> Tensor:
    """(N,) float32: attention of the prompt's last row to each visual row in `layer`, mean over heads."""
    last = torch.tensor([len(stage.hidden) - 1], device=stage.hidden.device)
    return stage.attention(last, layer).float().mean(0)[0, stage.prompt.visual]


def best(score: Tensor, counts: Iterable[tuple[Tensor, int]]) -> Tensor:
    """Of each group of places in score (N,), its `count` highest, ties to the lowest place; all together, ascending."""
    kept = [rows[score[rows].sort(descending=True, stable=True).indices[:count]] for rows, count in counts]
    return torch.cat([score.new_empty(0, dtype=torch.long), *kept]).sort().values


@dataclass(frozen=True)
class FastV(Pruner):
    """layer: K, how many decoder layers see all visual tokens (default 2, below 24 layers 1).

    counts: `final`, keep is what stays behind layer K (the paper's R, from the other side); `layer-mean`, keep is the mean
    over all decoder layers.
    """

    where: ClassVar[str] = "layers"
    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str] = "2403.06764"
    licence: ClassVar[str] = "none"
    renumbers: ClassVar[bool] = False

    layer: int | None = None
    counts: str = "final"

    def __post_init__(self) -> None:
        check_layer(self.layer)
        check_counts(self.counts)

    def stages(self, num_layers: int) -> tuple[int, ...]:
        return one_layer(self.layer, scaled_layers((2,), min(num_layers, 32)), num_layers, "fastv")

    def select(self, stage: Stage) -> Selection:
        score, counts = last_row_score(stage, stage.layer - 1), []
        for rows, dense, target in image_targets(self, stage):
            try:
                count = fastv_kept(dense, target, stage.layer, stage.num_layers, self.counts)
            except ValueError as error:
                raise UsageError(f"fastv: {error}.") from None
            counts.append((rows, count))
        return Selection(best(score, counts))
