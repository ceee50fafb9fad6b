"""PruMerge(+): keep tokens that CLS attends to, add their neighbours, sum up the rest in one token.

Paper: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
arXiv 2403.15388; the details follow the published code (commit 097c041). The method does not see
the text.

Two signals are of the tower's LAST layer: last_saliency (N,), the CLS row of softmax(q k^T /
sqrt(d)) with q and k over the full width d (one head, biases in, softmax over CLS and patches, CLS
column dropped), and last_keys (N, d), the full-width key projections.

Differences from the published code: kept tokens stand in prompt order, not by falling attention.
The added tokens of all images of a prompt follow its last kept token. The published code has no
budgets; the class says what --keep means. An image cut in tiles is one image. No outlier at all
counts as one (published: division by zero). Tokens without a box (newlines) count in the budget's N
but are dropped, unless the others are too few for it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.tower import (
    candidates,
    gather_rows,
    joined_selection,
    require_signals,
    signal,
)
from trimtok_cli.tokens import Selection

NEIGHBOURS = 32

NEEDS = ("last_saliency", "last_keys", "features", "project")


def outliers(attention: Tensor) -> int:
    """The number of values (N,) above Q3 + 1.5 (Q3 - Q1), at least 1.

    Section 3 of the paper; quartiles are interpolated linearly.
    """
    quartiles = torch.tensor([0.25, 0.75], device=attention.device)
    low, high = torch.quantile(attention.float(), quartiles)
    return max(int((attention.float() > high + 1.5 * (high - low)).sum()), 1)


def adaptive_indices(attention: Tensor, *, plus: bool = True) -> Tensor:
    """The published, adaptive choice from (N,): int64 indices by falling attention.

    With n outliers the ratio is n / N. `plus` appends the spatial samples: every g-th token of
    0..N-2 that is not chosen yet, g = int(int(N / n) / 3).
    """
    size = len(attention)
    count = outliers(attention)
    best = by_attention(attention)[:count]
    if not plus:
        return best
    gap = max(int(int(1 / (count / size)) / 3), 1)
    spread = torch.arange(0, size - 1, gap, device=attention.device)
    return torch.cat([best, spread[~torch.isin(spread, best)]])


def fixed_indices(attention: Tensor, count: int, *, plus: bool = True) -> Tensor:
    """`count` indices from (B, N) for a fixed budget, by falling attention.

    With `plus` the larger half goes by attention; the other half stands at even distances among the
    tokens left, in the middle of each stretch. The published fixed ratio also has two halves, but
    takes some tokens twice.
    """
    spatial = count // 2 if plus else 0
    order = by_attention(attention)
    if not spatial:
        return order[..., :count]
    best = order[..., : count - spatial]
    rest = order[..., count - spatial :].sort(dim=-1).values
    odd = 2 * torch.arange(spatial, device=attention.device) + 1
    spread = odd * rest.shape[-1] // (2 * spatial)
    return torch.cat([best, rest[..., spread]], dim=-1)


def by_attention(attention: Tensor) -> Tensor:
    """(B, N) -> (B, N) indices by falling attention, ties to the lowest."""
    return attention.float().sort(dim=-1, descending=True, stable=True).indices


def prumerge(
    features: Tensor, keys: Tensor, attention: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Merged tokens (B, K, F), in the order of `kept`, and the sum (B, F) of all others; float32.

    features (B, N, F), keys (B, N, d), attention (B, N), kept (B, K) unique; without B in, without
    B out. Token x_i gets the sum of a_j x_j over its 32 neighbours j, by cosine of keys among all
    other tokens, kept or not. Weights are not normalised; x_j are the original tokens. Raises
    ValueError where shapes do not agree.
    """
    shape = attention.shape
    if any(
        x.dim() != len(shape) + 1 or x.shape[:-1] != shape for x in (features, keys)
    ) or kept.dim() != len(shape):
        raise ValueError(
            f"features (B, N, F), keys (B, N, d), attention (B, N) and kept (B, K) must agree, got "
            f"{tuple(features.shape)}, {tuple(keys.shape)}, {tuple(shape)} and {tuple(kept.shape)}"
        )
    features, attention = features.float(), attention.float()
    unit = F.normalize(keys.float(), dim=-1, eps=1e-30)
    # (B, K, N). No token is its own neighbour.
    similarity = (gather_rows(unit, kept) @ unit.mT).scatter(-1, kept[..., None], -torch.inf)
    num_near = min(NEIGHBOURS, shape[-1] - 1)
    near = similarity.sort(dim=-1, descending=True, stable=True).indices[..., :num_near]
    nearby = torch.zeros_like(similarity).scatter(-1, near, 1.0)
    merged = gather_rows(features, kept) + (nearby * attention[..., None, :]) @ features
    left = attention.scatter(-1, kept, 0.0)
    return merged, (left[..., None, :] @ features).squeeze(-2)


@dataclass(frozen=True)
class PruMerge(Pruner):
    """LLaVA-PruMerge(+). plus: tokens spread over the image stay besides those with most attention.

    A budget of T is T - 1 tokens and the token that sums up the others (T = 1: one merged token).
    Without plus all tokens go by attention, as in the published code at a fixed ratio of (T - 1) /
    N; with plus half of them do, see `fixed_indices`. adaptive: as published, each image keeps as
    many tokens as its attention has outliers, and the spatial samples. --keep is then an upper
    limit: the list is cut at its end (keep 99% cuts nothing), and an image within the limit stays
    whole.
    """

    name: ClassVar[str] = "prumerge"
    where: ClassVar[str] = "prompt, before the projector"
    needs: ClassVar[tuple[str, ...]] = NEEDS
    paper: ClassVar[str] = "2403.15388"
    licence: ClassVar[str] = "Apache-2.0"

    plus: bool = param(True)
    adaptive: bool = param(False)

    def select(self, stage: Stage) -> Selection:
        require_signals(stage, "prumerge", *NEEDS)
        attention, keys, features = (signal(stage, "prumerge", name) for name in NEEDS[:3])
        kept, merged, added = [], [], []
        for image, count in self.image_budgets(stage):
            places, all_stay = candidates(stage, image, count)
            if all_stay:
                kept.append(places)
                continue
            room = max(count - 1, 1)
            if self.adaptive:
                chosen = adaptive_indices(attention[places], plus=self.plus)[:room]
            else:
                chosen = fixed_indices(attention[places], room, plus=self.plus)
            values, rest = prumerge(features[places], keys[places], attention[places], chosen)
            projected = stage.tokens.signals.project(
                torch.cat([values, rest[None]]).to(features.dtype)
            )
            kept.append(places[chosen])
            merged.append((places[chosen], projected[:-1]))
            if count > 1:
                added.append(projected[-1:])
        return joined_selection(stage, kept, merged, added)
