"""PruMerge and PruMerge+: keep what the CLS token attends to, add to each its neighbours, sum up
what is left in one token.

Paper: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
arXiv 2403.15388; the details follow the published code (commit 097c041). It does not see the text.

Of the tower's LAST layer it needs two further offers: last_saliency () -> (N,), the CLS row of
softmax(q k^T / sqrt(d)) with q and k over the full width d (one head, biases in, softmax over CLS
and patches, CLS column dropped), and last_keys () -> (N, d), the full-width key projections.
Features and project are the usual ones.

Where this differs from the published code. Kept tokens stand in prompt order, not by falling
attention; the added tokens of all images of a prompt follow its last kept token. The published code
has no budgets: see PruMerge for what --keep means here. An image cut in tiles is one image. No
outlier at all counts as one (published: division by zero). Tokens that show no place (newlines)
count in the budget's N but are dropped, unless the others are too few for it.
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


def cls_attention(query: Tensor, keys: Tensor) -> Tensor:
    """CLS query (B, d) and keys (B, 1 + N, d), CLS first, over the full width -> attention (B, N),
    float32.
    """
    logits = (keys.float() @ query.float()[..., None]).squeeze(-1) * keys.shape[-1] ** -0.5
    return logits.softmax(dim=-1)[..., 1:]


def outliers(attention: Tensor) -> int:
    """How many of (N,) lie above Q3 + 1.5 (Q3 - Q1), at least 1 (Section 3 of the paper; quartiles
    linear).
    """
    low, high = torch.quantile(
        attention.float(), torch.tensor([0.25, 0.75], device=attention.device)
    )
    return max(int((attention.float() > high + 1.5 * (high - low)).sum()), 1)


def adaptive_indices(attention: Tensor, *, plus: bool = True) -> Tensor:
    """The published, adaptive choice from (N,): int64 indices by falling attention, then with
    `plus` the spatial samples.

    With n outliers the ratio is n / N; plus adds every g-th token of 0..N-2 that is not there yet,
    g = int(int(N / n) / 3).
    """
    size, count = len(attention), outliers(attention)
    best = by_attention(attention)[:count]
    if not plus:
        return best
    spread = torch.arange(
        0, size - 1, max(int(int(1 / (count / size)) / 3), 1), device=attention.device
    )
    return torch.cat([best, spread[~torch.isin(spread, best)]])


def fixed_indices(attention: Tensor, count: int, *, plus: bool = True) -> Tensor:
    """`count` indices from (B, N) for a fixed budget, in list order: by attention, or with `plus`
    half of them spatial.

    Plus takes the larger half by attention and the others at even distances among the tokens left,
    the middle of each stretch: the published fixed ratio has as many of one kind as of the other,
    but takes some tokens twice.
    """
    spatial = count // 2 if plus else 0
    order = by_attention(attention)
    if not spatial:
        return order[..., :count]
    best, rest = order[..., : count - spatial], order[..., count - spatial :].sort(dim=-1).values
    spread = (
        (2 * torch.arange(spatial, device=attention.device) + 1) * rest.shape[-1] // (2 * spatial)
    )
    return torch.cat([best, rest[..., spread]], dim=-1)


def by_attention(attention: Tensor) -> Tensor:
    return attention.float().sort(dim=-1, descending=True, stable=True).indices


def prumerge(
    features: Tensor, keys: Tensor, attention: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Merged tokens (B, K, F), in the order of `kept`, and the token (B, F) that sums up all
    others; float32.

    features (B, N, F), keys (B, N, d), attention (B, N), kept (B, K) unique; without B in, without
    B out. x_i gets the sum of a_j x_j over its 32 neighbours j by cosine of keys, among all other
    tokens, kept or not. The weights are not normalised, and what is added are the original tokens.
    Raises ValueError where shapes do not agree.
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
    similarity = (gather_rows(unit, kept) @ unit.mT).scatter(
        -1, kept[..., None], -torch.inf
    )  # (B, K, N), nobody its own neighbour
    near = similarity.sort(dim=-1, descending=True, stable=True).indices[
        ..., : min(NEIGHBOURS, shape[-1] - 1)
    ]
    nearby = torch.zeros_like(similarity).scatter(-1, near, 1.0)
    merged = gather_rows(features, kept) + (nearby * attention[..., None, :]) @ features
    left = attention.scatter(-1, kept, 0.0)
    return merged, (left[..., None, :] @ features).squeeze(-2)


@dataclass(frozen=True)
class PruMerge(Pruner):
    """LLaVA-PruMerge(+). plus: tokens spread over the image are kept besides those with most
    attention.

    A budget of T is T - 1 tokens and the one that sums up the others (T = 1: the merged token
    alone). Without plus all go by attention, as the published code does at a fixed ratio of (T - 1)
    / N; with plus half do, see `fixed_indices`. adaptive: as published, each image keeps as many as
    its attention has outliers (and the spatial samples); --keep is then only the most that may
    stay: what exceeds it is cut from the end of the list (keep 99% cuts nothing), and an image
    within it stays whole.
    """

    name: ClassVar[str] = "prumerge"
    where: ClassVar[str] = "prompt, before the projector"
    needs: ClassVar[tuple[str, ...]] = ("last_saliency", "last_keys", "features", "project")
    paper: ClassVar[str] = "2403.15388"
    licence: ClassVar[str] = "Apache-2.0"

    plus: bool = param(True)
    adaptive: bool = param(False)

    def select(self, stage: Stage) -> Selection:
        require_signals(stage, "prumerge", *NEEDS)
        attention, keys, features = (signal(stage, "prumerge", name) for name in NEEDS[:3])
        kept, merged, extra = [], [], []
        for rows, count in self.image_budgets(stage):
            rows, all_stay = candidates(stage, rows, count)
            if all_stay:
                kept.append(rows)
                continue
            room = max(count - 1, 1)
            if self.adaptive:
                chosen = adaptive_indices(attention[rows], plus=self.plus)[:room]
            else:
                chosen = fixed_indices(attention[rows], room, plus=self.plus)
            values, others = prumerge(features[rows], keys[rows], attention[rows], chosen)
            projected = stage.tokens.signals.project(
                torch.cat([values, others[None]]).to(features.dtype)
            )
            kept.append(rows[chosen])
            merged.append((rows[chosen], projected[:-1]))
            if count > 1:
                extra.append(projected[-1:])
        return joined_selection(stage, kept, merged, extra)
