"""Stage 0: a pruner reduces the prompt itself. Knows no method and no family."""

from collections.abc import Sequence
from itertools import islice

import torch

from trimtok_cli.data import Kept
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.registry import check_signals
from trimtok_cli.tokens import Prompt, VisualTokens, reduced_together


def reduce_prompts(
    pruner: Pruner | None,
    prompts: Sequence[Prompt],
    tokens: Sequence[VisualTokens],
    *,
    num_layers: int,
    renumber: bool,
) -> tuple[list[Prompt], list[tuple[Kept, ...]]]:
    """The reduced prompts, and the visual tokens left in each, as numbers in the dense prompt."""
    reduced = list(prompts)
    # A prompt without images has nothing to reduce, so no method has to handle one.
    some = [i for i, prompt in enumerate(prompts) if len(prompt.visual)]
    if some and pruner is not None and 0 in pruner.stages(num_layers):
        selections = pruner.select_many(
            [Stage(0, prompts[i].embeds, prompts[i], tokens[i]) for i in some]
        )
        changed = reduced_together(
            [prompts[i] for i in some],
            selections,
            num_dense=[len(tokens[i]) for i in some],
            renumber=renumber and pruner.renumbers,
        )
        for i, prompt in zip(some, changed, strict=True):
            reduced[i] = prompt
    # The device is asked once for all prompts.
    alive = iter(torch.cat([prompt.alive for prompt in reduced]).tolist())
    return reduced, [(Kept(0, tuple(islice(alive, len(prompt.alive)))),) for prompt in reduced]


def check_method(adapter: Adapter, pruner: Pruner | None) -> None:
    """Raises UsageError, before a run, if a pruner cannot run on a model at all."""
    if pruner is None:
        return
    pruner.stages(adapter.num_layers)  # raises for layers that the model does not have
    if pruner.signals:
        check_signals(pruner, adapter.offered())


def layer_mean(kept: Sequence[Kept], num_layers: int) -> float:
    """The number of visual tokens in a decoder layer, averaged over the layers."""
    ends = [stage.layer for stage in kept[1:]] + [num_layers]
    return (
        sum(len(stage.tokens) * (end - stage.layer) for stage, end in zip(kept, ends, strict=True))
        / num_layers
    )
