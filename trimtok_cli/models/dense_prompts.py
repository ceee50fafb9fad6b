"""Dense prompts: text embeddings, with the visual tokens at their placeholders. Knows no method."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from trimtok_cli.models.family import Family
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.tokens import Prompt, VisualTokens


def dense_prompts(
    family: Family, batch: Sequence[Inputs], tokens: Sequence[VisualTokens]
) -> list[Prompt]:
    """The prompts of a batch, whose numbers go to the device together and are embedded together.

    Their rows are views of one tensor.
    """
    ids = [inputs.input_ids for inputs in batch]
    starts = [0, *accumulate(map(len, ids))]
    # The rows are computed on the CPU: on a device, the host would wait for their number.
    rows = family.is_visual(torch.cat(ids)).nonzero().squeeze(1).split(list(map(len, tokens)))
    rows = [own - start for own, start in zip(rows, starts, strict=False)]
    parts = [*ids, *rows, *(inputs.instruction for inputs in batch)]
    placed = family.to_device(torch.cat(parts)).split([len(part) for part in parts])
    ids, visual, instruction = (
        placed[start : start + len(batch)] for start in range(0, len(parts), len(batch))
    )
    together = family.embed_ids(torch.cat(ids))
    embeds = [together[start:end] for start, end in pairwise(starts)]
    for own, places, visuals in zip(embeds, visual, tokens, strict=True):
        own[places] = visuals.embeds.to(own.dtype)
    numbers = torch.arange(max(map(len, rows)), device=family.device)
    return [
        Prompt(
            embeds=embeds[i],
            positions=family.positions(inputs),
            visual=visual[i],
            alive=numbers[: len(rows[i])],
            instruction=instruction[i],
            deepstack=tokens[i].deepstack,
            ids=ids[i],
        )
        for i, inputs in enumerate(batch)
    ]
