"""Applying a pruner's choices: stage 0, the prompt itself. Knows prompts and selections, no model and no method by name."""

from collections.abc import Sequence

from trimtok_cli.data import Kept
from trimtok_cli.pruners import Pruner, Stage
from trimtok_cli.tokens import Prompt, VisualTokens


def reduce_prompts(
    pruner: Pruner | None, prompts: Sequence[Prompt], tokens: Sequence[VisualTokens], *, num_layers: int, renumber: bool
) -> tuple[list[Prompt], list[tuple[Kept, ...]]]:
    """The prompts that the language model reads, and for each the visual tokens alive, as dense numbers. Dense is None."""
    reduced = list(prompts)
    if pruner is not None:
        layers = pruner.stages(num_layers)
        if any(layer > 0 for layer in layers):
            raise NotImplementedError(f"{type(pruner).__name__} reduces inside the language model, which is not built yet")
        if 0 in layers:
            # A question without images has nothing to reduce, and a method should not have to think of it.
            some = [i for i, prompt in enumerate(prompts) if len(prompt.visual)]
            selections = pruner.select_many([Stage(0, prompts[i].embeds, prompts[i], tokens[i]) for i in some])
            for i, selection in zip(some, selections, strict=True):
                reduced[i] = prompts[i].reduced(selection, num_dense=len(tokens[i]), renumber=renumber)
    return reduced, [(Kept(0, tuple(prompt.alive.tolist())),) for prompt in reduced]
