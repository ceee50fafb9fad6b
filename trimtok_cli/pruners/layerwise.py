"""What methods that prune inside the language model share: where their layers lie, what keep
counts, scores, choices.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.tokens import Prompt

COUNTS = ("final", "layer-mean")

LAYER = "counts the decoder layers that see all visual tokens"

LAYER_LIST = "are the decoder layers in front of which tokens leave, ascending whole numbers"


def check_reachable(num_dense: int, target: int, layer: int, num_layers: int) -> None:
    """Raises ValueError where `layer` full layers of N tokens exceed a mean of `target` over all
    layers.
    """
    if num_layers * target < layer * num_dense:
        raise ValueError(
            f"a mean of {target} tokens over {num_layers} layers is out of reach, {layer} of "
            f"them see all {num_dense}: "
            f"keep {-(-layer * num_dense // num_layers)} or more, or count with counts=final"
        )


def scaled_layers(published: Sequence[int], num_layers: int, of: int = 32) -> tuple[int, ...]:
    """Layer positions of a model of `of` layers at another depth: rounded half up, distinct,
    ascending, in 1..L-1.

    A model with too few layers for all of them loses the first ones.
    """
    layers: list[int] = []
    for layer in published:
        layers.append(
            max((2 * layer * num_layers + of) // (2 * of), layers[-1] + 1 if layers else 1)
        )
    last = num_layers
    for place in reversed(range(len(layers))):
        last = layers[place] = min(layers[place], last - 1)
    return tuple(layer for layer in layers if layer >= 1)


def there(name: str, given: str, layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers that were chosen; UsageError, naming what was `given`, where the model is not deep
    enough for them.
    """
    if layers[-1] >= num_layers:
        raise UsageError(
            f"{name}: {given} is behind the model's last layer, it has {num_layers}: choose less."
        )
    return tuple(layers)


def image_targets(pruner: Pruner, stage: Stage) -> list[tuple[Tensor, int, int]]:
    """For each image with tokens left: their places among the stage's visual tokens, its dense
    count, and its budget.

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
    """`pruner.budgets` of the dense prompt: for each image its places among the dense tokens, and
    how many stay.
    """
    embeds = stage.tokens.embeds
    places = torch.arange(len(embeds), device=embeds.device)
    return pruner.budgets(
        Stage(0, embeds, Prompt(embeds, places, places, places, places[:0]), stage.tokens)
    )


def moved_layers(stage: Stage, layers: Sequence[int]) -> tuple[list[int], int]:
    """In front of which layers a method's stages really come, and which of them this one is.

    Deepstack delays stages, and several may fall together: then the last of them is the one that
    counts.
    """
    first = 1 if stage.prompt.deepstack is None else len(stage.prompt.deepstack)
    moved = [max(layer, first) for layer in layers]
    return moved, max(
        (place for place, layer in enumerate(moved) if layer <= stage.layer), default=0
    )


def last_row_score(stage: Stage, layer: int) -> Tensor:
    """(N,) float32: attention of the prompt's last row to each visual row in `layer`, mean over
    heads.
    """
    last = torch.tensor([len(stage.hidden) - 1], device=stage.hidden.device)
    return stage.attention(last, layer).float().mean(0)[0, stage.prompt.visual]


def best(score: Tensor, counts: Iterable[tuple[Tensor, int]]) -> Tensor:
    """Of each group of places in score (N,), its `count` highest, ties to the lowest place; all
    together, ascending.
    """
    kept = [
        rows[score[rows].sort(descending=True, stable=True).indices[:count]]
        for rows, count in counts
    ]
    return torch.cat([score.new_empty(0, dtype=torch.long), *kept]).sort().values
