"""DivPrune: keep visual tokens whose two nearest are as far apart as can be. No text, no attention.

Paper: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv
2503.02175; published code: vbdi/divprune at 799e2d9. Max-min diversity by the greedy farthest-point
search, in cosine distance, on projected tokens. `DivPruneStar` is DivPrune* of TrimTokenator (arXiv
2509.00320, Section 5.4, Table 5): that paper's alignment stage first.

Differences from the published code: a chosen token is no candidate any more. There it loses only
because its distance to itself is about 0, so the code can pick a token twice among equal tokens,
and once every different vector is taken. Distances less than 1e-6 apart, which float32 cannot tell
from equal ones, tie to the lowest index. A token of length zero (NaN there) stands at distance 1
from every other and 0 from its likes. Arithmetic is float32, not the model's type. A share is
rounded half up where the code rounds half to even (0.098 of 576 is 56 in both). Each image has a
budget of its own; the code prunes the first image alone. Kept tokens stand in prompt order, as in
the code; the paper's own numbers were made in the order of selection (issue 8 of the repository).
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
    check_align,
    check_pool,
    near_text,
    pool_count,
)
from trimtok_cli.pruners.kernels.greedy import max_min
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection


def divprune(visual: Tensor, keep: int) -> Tensor:
    """(B, N, D) visual tokens -> (B, keep) int64 indices, ascending.

    `keep` >= N keeps all. Unbatched (N, D) gives (keep,). Raises ValueError for arguments that make
    no sense. Source: the greedy algorithm of arXiv 2503.02175 for the max-min diversity problem;
    the head of this file lists the differences.
    """
    _check(visual, keep)
    if keep >= visual.shape[-2]:
        return torch.arange(visual.shape[-2], device=visual.device).expand(visual.shape[:-1])
    return max_min_order(visual, keep).sort(-1).values


def max_min_order(visual: Tensor, keep: int) -> Tensor:
    """The same tokens as `divprune`, in the order in which the greedy search takes them.

    The first token is the one whose nearest neighbour is farthest; each next token is the one whose
    nearest chosen token is farthest. Where the published code would take a token a second time,
    this takes the lowest one left.
    """
    _check(visual, keep)
    if visual.dim() == 2:
        return max_min_order(visual[None], keep)[0]
    return max_min(visual, min(keep, visual.shape[1]))


def divprune_star(
    visual: Tensor,
    text: Tensor,
    keep: int,
    *,
    pool: float = 0.8,
    align: str = "l2",
    text_mask: Tensor | None = None,
) -> Tensor:
    """DivPrune*: (B, N, D) visual and (B, M, D) text -> (B, keep) int64 indices, ascending.

    DivPrune among the floor(pool N) tokens nearest to the text (never fewer than keep; Eq. 3 of
    arXiv 2509.00320, `alignment`). text_mask (B, M) is True at real tokens. `keep` >= N
    keeps all. Unbatched (N, D) and (M, D) give (keep,). Raises ValueError for arguments that make
    no sense. No code of it is published.
    """
    _check(visual, keep)
    check_pool(pool, align)
    if (
        text.dim() != visual.dim()
        or text.shape[-1] != visual.shape[-1]
        or text.shape[:-2] != visual.shape[:-2]
    ):
        raise ValueError(
            f"visual {tuple(visual.shape)} and text {tuple(text.shape)} must agree in batch "
            "and width"
        )
    if text.shape[-2] < 1 or (text_mask is not None and text_mask.shape != text.shape[:-1]):
        raise ValueError(f"text must have a token, and text_mask must be {tuple(text.shape[:-1])}")
    if visual.dim() == 2:
        mask = None if text_mask is None else text_mask[None]
        return divprune_star(
            visual[None], text[None], keep, pool=pool, align=align, text_mask=mask
        )[0]
    num_visual = visual.shape[1]
    num_pool = pool_count(pool, num_visual, keep)
    if num_pool >= num_visual:
        return divprune(visual, keep)
    near = near_text(visual, text, num_pool, align, text_mask)
    rows = torch.stack([tokens[places] for tokens, places in zip(visual, near, strict=True)])
    return near.gather(1, divprune(rows, keep))


def _check(visual: Tensor, keep: int) -> None:
    if visual.dim() not in (2, 3):
        raise ValueError(f"visual must be (B, N, D) or (N, D), got {tuple(visual.shape)}")
    if keep < 1 or visual.shape[-2] < 1:
        raise ValueError(f"keep and N must be at least 1, got {keep} and {visual.shape[-2]}")


@dataclass(frozen=True)
class DivPrune(Pruner):
    """The paper's pruner. Its only parameter is the budget."""

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = "2503.02175"
    licence: ClassVar[str] = "CC BY-NC 4.0"

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """Selects in every image of every sample; images of one size and budget share a search."""

        def choose(images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            return divprune(dense_rows(images), keep)

        return select_alike(self, stages, choose)


@dataclass(frozen=True)
class DivPruneStar(Pruner):
    """DivPrune* of the TrimTokenator paper. pool, align, text: as in TrimTokenator's stage 1.

    text: `instruction` compares with the user's own words, `prompt` with every text token of the
    prompt.
    """

    name: ClassVar[str] = "divprune-star"
    needs: ClassVar[tuple[str, ...]] = ("text",)
    paper: ClassVar[str] = "2509.00320"

    pool: float = param(0.8, POOL, above=0, most=1)
    align: str = param("l2", choices=ALIGNMENTS)
    text: str = param("instruction", choices=TEXTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_align(self.align)

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """Selects in every image of every sample; images of one size and budget share a search."""

        def choose(images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            visual = dense_rows(images)
            text, mask = padded([stage.text(self.text) for stage, _ in images])
            return divprune_star(
                visual, text, keep, pool=self.pool, align=self.align, text_mask=mask
            )

        return select_alike(self, stages, choose)
