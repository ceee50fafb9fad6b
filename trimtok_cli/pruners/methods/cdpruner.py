"""CDPruner: keep visual tokens that differ most from each other, weighed by their relevance.

Paper: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
MLLMs", arXiv 2506.10967; published code: Theia-4869/CDPruner at 9541616. Greedy MAP of a
determinantal point process whose kernel is relevance_i * cosine_ij * relevance_j, on projected
tokens.

Relevance is CLIP's similarity of patch and question, NEGATED, as in the published code: its authors
saw CLIP's patches, and no other model's, answer the wrong way round (issues 9, 14 and 19).
Relevance needs CLIP's text tower, which no LLaVA checkpoint carries. Where the tower does not offer
`relevance`, `text=llm` compares projected visual tokens with the language model's own text
embeddings, not negated. That is not the paper's measure: say so next to a number.

The tower signal `relevance` (N,) float32 is the mean, over the question's 77-token segments, of the
cosine of a patch (tower output, CLIP's post_layernorm and visual_projection) and the segment's
text_embeds, neither negated nor scaled. The question goes without the suffix "Answer the question
using a single word or phrase.", as in the published evaluation.

Differences from the published code: scaling is per image, not over the batch (`over`). A span of
relevance that float32 cannot tell from none makes every relevance 1 (infinite there). Tokens that
the kept ones explain up to rounding come last, by relevance (there: NaN, and tokens picked twice).
Near-equal scores tie to the lowest index. The budget is an image's, and with `tiles` shared out
among its tiles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.alike import dense_rows, padded, select_alike
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.kernels.alignment import alignment
from trimtok_cli.pruners.kernels.numerics import cosines, first_of_best, full_float32
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.tower import tile_budgets
from trimtok_cli.tokens import Selection

TEXTS = ("clip", "llm")

SIGNS = ("auto", "negative", "positive")

OVER = ("image", "batch")

# Scores tie where they differ by less, as a share of the token's relevance squared.
TIE = 1e-6

# A span of mean cosines up to this is rounding.
FLAT = 1e-6

# Below this share of its relevance squared, a token's gain is rounding: the duplicate of a kept
# token is left with up to 2e-6.
SPENT = 1e-5


def cdpruner(visual: Tensor, relevance: Tensor, keep: int) -> Tensor:
    """(B, N, D) visual tokens and relevance (B, N) >= 0 -> (B, keep) int64 indices, ascending.

    `keep` >= N keeps all. Unbatched (N, D) and (N,) give (keep,). Raises ValueError for arguments
    that make no sense. Source: arXiv 2506.10967; deviations: see the top of the file and
    `greedy_map_order`.
    """
    _check(visual, relevance, keep)
    if keep >= visual.shape[-2]:
        return torch.arange(visual.shape[-2], device=visual.device).expand(visual.shape[:-1])
    return greedy_map_order(visual, relevance, keep).sort(-1).values


@full_float32()
def greedy_map_order(visual: Tensor, relevance: Tensor, keep: int) -> Tensor:
    """The same tokens as `cdpruner`, in the order in which the greedy search takes them.

    Each step takes the token with the highest d2 = det(K with it) / det(K without it); one new row
    of the Cholesky factor a step keeps d2 up to date. A token with d2 <= 1e-5 relevance^2 is
    explained by the kept ones, and a token of length zero is so from the start. Explained tokens
    come behind all others, by relevance, and add no row: nothing is divided by a d2 of 0 or less,
    there is never a NaN and never a token twice. Nothing leaves the device inside the loop.
    """
    _check(visual, relevance, keep)
    if visual.dim() == 2:
        return greedy_map_order(visual[None], relevance[None], keep)[0]
    keep = min(keep, visual.shape[1])
    relevance = relevance.float()
    # K, (B, N, N)
    kernel = cosines(visual)[0].mul_(relevance[:, :, None]).mul_(relevance[:, None, :])
    gain = kernel.diagonal(dim1=1, dim2=2).clone()  # d2
    weight = relevance.square()
    explained = SPENT * weight
    by_relevance = -1 / weight.clamp(min=1e-30)  # below every d2, and above -inf
    factor = kernel.new_zeros(len(visual), keep, visual.shape[1])
    order = torch.empty(len(visual), keep, dtype=torch.long, device=visual.device)
    rows = torch.arange(len(visual), device=visual.device)
    for t in range(keep):
        score = torch.where(gain > explained, gain, by_relevance)
        best, place = score.max(dim=1, keepdim=True)
        chosen = first_of_best(score, TIE * torch.maximum(best.abs(), weight.gather(1, place)))
        order[:, t] = chosen
        row, d2 = kernel[rows, chosen], gain[rows, chosen]
        if t:
            row = torch.baddbmm(
                row[:, None], factor[rows, :t, chosen][:, None], factor[:, :t], alpha=-1
            )[:, 0]
        row = (
            row
            * torch.where(d2 > explained[rows, chosen], d2.clamp(min=1e-30).rsqrt(), 0.0)[:, None]
        )
        factor[:, t] = row
        gain = (gain - row.square()).scatter(1, chosen[:, None], -torch.inf)
        by_relevance = by_relevance.scatter(1, chosen[:, None], -torch.inf)
    return order


def scaled_relevance(similarity: Tensor, *, negate: bool = True, over: str = "image") -> Tensor:
    """(B, N) mean cosine similarity of visual tokens to the text -> (B, N) relevance, about 0 to 1.

    Relevance is (s - min + 1e-6) / (max - min), where s is -similarity (the published sign for
    CLIP) or, without `negate`, the similarity. min and max are those of each image or, with
    over="batch", of all together, as in the published code. Where max - min is at most 1e-6, no
    token is more relevant than another and all are 1. Raises ValueError for another `over` or
    shape.
    """
    if over not in OVER:
        raise ValueError(f"over must be one of {', '.join(OVER)}, got {over!r}")
    if similarity.dim() != 2 or similarity.shape[1] < 1:
        raise ValueError(f"similarity must be (B, N), got {tuple(similarity.shape)}")
    score = -similarity.float() if negate else similarity.float()
    axes = (1,) if over == "image" else (0, 1)
    low, high = score.amin(axes, keepdim=True), score.amax(axes, keepdim=True)
    return torch.where(high - low > FLAT, (score - low + 1e-6) / (high - low).clamp(min=FLAT), 1.0)


def text_similarity(visual: Tensor, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
    """(B, N, D) visual and (B, M, D) text of one space -> (B, N) mean cosine similarity, float32.

    With CLIP, text holds the question's M segments. text_mask (B, M) is True at real tokens.
    """
    return alignment(visual.float(), text.float(), "cosine", text_mask)


def _check(visual: Tensor, relevance: Tensor, keep: int) -> None:
    if visual.dim() not in (2, 3) or relevance.shape != visual.shape[:-1]:
        raise ValueError(
            f"visual must be (B, N, D) or (N, D) and relevance (B, N) or (N,), "
            f"got {tuple(visual.shape)} and {tuple(relevance.shape)}"
        )
    if keep < 1 or visual.shape[-2] < 1:
        raise ValueError(f"keep and N must be at least 1, got {keep} and {visual.shape[-2]}")


@dataclass(frozen=True)
class CDPruner(Pruner):
    """The paper's pruner.

    text: `clip` reads the tower's `relevance`, `llm` compares with the language model's words.

    sign: `negative` or `positive` similarity makes a token relevant; `auto` is negative for CLIP,
    as published, and positive for the language model.

    tiles: an image cut in tiles is pruned tile by tile, as published for LLaVA-NeXT. Each tile has
    its share of the budget, by size; relevance is scaled over all tiles; newlines are dropped.
    Without `tiles` an image is one, newlines included.
    """

    name: ClassVar[str] = "cdpruner"
    needs: ClassVar[tuple[str, ...]] = ("text", "relevance")
    paper: ClassVar[str] = "2506.10967"
    licence: ClassVar[str] = "Apache-2.0"
    instead: ClassVar[str] = (
        "name CLIP's text tower with --clip-text (for LLaVA-1.5 "
        "openai/clip-vit-large-patch14-336), or --param text=llm uses the "
        "language model's text embeddings"
    )

    text: str = param("clip", choices=TEXTS)
    sign: str = param("auto", choices=SIGNS)
    tiles: bool = param(False)

    @property
    def signals(self) -> tuple[str, ...]:
        return ("relevance",) if self.text == "clip" else ()

    @property
    def reads_tower(self) -> bool:
        return bool(self.signals) or self.tiles

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """Selects in every image of every sample; images of one size and budget share a search.

        Raises UsageError where relevance is to come from CLIP and the tower offers none.
        """
        if self.text == "clip" and not all(
            stage.tokens.signals.offers("relevance") for stage in stages
        ):
            raise UsageError(
                "cdpruner weighs tokens with CLIP's text tower, and this checkpoint has "
                f"none: {self.instead}."
            )
        if self.tiles:
            return [self._by_tile(stage) for stage in stages]

        def choose(images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            return cdpruner(
                dense_rows(images),
                self._relevance(images),
                keep,
            )

        return select_alike(self, stages, choose)

    def _by_tile(self, stage: Stage) -> Selection:
        relevance = stage.hidden.new_zeros(len(stage.prompt.visual), dtype=torch.float32)
        all_tiles = []
        for image in self.image_budgets(stage):
            tiles = [(tile, share) for tile, share, _ in tile_budgets(stage, [image])]
            places = torch.cat([tile for tile, _ in tiles])
            relevance[places] = self._relevance([(stage, places)])[0]
            all_tiles += tiles

        def choose(alike: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            places = torch.stack([tile for _, tile in alike])
            return cdpruner(stage.visual_embeds[places], relevance[places], keep)

        return select_alike(self, [stage], choose, lambda _: all_tiles)[0]

    def _relevance(self, images: list[tuple[Stage, Tensor]]) -> Tensor:
        """(images, n): the scaled relevance of each image's n tokens."""
        if self.text == "llm":
            text, mask = padded([stage.text() for stage, _ in images])
            similarity = text_similarity(dense_rows(images), text, mask)
        else:
            similarity = torch.stack(
                [
                    stage.tokens.signals.relevance.to(stage.hidden.device)[stage.prompt.alive[rows]]
                    for stage, rows in images
                ]
            )
        negate = self.sign == "negative" or (self.sign == "auto" and self.text == "clip")
        return scaled_relevance(similarity, negate=negate)
