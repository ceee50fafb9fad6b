"""VisionZip: keep tokens that the tower's CLS token attends to, sum up the others in a few tokens.

Paper: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv
2412.04467; the details follow the published code (commit 3151f6d). The method does not see the
text. N visual tokens, D dominant, C contextual.

Differences from the published code: the CLS token, there one of the dominant tokens, is no visual
token of these checkpoints. D patches stay instead, or with `cls` the CLS token is added behind the
image's tokens and counted. A contextual token stands where its target stood, or with `append`
behind the kept tokens; the published order is CLS, dominant, contextual. Added tokens of all images
of a prompt follow its last kept token. Every tile of an image has its share of the budget, as
published, by size. Tokens without a box (the newlines of LLaVA-NeXT) count in the budget's N but
are dropped, unless the others are too few for it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.tower import (
    gather_rows,
    joined_selection,
    require_signals,
    signal,
    tile_budgets,
)
from trimtok_cli.tokens import Selection


def visionzip(
    saliency: Tensor, metric: Tensor, features: Tensor, dominant: int, contextual: int
) -> tuple[Tensor, ...]:
    """The places of the dominant tokens and of the contextual tokens, and the latter's values.

    saliency (B, N), metric (B, N, d) and features (B, N, F) come without the CLS row; D = dominant,
    C = contextual. Returns places (B, D) and (B, C), each ascending and int64, and values (B, C, F)
    float32; without B in, without B out. Ties go to the lowest index. Raises ValueError where D + C
    is not in 1..N or shapes do not fit. Section 3 of the paper; the published code counts CLS in
    its D.
    """
    _check(saliency, metric, features, dominant, contextual)
    order = saliency.float().sort(dim=-1, descending=True, stable=True).indices
    best = order[..., :dominant].sort(dim=-1).values
    rest = order[..., dominant:].sort(dim=-1).values
    targets, group = contextual_groups(gather_rows(metric, rest), contextual)
    values = merge_groups(gather_rows(features, rest), targets, group)
    return best, rest[..., targets], values


def contextual_groups(metric: Tensor, contextual: int) -> tuple[Tensor, Tensor]:
    """Uniform targets among the R tokens left, and the target that each token is most like.

    metric (B, R, d) -> targets (C,), places 0, step, 2 step, ... with step = R // C; and group (B,
    R) in 0..C-1, where a target is in its own. Cosine similarity, ties to the lowest target.
    """
    num_rest = metric.shape[-2]
    device = metric.device
    targets = torch.arange(contextual, device=device) * max(num_rest // max(contextual, 1), 1)
    if not contextual:
        return targets, metric.new_zeros(metric.shape[:-1], dtype=torch.long)
    unit = F.normalize(metric.float(), dim=-1, eps=1e-30)
    group = (unit @ unit[..., targets, :].mT).argmax(dim=-1)
    group[..., targets] = torch.arange(contextual, device=device)
    return targets, group


def merge_groups(features: Tensor, targets: Tensor, group: Tensor) -> Tensor:
    """(B, R, F) features -> (B, C, F) float32: each target plus the MEAN of its group's others.

    The sum is the published one.
    """
    features = features.float()
    numbers = torch.arange(len(targets), device=group.device)
    member = (group[..., None] == numbers).float()  # (B, R, C)
    member[..., targets, :] = 0
    # A product in place of a scatter, whose float sums come out in another order at every run on a
    # GPU.
    mean = member.mT @ features / member.sum(-2).clamp(min=1)[..., None]
    return features[..., targets, :] + mean


def _check(
    saliency: Tensor, metric: Tensor, features: Tensor, dominant: int, contextual: int
) -> None:
    shape = saliency.shape
    if saliency.dim() not in (1, 2) or any(
        x.dim() != len(shape) + 1 or x.shape[:-1] != shape for x in (metric, features)
    ):
        raise ValueError(
            f"saliency (B, N), metric (B, N, d) and features (B, N, F) must agree, "
            f"got {tuple(shape)}, {tuple(metric.shape)} and {tuple(features.shape)}"
        )
    if min(dominant, contextual) < 0 or not 1 <= dominant + contextual <= shape[-1]:
        raise ValueError(
            f"dominant and contextual must be 1 to N = {shape[-1]} tokens together, got "
            f"{dominant} and {contextual}"
        )


@dataclass(frozen=True)
class VisionZip(Pruner):
    """The paper's pruner.

    contextual: the contextual part of each image's budget (of each tile's, where an image is cut in
    tiles), a share below 1 or a count of 1 or more. The default gives the published 54 + 10, 108 +
    20 and 162 + 30. cls: the image's CLS token is one of the dominant tokens, as published. It is
    added behind the kept tokens and needs the tower's `cls` (images, F), whose rows are numbered
    like visual_index. append: contextual tokens are added behind the kept ones, as published,
    instead of standing at their targets.

    Features are merged before the projector. Families without such features merge the projected
    tokens, as the Qwen2.5-VL variant of the published code does; its shares, dominant 0.65 N and
    contextual 0.05 N, are keep=70% and contextual=0.0714.
    """

    name: ClassVar[str] = "visionzip"
    where: ClassVar[str] = "prompt, before the projector"
    needs: ClassVar[tuple[str, ...]] = ("saliency", "keys")
    paper: ClassVar[str] = "2412.04467"
    licence: ClassVar[str] = "Apache-2.0"

    contextual: float | int = param(
        10 / 64,
        "is a share of the budget, 0 <= contextual < 1, or a whole number of tokens",
        allowed=lambda value: value >= 0 and (isinstance(value, int) or value < 1),
    )
    cls: bool = param(False)
    append: bool = param(False)

    @property
    def signals(self) -> tuple[str, ...]:
        return ("saliency", "keys", *(("cls", "features", "project") if self.cls else ()))

    def split(self, count: int) -> tuple[int, int]:
        """(dominant, contextual) tokens of a budget T, at least one dominant.

        A share of contextual tokens is floor(share * T + 0.5).
        """
        wanted = self.contextual
        if not isinstance(wanted, int):
            wanted = math.floor(wanted * count + 0.5)
        contextual = min(wanted, count - 1)
        return count - contextual, contextual

    def select(self, stage: Stage) -> Selection:
        signals = stage.tokens.signals
        require_signals(stage, self.name, *self.signals)
        before_projector = signals.offers("features") and signals.offers("project")
        saliency = signal(stage, self.name, "saliency")
        keys = signal(stage, self.name, "keys")
        features = stage.visual_embeds
        if before_projector:
            features = signal(stage, self.name, "features")

        def project(values: Tensor) -> Tensor:
            return signals.project(values.to(features.dtype)) if before_projector else values

        kept, merged, added = [], [], []
        for places, count, all_stay in tile_budgets(stage, self.image_budgets(stage)):
            if all_stay:
                kept.append(places)
                continue
            dominant, contextual = self.split(count)
            with_cls = self.cls and dominant > 1  # a budget of one is a patch
            best, targets, values = visionzip(
                saliency[places],
                keys[places],
                features[places],
                dominant - 1 if with_cls else dominant,
                contextual,
            )
            kept.append(places[best])
            if with_cls:
                image = stage.tokens.visual_index.to(places.device)[stage.prompt.alive[places[:1]]]
                added.append(project(signals.cls.to(features)[image]))
            if contextual and self.append:
                added.append(project(values))
            elif contextual:
                kept.append(places[targets])
                merged.append((places[targets], project(values)))
        return joined_selection(stage, kept, merged, added)
