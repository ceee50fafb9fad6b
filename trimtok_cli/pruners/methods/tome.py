"""ToMe: merge the most similar pairs of tokens, again and again, until the budget is met.

Paper: "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461, written from its formulas.
One step deals its T tokens out to side A (places 0, 2, ...) and side B (places 1, 3, ...). Each
token of A finds the token of B most like it. The r best pairs become one token each: the mean of
its members, weighted by how many tokens each stands for.

The published method works inside a vision tower. No paper on multimodal models has published its
ToMe code, and two readings are in use. `ToMe` merges in the tower's layers. `ToMeProjected` repeats
the same matching on the projected tokens in front of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.params import param
from trimtok_cli.pruners.tower import candidates, gather_rows, joined_selection, require_signals
from trimtok_cli.tokens import Selection


@dataclass(frozen=True)
class Matching:
    """One step's pairs, as places among its T tokens.

    src (B, r) goes into dst (B, r). unmerged (B, A - r) is the rest of side A, other (B, T // 2) is
    side B. The step's result is [unmerged | other], T - r tokens, some of `other` merged.
    """

    src: Tensor
    dst: Tensor
    unmerged: Tensor
    other: Tensor

    @property
    def source(self) -> Tensor:
        """(B, T): the row of the result that each of the step's tokens went into."""
        single = self.unmerged.shape[-1]
        pairs = self.other.shape[-1]
        row = self.src.new_empty(*self.src.shape[:-1], single + self.src.shape[-1] + pairs)
        number = torch.arange(single + pairs, device=row.device).expand(*row.shape[:-1], -1)
        row.scatter_(-1, self.unmerged, number[..., :single])
        row.scatter_(-1, self.other, number[..., single:])
        return row.scatter_(-1, self.src, single + self.dst // 2)


def step(metric: Tensor, r: int, protected: int = 0) -> Matching:
    """Bipartite soft matching of (B, T, d) by cosine, Section 3 of the paper: r tokens' partners.

    Without B in, without B out. The first `protected` tokens (1 for CLS) never merge. r is cut to
    (T - protected) // 2; r <= 0 merges nothing. The unmerged tokens of A are listed by falling
    similarity, or in order where tokens are protected, as published. Ties go to the lowest index.
    Raises ValueError for a metric of other dimensions or a negative `protected`.
    """
    if metric.dim() not in (2, 3) or protected < 0:
        raise ValueError(
            f"metric must be (B, T, d) and protected >= 0, got {tuple(metric.shape)} and "
            f"{protected}"
        )
    total = metric.shape[-2]
    device = metric.device
    r = max(min(r, (total - protected) // 2), 0)
    unit = F.normalize(metric.float(), dim=-1, eps=1e-30)
    if total < 2:
        best = unit.new_zeros(unit.shape[:-1])
        target = torch.zeros(unit.shape[:-1], dtype=torch.long, device=device)
    else:
        similarity = unit[..., ::2, :] @ unit[..., 1::2, :].mT
        similarity[..., : (protected + 1) // 2, :] = -torch.inf
        similarity[..., :, : protected // 2] = -torch.inf
        best = similarity.max(dim=-1).values
        target = similarity.argmax(dim=-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    src, unmerged = order[..., :r], order[..., r:]
    if protected:
        unmerged = unmerged.sort(dim=-1).values
    other = torch.arange(1, total, 2, device=device).expand(*metric.shape[:-2], -1)
    return Matching(2 * src, 2 * target.gather(-1, src) + 1, 2 * unmerged, other)


def merge(values: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """values (B, T, F) and size (B, T) -> both for the T - r tokens left, float32.

    size is the number of tokens that each stands for.
    """
    values, size = values.float(), size.float()
    weighted = values * size[..., None]
    row = matching.dst // 2  # in `other`
    # A product in place of a scatter, whose float sums come out in another order at every run on a
    # GPU. into: (B, T // 2, r).
    others = torch.arange(matching.other.shape[-1], device=row.device)
    into = (others[:, None] == row[..., None, :]).float()
    merged = gather_rows(weighted, matching.other) + into @ gather_rows(weighted, matching.src)
    added = (into * size.gather(-1, matching.src)[..., None, :]).sum(-1)
    sizes = size.gather(-1, matching.other) + added
    touched = into.any(-1)[..., None]
    other = gather_rows(values, matching.other)
    merged = torch.where(touched, merged / sizes[..., None], other)
    alone = gather_rows(values, matching.unmerged)
    all_sizes = torch.cat([size.gather(-1, matching.unmerged), sizes], dim=-1)
    return torch.cat([alone, merged], dim=-2), all_sizes


def lowest(index: Tensor, matching: Matching) -> Tensor:
    """index (B, T), the lowest source of each token -> (B, T - r), of each token left."""
    left = index.shape[-1] - matching.src.shape[-1]
    most = index.new_full((*index.shape[:-1], left), torch.iinfo(index.dtype).max)
    return most.scatter_reduce(-1, matching.source, index, "amin")


def parse_r(num_layers: int, r: int | tuple[int, float] | Sequence[int]) -> list[int]:
    """The number of tokens that each layer merges away: r everywhere, linear, or a list.

    (r, inflect) goes linearly from int(r (1 - inflect)) to 2 r minus that: inflect 1 rises, -1
    falls, 0 is constant. A list is filled up with 0.
    """
    if isinstance(r, list):
        return r + [0] * (num_layers - len(r))
    amount, inflect = r if isinstance(r, tuple) else (r, 0)
    first = int(amount * (1 - inflect))
    rise = (2 * amount - 2 * first) / max(num_layers - 1, 1)
    return [int(first + rise * layer) for layer in range(num_layers)]


def r_schedule(num_tokens: int, keep: int, num_layers: int) -> list[int]:
    """The list for an exact budget, as even as can be, smaller numbers first.

    576 to 192 in 23 layers is 7 x 16, 16 x 17. The protected token is not counted. No layer can
    merge away more than half, so earlier layers merge more where they must. Raises ValueError where
    halving in every layer still leaves more than `keep`.
    """
    if keep < 1 or num_tokens < 1 or num_layers < 1:
        raise ValueError(
            f"keep, num_tokens and num_layers must be at least 1, got {keep}, {num_tokens} "
            f"and {num_layers}"
        )
    even, rest = divmod(max(num_tokens - keep, 0), num_layers)
    left = [num_tokens - even * n - max(n - (num_layers - rest), 0) for n in range(num_layers + 1)]
    for n in reversed(range(num_layers)):
        left[n] = min(left[n], 2 * left[n + 1])
    if left[0] < num_tokens:
        raise ValueError(
            f"{num_layers} layers cannot merge {num_tokens} tokens down to {keep}: each can "
            "at best halve them"
        )
    return [before - after for before, after in pairwise(left)]


def merge_down(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matching on the tokens themselves, repeated until `keep` are left.

    tokens (B, N, D) -> index (B, K) int64, ascending, the lowest source of each; values (B, K, D)
    float32, means of all sources; size (B, K). 576 to 128 takes steps of 288, 144 and 16. Between
    the steps tokens stand as published, unmerged ones first. Raises ValueError for keep < 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    values = tokens.float()
    size = tokens.new_ones(tokens.shape[:-1], dtype=torch.float32)
    index = torch.arange(tokens.shape[-2], device=tokens.device).expand(tokens.shape[:-1])
    while values.shape[-2] > keep:
        matching = step(values, values.shape[-2] - keep)
        index = lowest(index, matching)
        values, size = merge(values, size, matching)
    order = index.argsort(dim=-1)
    return index.gather(-1, order), gather_rows(values, order), size.gather(-1, order)


@dataclass(frozen=True)
class ToMeProjected(Pruner):
    """ToMe on the projected tokens of each image. Needs no tower signal.

    A merged token stands at its lowest source, so tokens keep their prompt order (in the tower:
    unmerged ones first). Tokens without a box (newlines) are not merged and count in the budget's
    N, but are dropped, unless the others are too few for it. An image cut in tiles is one image.
    """

    name: ClassVar[str] = "tome-projected"
    paper: ClassVar[str] = "2210.09461"
    licence: ClassVar[str] = "CC BY-NC 4.0"

    def select(self, stage: Stage) -> Selection:
        kept, merged = [], []
        for image, count in self.image_budgets(stage):
            places, all_stay = candidates(stage, image, count)
            if not all_stay:
                index, values, _ = merge_down(stage.visual_embeds[places], count)
                places = places[index]
                merged.append((places, values))
            kept.append(places)
        return joined_selection(stage, kept, merged)


@dataclass(frozen=True)
class ToMe(Pruner):
    """ToMe in each layer of the vision tower, between attention and MLP, CLS protected.

    Layers up to the one that is read merge. The tower runs a second time for it; the time counts as
    pruning, although a model built for ToMe would save the first run. Survivors are projected and
    stand at their lowest source, and so in prompt order (published: unmerged ones first). An image
    must be one tile; tome-projected takes others.

    proportional: attention weighs a token by how many it stands for, as published. By default the
    layers merge as evenly as the budget allows. r sets how many tokens each layer merges instead,
    and keep then has no say: one number for all (LightCompress: 16), with `inflect` rising (1) or
    falling (-1) from layer to layer, or a list, which a short one fills up with zeros (`parse_r`).
    """

    name: ClassVar[str] = "tome"
    where: ClassVar[str] = "vision tower"
    needs: ClassVar[tuple[str, ...]] = ("blocks", "project")
    instead: ClassVar[str] = "use tome-projected"
    paper: ClassVar[str] = "2210.09461"
    licence: ClassVar[str] = "CC BY-NC 4.0"

    proportional: bool = param(True)
    r: int | tuple[int, ...] | None = param(
        None, "is how many tokens each layer merges away, a number or a list", least=0
    )
    inflect: float = param(0.0, "is how the layers' r changes", least=-1, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inflect and not isinstance(self.r, int):
            raise ValueError("inflect changes r from layer to layer: give r as one number")

    @property
    def keep_decides(self) -> bool:
        return self.r is None

    def select(self, stage: Stage) -> Selection:
        require_signals(stage, "tome", "blocks", "project")
        signals = stage.tokens.signals
        kept, merged = [], []
        for places, count in self.image_budgets(stage):
            if self.r is None and count >= len(places):
                kept.append(places)
                continue
            image = int(stage.tokens.visual_index[int(stage.prompt.alive[places[0]])])
            blocks: Any = signals.blocks  # the tower's layers, which are no tensor
            if len(places) != blocks.hidden.shape[1] - blocks.has_cls:
                raise UsageError(
                    "tome needs images of one tile each, not frames of a video: use tome-projected."
                )
            index, features = self._run(blocks, image, count)
            kept.append(places[index])
            merged.append((places[index], signals.project(features)))
        return joined_selection(stage, kept, merged)

    def _schedule(self, num_tokens: int, count: int, num_layers: int) -> list[int]:
        if self.r is not None:
            r = list(self.r) if isinstance(self.r, tuple) else (self.r, self.inflect)
            return parse_r(num_layers, r)[:num_layers]
        try:
            return r_schedule(num_tokens, count, num_layers)
        except ValueError as error:
            raise UsageError(f"tome: {error}; keep more, or use tome-projected.") from None

    def _run(self, blocks: Any, image: int, count: int) -> tuple[Tensor, Tensor]:
        """(K,) lowest sources, ascending, and (K, C) features behind the last layer, for one image.

        CLS is left out.
        """
        hidden = blocks.hidden[image : image + 1]
        first = int(blocks.has_cls)
        size = torch.ones(hidden.shape[:2], device=hidden.device)
        index = torch.arange(hidden.shape[1], device=hidden.device)[None]
        schedule = self._schedule(hidden.shape[1] - first, count, len(blocks.layers))
        for number, r in enumerate(schedule):
            hidden, keys = blocks.attend(number, hidden, size.log() if self.proportional else None)
            if r:
                matching = step(keys, r, protected=first)
                index = lowest(index, matching)
                values, size = merge(hidden, size, matching)
                hidden = values.to(hidden.dtype)
            hidden = blocks.feed(number, hidden)
        order = index[0].argsort()[first:]  # CLS is its own lowest source, place 0
        return index[0][order] - first, hidden[0][order]
