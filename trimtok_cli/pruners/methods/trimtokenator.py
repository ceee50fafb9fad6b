"""TrimTokenator: keep visual tokens that are near the text, then those that differ most from each
other.

Paper: "TrimTokenator: Towards Adaptive Visual Token Pruning for Large Multimodal Models", arXiv
2509.00320. No official code is published; this follows the equations. N visual tokens, M text
tokens, N1 = floor(pool N) left by stage 1 (never fewer than the budget N2 = keep), all arithmetic
in float32.

Decided where the paper is silent: the text is the user's own words; ties go to the lowest index;
kept tokens stand in prompt order; each image has a budget of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.pruners.base import TEXTS, Pruner, Stage, padded, select_alike
from trimtok_cli.pruners.kernels.alignment import (
    ALIGNMENTS,
    POOL,
    alignment,
    check_align,
    check_pool,
    near_text,
    pool_count,
)
from trimtok_cli.pruners.kernels.greedy import repmax
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection

DIVERSITIES = ("cosine", "l2")

ORDERS = (
    "align-first",
    "diversity-first",
    "align-only",
    "diversity-only",
)  # the paper's, and Table 6's ablations 1, 2, 3


def trimtokenator(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
    text_mask: Tensor | None = None,
    order: str = "align-first",
) -> Tensor:
    """(B, N, D) visual and (B, M, D) text embeddings -> (B, keep) int64 indices, ascending.

    text_mask (B, M) is True at real tokens where texts are padded to one length. `keep` >= N keeps
    all. Unbatched (N, D) and (M, D) give (keep,). Raises ValueError for arguments that make no
    sense.
    """
    _check(visual, text, keep, pool, align, diversity, text_mask, order)
    if keep >= visual.shape[-2]:
        return torch.arange(visual.shape[-2], device=visual.device).expand(visual.shape[:-1])
    options = {
        "pool": pool,
        "align": align,
        "diversity": diversity,
        "text_mask": text_mask,
        "order": order,
    }
    return greedy_order(visual, text, keep, **options).sort(-1).values


def greedy_order(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
    text_mask: Tensor | None = None,
    order: str = "align-first",
) -> Tensor:
    """The same tokens as `trimtokenator`, in the order in which its last stage takes them."""
    _check(visual, text, keep, pool, align, diversity, text_mask, order)
    if visual.dim() == 2:
        mask = None if text_mask is None else text_mask[None]
        options = {
            "pool": pool,
            "align": align,
            "diversity": diversity,
            "text_mask": mask,
            "order": order,
        }
        return greedy_order(visual[None], text[None], keep, **options)[0]
    num_visual = visual.shape[1]
    keep = min(keep, num_visual)
    num_pool = pool_count(pool, num_visual, keep)

    def nearest(candidates: Tensor, count: int) -> Tensor:
        score = alignment(visual.float(), text.float(), align, text_mask).gather(1, candidates)
        return candidates.gather(
            1, score.sort(dim=1, descending=True, stable=True).indices[:, :count]
        )

    def most_diverse(candidates: Tensor, count: int) -> Tensor:
        rows = torch.stack([each[places] for each, places in zip(visual, candidates, strict=True)])
        return candidates.gather(1, repmax(rows, count, diversity))

    every = torch.arange(num_visual, device=visual.device).expand(len(visual), -1)
    if order == "align-first":
        left = (
            near_text(visual, text, num_pool, align, text_mask) if num_pool < num_visual else every
        )
        return most_diverse(left, keep)
    if order == "diversity-first":
        left = most_diverse(every, num_pool).sort(dim=1).values if num_pool < num_visual else every
        return nearest(left, keep)
    return nearest(every, keep) if order == "align-only" else most_diverse(every, keep)


def _check(visual, text, keep, pool, align, diversity, text_mask, order) -> None:
    if visual.dim() not in (2, 3) or text.dim() != visual.dim():
        raise ValueError(
            "visual and text must both be (B, N, D) or both (N, D), got "
            f"{tuple(visual.shape)} and {tuple(text.shape)}"
        )
    if visual.shape[-1] != text.shape[-1] or visual.shape[:-2] != text.shape[:-2]:
        raise ValueError(
            f"visual {tuple(visual.shape)} and text {tuple(text.shape)} must agree in batch "
            "and width"
        )
    if text_mask is not None and text_mask.shape != text.shape[:-1]:
        raise ValueError(
            f"text_mask must be {tuple(text.shape[:-1])}, got {tuple(text_mask.shape)}"
        )
    if keep < 1 or visual.shape[-2] < 1 or text.shape[-2] < 1:
        raise ValueError(
            f"keep, N and M must be at least 1, got {keep}, {visual.shape[-2]} and {text.shape[-2]}"
        )
    check_pool(pool, align)
    if diversity not in DIVERSITIES:
        raise ValueError(f"diversity must be one of {', '.join(DIVERSITIES)}, got {diversity!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")


@dataclass(frozen=True)
class TrimTokenator(Pruner):
    """The paper's pruner. pool: share that stage 1 leaves; align, diversity: the measures of the
    two stages.

    text: `instruction` compares with the user's own words, `prompt` with every text token of the
    prompt. order: which stage comes first, or either alone.
    """

    name: ClassVar[str] = "trimtokenator"
    needs: ClassVar[tuple[str, ...]] = ("text",)
    paper: ClassVar[str] = "2509.00320"

    pool: float = param(0.8, POOL, above=0, most=1)
    align: str = param("l2", choices=ALIGNMENTS)
    diversity: str = param("cosine", choices=DIVERSITIES)
    text: str = param("instruction", choices=TEXTS)
    order: str = param("align-first", choices=ORDERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_align(self.align)

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """Every image of every sample at once, grouped by token count and budget: one greedy loop
        serves a whole batch.
        """

        def choose(images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            visual = torch.stack([stage.visual_embeds[rows] for stage, rows in images])
            texts, mask = padded([stage.text(self.text) for stage, _ in images])
            return trimtokenator(
                visual,
                texts,
                keep,
                pool=self.pool,
                align=self.align,
                diversity=self.diversity,
                text_mask=mask,
                order=self.order,
            )

        return select_alike(self, stages, choose)
