"""SparseVLM (v1.5): at three depths, keep visual tokens that visual words attend to, merge others.

Paper: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv
2410.04417. Text raters are the words that the visual tokens, as they enter the language model,
match more than the average word. A visual token's score is the raters' attention to it in the layer
that has just run. The better part of the pruned tokens is clustered (DPC-KNN, on that layer's
outputs), and each cluster's mean joins the sequence as a token behind the last kept one.

Differences from the published code: the random 1e-6 that it adds to densities, without a seed, is
left out; equal densities rank by lowest index (the stored vectors, made with it, match). Ties go to
the lowest index. A budget that is not below the number of tokens keeps them as they are (the
published code still swaps one token for its copy). Arithmetic is float32. Where no word is above
the average (one word), all words rate. Version 2 (bias-divided attention, 14 heads, no recycling)
and the rank-based counts are not here.

The words are all text rows behind the first visual row: question and template behind one image,
with several images also the text between them. Without any text there, the words are all text.

Several images: as in the published code the visual tokens of a prompt are one pool, and merged
tokens belong to no image. The pool gets the sum of the images' budgets; `budget`, by which images
share it, has no say.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage, top_places
from trimtok_cli.pruners.layerwise import (
    COUNTS,
    LAYER_LIST,
    dense_budgets,
    layers_within,
    moved_layers,
    scaled_layers,
)
from trimtok_cli.pruners.params import param
from trimtok_cli.tokens import Selection

# Layers of 32 in front of which tokens leave: behind the published 2, 6, 15.
LAYERS = (3, 7, 16)

DENSE = 576

# Counts for DENSE tokens: the budget, the tokens that each stage keeps, and the tokens that it
# leaves with merged ones. The first and the last line are not published.
PUBLISHED = (
    (0, (0, 0, 0), (0, 0, 0)),
    (64, (66, 30, 17), (82, 32, 18)),
    (96, (238, 48, 26), (249, 55, 27)),
    (128, (303, 110, 36), (312, 117, 39)),
    (192, (300, 200, 110), (309, 204, 113)),
    (576, (576, 576, 576), (576, 576, 576)),
)


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """(N, D) visual and (M, D) text input embeddings -> (R,) ascending places of the raters.

    m = mean over visual tokens of softmax over text of (visual text^T), unscaled and not
    normalised. Raters are above the mean of m, or all text where none is. Raises ValueError for
    empty or unequal shapes.
    """
    if (
        visual.dim() != 2
        or text.dim() != 2
        or visual.shape[1] != text.shape[1]
        or not len(visual)
        or not len(text)
    ):
        raise ValueError(
            f"visual must be (N, D) and text (M, D), not empty, got {tuple(visual.shape)} "
            f"and {tuple(text.shape)}"
        )
    share = (visual.float() @ text.float().mT).softmax(-1).mean(0)
    above = (share > share.mean()).nonzero().squeeze(1)
    return above if len(above) else torch.arange(len(text), device=text.device)


def rater_score(attention: Tensor) -> Tensor:
    """(H, R, N) attention of the raters' rows -> (N,) float32, the mean over heads and raters."""
    return attention.float().mean(0).mean(0)


def clusters(current: int, kept: int) -> int:
    """The number of merged tokens that the `current - kept` pruned ones of a stage become."""
    return _recycled(current - kept) // 10 + 1 if current > kept else 0


def _recycled(pruned: int) -> int:
    """The number of the pruned tokens that are merged: the published int(0.3 P) + 1."""
    return int(0.3 * pruned) + 1


def recycle(pruned: Tensor, score: Tensor, count: int) -> Tensor:
    """(P, D) pruned tokens in prompt order and scores (P,) -> (count, D) float32 merged tokens.

    The int(0.3 P) + 1 tokens with the highest scores are clustered, in the order of their scores.
    """
    order = score.float().sort(descending=True, stable=True).indices[: _recycled(len(pruned))]
    return merged(pruned[order], count)


def merged(tokens: Tensor, count: int) -> Tensor:
    """(P, D) tokens -> (count, D) float32, the means of DPC-KNN clusters, best centre first.

    d = distance / sqrt(D). density = exp(-mean of d^2 to the `count` nearest, oneself included).
    delta = d to the nearest denser token, for the densest the largest d of all. Centres have the
    highest density * delta. Raises ValueError unless 0 <= count <= P.
    """
    if not 0 <= count <= len(tokens):
        raise ValueError(f"{len(tokens)} tokens cannot be merged into {count}")
    tokens = tokens.float()
    places = torch.arange(len(tokens), device=tokens.device)
    if not count:
        return tokens[:0]
    # "donot_use": the product form loses digits by cancellation, and equal tokens must be at
    # distance 0.
    distance = (
        torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
        / tokens.shape[1] ** 0.5
    )
    density = (-distance.topk(count, largest=False).values.square().mean(-1)).exp()
    denser = density > density[:, None]
    denser |= (density == density[:, None]) & (places < places[:, None])
    delta = distance.where(denser, distance.max()).amin(-1)
    centres = (density * delta).sort(descending=True, stable=True).indices[:count]
    nearest = distance[centres].argmin(0)
    nearest[centres] = torch.arange(count, device=tokens.device)
    member = F.one_hot(nearest, count).float()
    return (member / (member.sum(0) + 1e-6)).mT @ tokens


def stage_aims(num_dense: int, target: int, counts: str = "final") -> tuple[int, int, int]:
    """The numbers of tokens that the three stages aim at, for N dense tokens.

    Published shares of N are interpolated linearly and rounded half up. `layer-mean`: the tokens
    that each stage keeps, merged ones not counted, looked up by the budget's share of N (published
    for 192, 128, 96 and 64 of 576). `final`: the tokens that each stage leaves, merged ones
    counted, looked up by the last stage's share, so that the last is `target`.
    """
    if target >= num_dense:
        return (num_dense,) * 3
    points = [
        (budget, kept) if counts == "layer-mean" else (left[2], left)
        for budget, kept, left in PUBLISHED
    ]
    # Shares stand over the common denominator N * 576: whole numbers, no rounding.
    at = target * DENSE
    aims = []
    (low, under), (high, over) = next(
        pair for pair in pairwise(points) if at < pair[1][0] * num_dense
    )
    run = high * num_dense - low * num_dense
    for start, end in zip(under, over, strict=True):
        # start + (end - start) * (at - low N) / run is the value out of 576; times N / 576,
        # rounded.
        top = (start * run + (end - start) * (at - low * num_dense)) * num_dense
        aims.append((2 * top + DENSE * run) // (2 * DENSE * run))
    least = target if counts == "final" else 1
    first, second, third = (min(max(aim, least), num_dense) for aim in aims)
    return first, second, third


def stage_counts(current: int, aim: int, counts: str = "final") -> tuple[int, int]:
    """(kept, merged): how many of a stage's `current` tokens stay, and how many merged are added.

    `final`: the sum is exactly the aim, at most half of it merged; the published formula alone
    would exceed small aims.
    """
    if aim >= current:
        return current, 0
    if counts == "layer-mean":
        return aim, clusters(current, aim)
    kept = aim
    while kept + min(clusters(current, kept), aim // 2) > aim:
        kept -= 1
    return kept, aim - kept


@dataclass(frozen=True)
class SparseVLM(Pruner):
    """The paper's pruner.

    counts: with `final`, keep counts the tokens that the last stage leaves, merged ones included;
    with `layer-mean`, keep names a published list. The published lists count each layer's output in
    a model of 32 layers: 192, 128 and 64 of 576 are means of 192.0, 128.6 and 64.8. Counted by the
    tokens that each layer processes, as in the run's record, the means are 206.5, 145.4 and 82.3. A
    model of another depth keeps the lists, and its mean moves with the rounding of its layers.
    layers: the three layers in front of which tokens leave; the published code has [3, 7, 16]
    whatever the depth, the default scales them.
    """

    name: ClassVar[str] = "sparsevlm"
    where: ClassVar[str] = "layers"
    needs: ClassVar[tuple[str, ...]] = ("text", "attention")
    paper: ClassVar[str] = "2410.04417"
    licence: ClassVar[str] = "Apache-2.0"

    counts: str = param("final", choices=COUNTS)
    layers: tuple[int, ...] | None = param(None, LAYER_LIST, least=1, order="rising")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and len(self.layers) != len(LAYERS):
            raise ValueError(f"layers must be three, one for each stage, got {list(self.layers)}")

    def stages(self, num_layers: int) -> tuple[int, ...]:
        if self.layers is None:
            return scaled_layers(LAYERS, num_layers)
        return layers_within("sparsevlm", f"layers={list(self.layers)}", self.layers, num_layers)

    def select(self, stage: Stage) -> Selection:
        layers, number = moved_layers(stage, self.stages(stage.num_layers))
        visual = stage.prompt.visual
        target = sum(count for _, count in dense_budgets(self, stage))
        aims = stage_aims(len(stage.tokens), target, self.counts)
        kept, added = stage_counts(len(visual), aims[len(aims) - len(layers) + number], self.counts)
        places = torch.arange(len(visual), device=visual.device)
        if kept == len(visual):
            return Selection(places)
        words = _words(stage)
        raters = words[
            text_raters(stage.tokens.embeds.to(stage.prompt.embeds), stage.prompt.embeds[words])
        ]
        score = rater_score(stage.attention(raters, stage.layer - 1)[..., visual])
        chosen = top_places(score, [(places, kept)])
        rest = places[~torch.isin(places, chosen)]
        return Selection(
            chosen, extra=recycle(stage.hidden[visual[rest]], score[rest], added) if added else None
        )


def _words(stage: Stage) -> Tensor:
    """(M,) rows of text behind the first visual row; all rows of text where none is behind it."""
    text = torch.ones(len(stage.hidden), dtype=torch.bool, device=stage.hidden.device)
    text[stage.prompt.visual] = False
    behind = text.clone()
    behind[: int(stage.prompt.visual[0])] = False
    return (behind if behind.any() else text).nonzero().squeeze(1)
