"""Pruning of images that another engine has encoded, by trimtok's own pruners.

An image is pruned by itself, with the ids of the words that the method compares it with. Knows no
model, no method and no vLLM.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.question import Question
from trimtok_cli.pruners.base import TEXTS, Pruner, Stage
from trimtok_cli.tokens import Prompt, VisualTokens

# The embeddings of token ids (M,) -> (M, D).
Embed = Callable[[Tensor], Tensor]


def check_served(pruner: Pruner | None) -> None:
    """Raises UsageError for a pruner that a server cannot run; None, dense, it can."""
    wanted = _cannot(pruner) if pruner is not None else ""
    if pruner is not None and wanted:
        raise UsageError(
            f"trimtok serve cannot run --method {pruner.name} as it is set: it {wanted}; use a "
            "method that prunes the prompt, such as trimtokenator or divprune, or trimtok vqa."
        )


def _cannot(pruner: Pruner) -> str:
    """What a method wants that a server does not have, in words behind its name; or ""."""
    if pruner.stages(1000) != (0,):  # more layers than any model has
        return "prunes inside the language model, whose cache is vLLM's"
    if pruner.reads_tower:
        return f"reads {' and '.join(pruner.signals)} of the vision tower, which is vLLM's"
    if not pruner.keep_decides:
        return "leaves a number of tokens that --keep does not decide"
    if pruner.budget != "equal":
        return f"shares its budget between images (--budget {pruner.budget})"
    return ""


class Words:
    """The ids of the words in a prompt that a pruner reads.

    The question's, where there is one and the pruner does not ask for the whole prompt's; else
    those of all of its text, as `Stage.text` says. None for a pruner that reads no words.
    """

    def __init__(self, pruner: Pruner | None, preprocessor: Preprocessor, image_id: int) -> None:
        self.reads = pruner is not None and "text" in pruner.needs
        self.whole = getattr(pruner, "text", TEXTS[0]) == TEXTS[1]
        self.question = Question(preprocessor)
        self.image_id = image_id

    def __call__(self, prompt: Sequence[int]) -> tuple[int, ...] | None:
        if not self.reads:
            return None
        ids = torch.tensor(prompt, dtype=torch.long)
        is_visual = ids == self.image_id
        rows = self.question.rows(ids, is_visual)
        if self.whole or not len(rows):
            rows = (~is_visual).nonzero().flatten()
        return tuple(ids[rows].tolist())


def prune(
    pruner: Pruner, images: Sequence[Tensor], words: Sequence[Tensor | None], embed: Embed
) -> list[Tensor]:
    """For each image (N, D), what the pruner leaves of it (keep, D).

    words: for each image the ids (M,) that it is compared with, or None.
    """
    stages = [
        _stage(visual, visual[:0] if ids is None else embed(ids.flatten()))
        for visual, ids in zip(images, words, strict=True)
    ]
    chosen = pruner.select_many(stages)
    left = [
        stage.prompt.reduced(selection, num_dense=len(stage.tokens), renumber=True)
        for stage, selection in zip(stages, chosen, strict=True)
    ]
    return [prompt.embeds[prompt.visual] for prompt in left]


def _stage(visual: Tensor, text: Tensor) -> Stage:
    """One image (N, D) with its words (M, D) behind it, as a pruner sees a prompt."""
    count, device = len(visual), visual.device
    rows = torch.arange(count + len(text), device=device)
    prompt = Prompt(
        embeds=torch.cat([visual, text.to(visual)]),
        positions=rows,
        visual=rows[:count],
        alive=rows[:count],
        instruction=rows[count:],
    )
    tokens = VisualTokens(visual, torch.zeros(count, dtype=torch.long), torch.zeros(count, 4))
    return Stage(0, prompt.embeds, prompt, tokens)
