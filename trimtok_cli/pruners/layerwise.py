"""The parts that methods which prune inside the language model share: layers, counts, scores.

Knows no method and no model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage

COUNTS = ("final", "layer-mean")

LAYER = "counts the decoder layers that see all visual tokens"

LAYER_LIST = "are the decoder layers in front of which tokens leave, ascending whole numbers"


def check_reachable(num_dense: int, target: int, layer: int, num_layers: int) -> None:
    """Raises ValueError where `layer` layers of N tokens alone exceed a mean of `target`."""
    if num_layers * target < layer * num_dense:
        raise ValueError(
            f"a mean of {target} tokens over {num_layers} layers is out of reach, {layer} of "
            f"them see all {num_dense}: "
            f"keep {-(-layer * num_dense // num_layers)} or more, or count with counts=final"
        )


def scaled_layers(
    published: Sequence[int], num_layers: int, published_depth: int = 32
) -> tuple[int, ...]:
    """Layers published for a model of `published_depth`, moved to another depth L.

    The result is rounded half up, distinct, ascending and in 1..L-1. A model with too few layers
    for all of them loses the first ones.
    """
    layers: list[int] = []
    for layer in published:
        scaled = (2 * layer * num_layers + published_depth) // (2 * published_depth)
        layers.append(max(scaled, layers[-1] + 1 if layers else 1))
    last = num_layers
    for i in reversed(range(len(layers))):
        last = layers[i] = min(layers[i], last - 1)
    return tuple(layer for layer in layers if layer >= 1)


def layers_within(
    method: str, parameter: str, layers: Sequence[int], num_layers: int
) -> tuple[int, ...]:
    """The layers that the user chose with `parameter`.

    Raises UsageError, naming the parameter, where the model is not deep enough for them.
    """
    if layers[-1] >= num_layers:
        raise UsageError(
            f"{method}: {parameter} is behind the model's last layer, it has {num_layers}: choose "
            "less."
        )
    return tuple(layers)


def image_targets(pruner: Pruner, stage: Stage) -> list[tuple[Tensor, int, int]]:
    """For each image with tokens left: its places at this stage, its dense count, and its budget.

    The budget is that of the dense prompt, whatever an earlier stage has taken away.
    """
    alive = stage.prompt.alive
    owner = stage.tokens.visual_index.to(alive.device)
    targets = []
    for dense_places, budget in dense_budgets(pruner, stage):
        places = (owner[alive] == owner[dense_places[0]]).nonzero().squeeze(1)
        if len(places):
            targets.append((places, len(dense_places), budget))
    return targets


def dense_budgets(pruner: Pruner, stage: Stage) -> list[tuple[Tensor, int]]:
    """For each image: its places among the dense visual tokens, and how many of them stay."""
    embeds = stage.tokens.embeds
    return pruner.budgets(stage.dense_images(), lambda places: embeds[places.to(embeds.device)])


def moved_layers(stage: Stage, layers: Sequence[int]) -> tuple[list[int], int]:
    """The layers in front of which a method's stages really come, and which of them is this one.

    Deepstack delays stages. Where several fall together, the last of them counts.
    """
    first = 1 if stage.prompt.deepstack is None else len(stage.prompt.deepstack)
    moved = [max(layer, first) for layer in layers]
    passed = [i for i, layer in enumerate(moved) if layer <= stage.layer]
    return moved, max(passed, default=0)


def last_row_score(stage: Stage, layer: int) -> Tensor:
    """(N,) float32: attention of the prompt's last row to each visual row in `layer`.

    The mean over heads.
    """
    last = torch.tensor([len(stage.hidden) - 1], device=stage.hidden.device)
    return stage.attention(last, layer).float().mean(0)[0, stage.prompt.visual]
