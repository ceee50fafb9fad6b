"""TrimTokenator: keep visual tokens near the text, then those that differ most from each other.

Paper: "TrimTokenator: Towards Adaptive Visual Token Pruning for Large Multimodal Models", arXiv
2509.00320. No official code is published; this follows the equations, and
`kernels/reference.py` writes them out on one screen. Stage 1 leaves N1 = floor(pool N) of N visual
tokens (never fewer than the budget N2 = keep), stage 2 leaves keep of them. Arithmetic is float32.

Decided where the paper is silent: the text is the user's own words; ties go to the lowest index;
kept tokens stand in prompt order; each image has a budget of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.pruners.alike import dense_rows, padded, select_alike
from trimtok_cli.pruners.base import TEXTS, Pruner, Stage
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

# The paper's order of the stages, and ablations 1, 2 and 3 of its Table 6.
ORDERS = ("align-first", "diversity-first", "align-only", "diversity-only")


def trimtokenator(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
    text_mask: Tensor | None = None,
) -> Tensor:
    """(B, N, D) visual and (B, M, D) text embeddings -> (B, keep) int64 indices, ascending.

    text_mask (B, M) is True at real tokens where texts are padded to one length. `keep` >= N keeps
    all. Unbatched (N, D) and (M, D) give (keep,). Raises ValueError for arguments that make no
    sense.
    """
    _check(visual, text, keep, pool, align, diversity, text_mask)
    if keep >= visual.shape[-2]:
        return torch.arange(visual.shape[-2], device=visual.device).expand(visual.shape[:-1])
    order = greedy_order(
        visual, text, keep, pool=pool, align=align, diversity=diversity, text_mask=text_mask
    )
    return order.sort(-1).values


def greedy_order(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
    text_mask: Tensor | None = None,
) -> Tensor:
    """The same tokens as `trimtokenator`, in the order in which stage 2 takes them."""
    _check(visual, text, keep, pool, align, diversity, text_mask)
    if visual.dim() == 2:
        mask = None if text_mask is None else text_mask[None]
        return greedy_order(
            visual[None],
            text[None],
            keep,
            pool=pool,
            align=align,
            diversity=diversity,
            text_mask=mask,
        )[0]
    keep = min(keep, visual.shape[1])
    num_pool = pool_count(pool, visual.shape[1], keep)
    pooled = _all_places(visual)
    if num_pool < visual.shape[1]:
        pooled = near_text(visual, text, num_pool, align, text_mask)
    return _most_diverse(visual, pooled, keep, diversity)


def diversity_first(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
    text_mask: Tensor | None = None,
) -> Tensor:
    """Ablation 1 of Table 6, the two stages swapped: (B, N, D), (B, M, D) -> (B, keep), ascending.

    Raises ValueError for arguments that make no sense.
    """
    _check(visual, text, keep, pool, align, diversity, text_mask)
    num_pool = pool_count(pool, visual.shape[1], keep)
    pooled = _all_places(visual)
    if num_pool < visual.shape[1]:
        pooled = _most_diverse(visual, pooled, num_pool, diversity).sort(dim=1).values
    score = alignment(visual.float(), text.float(), align, text_mask).gather(1, pooled)
    nearest = score.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return pooled.gather(1, nearest).sort(dim=1).values


def align_only(
    visual: Tensor, text: Tensor, keep: int, *, align: str = "l2", text_mask: Tensor | None = None
) -> Tensor:
    """Ablation 2 of Table 6, stage 1 alone: (B, N, D), (B, M, D) -> (B, keep), ascending."""
    return diversity_first(visual, text, keep, pool=1.0, align=align, text_mask=text_mask)


def diversity_only(visual: Tensor, keep: int, *, diversity: str = "cosine") -> Tensor:
    """Ablation 3 of Table 6, stage 2 alone: (B, N, D) -> (B, keep), ascending."""
    return _most_diverse(visual, _all_places(visual), keep, diversity).sort(dim=1).values


def _all_places(visual: Tensor) -> Tensor:
    return torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)


def _most_diverse(visual: Tensor, candidates: Tensor, count: int, diversity: str) -> Tensor:
    """RepMax among candidates (B, n) -> (B, count) of these places, in the order of selection."""
    rows = torch.stack([tokens[places] for tokens, places in zip(visual, candidates, strict=True)])
    return candidates.gather(1, repmax(rows, count, diversity))


def _check(
    visual: Tensor,
    text: Tensor,
    keep: int,
    pool: float,
    align: str,
    diversity: str,
    text_mask: Tensor | None,
) -> None:
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


@dataclass(frozen=True)
class TrimTokenator(Pruner):
    """The paper's pruner. pool: the share of the tokens that stage 1 leaves.

    align, diversity: the measures of stage 1 and stage 2. text: `instruction` compares with the
    user's own words, `prompt` with every text token of the prompt. order: which stage comes first,
    or either alone.
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
        """Selects in every image of every sample; images of one size and budget share a search."""
        return select_alike(self, stages, self._choose)

    def _choose(self, images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
        visual = dense_rows(images)
        if self.order == "diversity-only":
            return diversity_only(visual, keep, diversity=self.diversity)
        text, mask = padded([stage.text(self.text) for stage, _ in images])
        if self.order == "align-only":
            return align_only(visual, text, keep, align=self.align, text_mask=mask)
        select = trimtokenator if self.order == "align-first" else diversity_first
        return select(
            visual,
            text,
            keep,
            pool=self.pool,
            align=self.align,
            diversity=self.diversity,
            text_mask=mask,
        )
