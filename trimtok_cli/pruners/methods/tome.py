"""ToMe: merge the most similar pairs of tokens, again and again, until the budget is met.

Paper: "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461, written from its formulas.
T tokens of one step are dealt out alternately to sides A (places 0, 2, ...) and B (1, 3, ...); each
A finds the B that it is most like; the r best such pairs become one token, the mean of its members
weighted by how many tokens each stands for.

The published method works inside a vision tower. No paper on multimodal models has published its
ToMe code; there are two readings in use. `ToMe` merges in the tower's layers; `ToMeProjected`
repeats the same matching on the projected tokens in front of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

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
    """One step's pairs, as places among its T tokens: src (B, r) goes into dst (B, r); unmerged (B,
    A - r), other (B, T // 2).

    The step's result is [unmerged | other], T - r tokens: `other` is all of side B, some of it
    merged.
    """

    src: Tensor
    dst: Tensor
    unmerged: Tensor
    other: Tensor

    @property
    def source(self) -> Tensor:
        """(B, T): the row of the result that each of the step's tokens went into."""
        single, pairs = self.unmerged.shape[-1], self.other.shape[-1]
        row = self.src.new_empty(*self.src.shape[:-1], single + self.src.shape[-1] + pairs)
        number = torch.arange(single + pairs, device=row.device).expand(*row.shape[:-1], -1)
        row.scatter_(-1, self.unmerged, number[..., :single]).scatter_(
            -1, self.other, number[..., single:]
        )
        return row.scatter_(-1, self.src, single + self.dst // 2)


def step(metric: Tensor, r: int, protected: int = 0) -> Matching:
    """Bipartite soft matching of (B, T, d) by cosine: which r tokens go where. Without B in,
    without B out.

    The first `protected` tokens (1 for CLS) never merge. r is cut to (T - protected) // 2; r <= 0
    merges nothing. Section 3 of the paper. The unmerged of A are listed by falling similarity, or
    in order where tokens are protected, as published; ties go to the lowest index. Raises
    ValueError for a metric of other dimensions or a negative `protected`.
    """
    if metric.dim() not in (2, 3) or protected < 0:
        raise ValueError(
            f"metric must be (B, T, d) and protected >= 0, got {tuple(metric.shape)} and "
            f"{protected}"
        )
    total, device = metric.shape[-2], metric.device
    r = max(min(r, (total - protected) // 2), 0)
    unit = F.normalize(metric.float(), dim=-1, eps=1e-30)
    if total < 2:
        best, target = (
            unit.new_zeros(unit.shape[:-1]),
            torch.zeros(unit.shape[:-1], dtype=torch.long, device=device),
        )
    else:
        similarity = unit[..., ::2, :] @ unit[..., 1::2, :].mT
        similarity[..., : (protected + 1) // 2, :] = -torch.inf
        similarity[..., :, : protected // 2] = -torch.inf
        best, target = similarity.max(dim=-1).values, similarity.argmax(dim=-1)
    order = best.sort(dim=-1, descending=True, stable=True).indices
    src, unmerged = order[..., :r], order[..., r:]
    if protected:
        unmerged = unmerged.sort(dim=-1).values
    other = torch.arange(1, total, 2, device=device).expand(*metric.shape[:-2], -1)
    return Matching(2 * src, 2 * target.gather(-1, src) + 1, 2 * unmerged, other)


def merge(values: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """values (B, T, F) and size (B, T), how many tokens each stands for -> both for the T - r
    tokens left, float32.
    """
    weighted, size = values.float() * size.float()[..., None], size.float()
    row = matching.dst // 2  # which of `other`
    # A product and not a scatter: float sums by scatter come out in another order at every run on a
    # GPU.
    into = (
        torch.arange(matching.other.shape[-1], device=row.device)[:, None] == row[..., None, :]
    ).float()  # (B, T // 2, r)
    merged = gather_rows(weighted, matching.other) + into @ gather_rows(weighted, matching.src)
    sizes = size.gather(-1, matching.other) + (
        into * size.gather(-1, matching.src)[..., None, :]
    ).sum(-1)
    alone, touched = gather_rows(values.float(), matching.unmerged), into.any(-1)[..., None]
    merged = torch.where(
        touched, merged / sizes[..., None], gather_rows(values.float(), matching.other)
    )
    return torch.cat([alone, merged], dim=-2), torch.cat(
        [size.gather(-1, matching.unmerged), sizes], dim=-1
    )


def lowest(index: Tensor, matching: Matching) -> Tensor:
    """index (B, T), the lowest source of each token -> (B, T - r), of each token left."""
    left = index.shape[-1] - matching.src.shape[-1]
    most = index.new_full((*index.shape[:-1], left), torch.iinfo(index.dtype).max)
    return most.scatter_reduce(-1, matching.source, index, "amin")


def parse_r(num_layers: int, r: int | tuple[int, float] | Sequence[int]) -> list[int]:
    """How many tokens each layer merges away: r everywhere; (r, inflect) linear; a list filled up
    with 0.

    (r, inflect) goes from int(r (1 - inflect)) to 2 r minus that: inflect 1 rises, -1 falls, 0 is
    constant.
    """
    if isinstance(r, list):
        return r + [0] * (num_layers - len(r))
    amount, inflect = r if isinstance(r, tuple) else (r, 0)
    first = int(amount * (1 - inflect))
    rise = (2 * amount - 2 * first) / max(num_layers - 1, 1)
    return [int(first + rise * layer) for layer in range(num_layers)]


def r_schedule(num_tokens: int, keep: int, num_layers: int) -> list[int]:
    """The list for an exact budget, as even as can be, the smaller numbers first: 576 to 192 in 23
    layers is 7 x 16, 16 x 17.

    Tokens without the protected one. As no layer can merge away more than half, earlier layers do
    more where they must. Raises ValueError where even halving in every layer leaves more than
    `keep`.
    """
    if keep < 1 or num_tokens < 1 or num_layers < 1:
        raise ValueError(
            f"keep, num_tokens and num_layers must be at least 1, got {keep}, {num_tokens} "
            f"and {num_layers}"
        )
    each, more = divmod(max(num_tokens - keep, 0), num_layers)
    left = [num_tokens - each * n - max(n - (num_layers - more), 0) for n in range(num_layers + 1)]
    for n in reversed(range(num_layers)):
        left[n] = min(left[n], 2 * left[n + 1])
    if left[0] < num_tokens:
        raise ValueError(
            f"{num_layers} layers cannot merge {num_tokens} tokens down to {keep}: each can "
            "at best halve them"
        )
    return [before - after for before, after in pairwise(left)]


def merge_down(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matching on the tokens themselves, repeated until `keep` are left: 576 to 128 in steps of
    288, 144 and 16.

    tokens (B, N, D) -> index (B, K) int64, ascending, the lowest source of each; values (B, K, D)
    float32, means of all sources; size (B, K). Between the steps tokens stand as published,
    unmerged ones first. Raises ValueError for keep < 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    values, size = tokens.float(), tokens.new_ones(tokens.shape[:-1], dtype=torch.float32)
    index = torch.arange(tokens.shape[-2], device=tokens.device).expand(tokens.shape[:-1])
    while values.shape[-2] > keep:
        matching = step(values, values.shape[-2] - keep)
        index = lowest(index, matching)
        values, size = merge(values, size, matching)
    order = index.argsort(dim=-1)
    return index.gather(-1, order), gather_rows(values, order), size.gather(-1, order)


@dataclass(frozen=True)
class ToMeProjected(Pruner):
    """ToMe on the projected tokens of each image, until its budget is met. It needs nothing of the
    vision tower.

    A merged token stands at its lowest source, so tokens keep their prompt order (in the tower:
    unmerged ones first). Tokens that show no place (newlines) are not merged and count in the
    budget's N, but are dropped, unless the others are too few for it. An image cut in tiles is one
    image.
    """

    name: ClassVar[str] = "tome-projected"
    paper: ClassVar[str] = "2210.09461"
    licence: ClassVar[str] = "CC BY-NC 4.0"

    def select(self, stage: Stage) -> Selection:
        kept, merged = [], []
        for rows, count in self.image_budgets(stage):
            rows, all_stay = candidates(stage, rows, count)
            if not all_stay:
                index, values, _ = merge_down(stage.visual_embeds[rows], count)
                rows = rows[index]
                merged.append((rows, values))
            kept.append(rows)
        return joined_selection(stage, kept, merged)


@dataclass(frozen=True)
class ToMe(Pruner):
    """ToMe in the vision tower: in each layer up to the one that is read, between attention and
    MLP, CLS protected.

    The tower runs once more for it, merging; the time counts as pruning, although a model that did
    nothing else would save the first run. proportional: attention weighs a token by how many it
    stands for, as published. Survivors are projected, stand at their lowest source, and so are in
    prompt order (published: unmerged ones first). Needs an image that is one tile: for others there
    is tome-projected.

    By default the layers merge away as evenly as the budget allows. r: what each merges away
    instead, keep then having no say: one number for all (LightCompress: 16), with `inflect` rising
    (1) or falling (-1) from layer to layer, or a list, which ends in zeros where it is short
    (`parse_r`).
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
        signals, kept, merged = stage.tokens.signals, [], []
        for rows, count in self.image_budgets(stage):
            if self.r is None and count >= len(rows):
                kept.append(rows)
                continue
            image = int(stage.tokens.visual_index[int(stage.prompt.alive[rows[0]])])
            if len(rows) != signals.blocks.hidden.shape[1] - signals.blocks.has_cls:
                raise UsageError(
                    "tome needs images of one tile each, not frames of a video: use tome-projected."
                )
            index, features = self._run(signals.blocks, image, count)
            kept.append(rows[index])
            merged.append((rows[index], signals.project(features)))
        return joined_selection(stage, kept, merged)

    def _schedule(self, num_tokens: int, count: int, num_layers: int) -> list[int]:
        if self.r is not None:
            return parse_r(
                num_layers, list(self.r) if isinstance(self.r, tuple) else (self.r, self.inflect)
            )[:num_layers]
        try:
            return r_schedule(num_tokens, count, num_layers)
        except ValueError as error:
            raise UsageError(f"tome: {error}; keep more, or use tome-projected.") from None

    def _run(self, blocks, image: int, count: int) -> tuple[Tensor, Tensor]:
        """(K,) lowest sources, ascending, and (K, C) features of one image's tokens after the last
        layer, CLS left out.
        """
        hidden, first = blocks.hidden[image : image + 1], int(blocks.has_cls)
        size = torch.ones(hidden.shape[:2], device=hidden.device)
        index = torch.arange(hidden.shape[1], device=hidden.device)[None]
        for number, r in enumerate(
            self._schedule(hidden.shape[1] - first, count, len(blocks.layers))
        ):
            hidden, keys = blocks.attend(number, hidden, size.log() if self.proportional else None)
            if r:
                matching = step(keys, r, protected=first)
                index = lowest(index, matching)
                values, size = merge(hidden, size, matching)
                hidden = values.to(hidden.dtype)
            hidden = blocks.feed(number, hidden)
        order = index[0].argsort()[first:]  # CLS is its own lowest source, place 0
        return index[0][order] - first, hidden[0][order]
