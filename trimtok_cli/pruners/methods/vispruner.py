"""VisPruner: keep tokens that the tower's CLS token attends to, then thin out the rest by likeness.

Paper: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv 2412.01818; the details follow the published code (commit aefa01a). The method does
not see the text and merges nothing.

Differences from the published code: an odd number of tokens is split with the middle one on the
even side (the published code fails there). Ties go to the token listed first; the published sorts
leave ties open, and as the order decides the next round's split, one tie can change many of the
tokens kept. Every tile of an image has its share of the budget, as published, by size. Tokens
without a box (newlines) count in the budget's N but are dropped, unless the others are too few for
it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.tower import gather_rows, joined_selection, signal, tile_budgets
from trimtok_cli.tokens import Selection

# Tokens removed at a time.
ROUND = 8

SIMILARITIES = ("features", "embeds")

IMPORTANT = "is a share of the budget"


def vispruner(saliency: Tensor, features: Tensor, keep: int, *, important: float = 0.5) -> Tensor:
    """(B, N) attention from CLS and (B, N, F) features -> (B, keep) int64 indices, ascending.

    int(important * keep) tokens stay for their attention; `thinned` leaves the others. `keep` >= N
    keeps all; without B in, without B out. Raises ValueError for arguments that make no sense.
    Section 3 of the paper.
    """
    if (
        saliency.dim() not in (1, 2)
        or features.dim() != saliency.dim() + 1
        or features.shape[:-1] != saliency.shape
    ):
        raise ValueError(
            f"saliency (B, N) and features (B, N, F) must agree, got {saliency.shape} and "
            f"{features.shape}"
        )
    if keep < 1 or saliency.shape[-1] < 1:
        raise ValueError(f"keep and N must be at least 1, got {keep} and {saliency.shape[-1]}")
    if not 0 <= important <= 1:
        raise ValueError(f"important {IMPORTANT}, 0 <= important <= 1, got {important}")
    if saliency.dim() == 1:
        return vispruner(saliency[None], features[None], keep, important=important)[0]
    keep = min(keep, saliency.shape[1])
    # 1e-9: 0.29 * 100 is 29, although the float product is 28.999...
    num_important = int(important * keep + 1e-9)
    order = saliency.float().sort(dim=1, descending=True, stable=True).indices
    rest = order[:, num_important:]
    diverse = rest.gather(1, thinned(gather_rows(features, rest), keep - num_important))
    return torch.cat([order[:, :num_important], diverse], dim=1).sort(dim=1).values


def thinned(features: Tensor, keep: int) -> Tensor:
    """(B, R, F), listed by falling attention -> (B, keep) places in this list.

    While too many are left, the list is split in even and odd places, and up to 8 even tokens, most
    like some odd one by cosine, go. The evens that stay, by falling likeness, then the odds, are
    the next list. The places come in the order of the last list.
    """
    unit = F.normalize(features.float(), dim=-1, eps=1e-30)
    similarity = unit @ unit.mT if keep else unit  # (B, R, R) once: each round reads a part of it
    left = torch.arange(features.shape[1], device=features.device).expand(len(features), -1)
    batch = torch.arange(len(features), device=features.device)[:, None, None]
    while keep and left.shape[1] > keep:
        even, odd = left[:, ::2], left[:, 1::2]
        gone = min(ROUND, left.shape[1] - keep, even.shape[1])
        likeness = similarity[batch, even[:, :, None], odd[:, None, :]].amax(dim=2)
        falling = likeness.sort(dim=1, descending=True, stable=True).indices
        left = torch.cat([even.gather(1, falling[:, gone:]), odd], dim=1)
    return left[:, :keep]


def published_share(count: int, size: int, *, tiled: bool) -> float:
    """The share of a budget that goes by attention: 0.75 up to 64 of 576 tokens, 0.5 above.

    Published are 0.75 at 64 of 576, and 0.5 at 128, at 192 and for each tile.
    """
    return 0.75 if not tiled and count * 576 <= 64 * size else 0.5


@dataclass(frozen=True)
class VisPruner(Pruner):
    """The paper's pruner.

    important: the share of each image's budget that goes by attention, by default
    `published_share`. similarity: `features` compares tower features before the projector, as
    published; `embeds` compares the projected tokens, for families that have no such features.
    """

    name: ClassVar[str] = "vispruner"
    needs: ClassVar[tuple[str, ...]] = ("saliency", "features")
    paper: ClassVar[str] = "2412.01818"
    licence: ClassVar[str] = "Apache-2.0"
    instead: ClassVar[str] = (
        "--param similarity=embeds does without features, trimtokenator without all of it"
    )

    important: float | None = param(None, IMPORTANT, least=0, most=1)
    similarity: str = param("features", choices=SIMILARITIES)

    @property
    def signals(self) -> tuple[str, ...]:
        return ("saliency", "features") if self.similarity == "features" else ("saliency",)

    def select(self, stage: Stage) -> Selection:
        saliency = signal(stage, self.name, "saliency")
        features = stage.visual_embeds
        if self.similarity == "features":
            features = signal(stage, self.name, "features")
        tiled = stage.tokens.signals.offers("tile")
        kept = []
        for places, count, all_stay in tile_budgets(stage, self.image_budgets(stage)):
            if all_stay:
                kept.append(places)
                continue
            share = self.important
            if share is None:
                share = published_share(count, len(places), tiled=tiled)
            chosen = vispruner(saliency[places], features[places], count, important=share)
            kept.append(places[chosen])
        return joined_selection(stage, kept)
