"""TrimTokenator: keep visual tokens that are near the text, then those that differ most from each other.

Paper: "TrimTokenator: Towards Adaptive Visual Token Pruning for Large Multimodal Models", arXiv 2509.00320. No official
code is published; this follows the equations. N visual tokens, M text tokens, N1 = floor(pool N) left by stage 1 (never
fewer than the budget N2 = keep), all arithmetic in float32.

Decided where the paper is silent: the text is the user's own words; ties go to the lowest index; kept tokens stand in
prompt order; each image has a budget of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.base import Pruner, Stage, padded, select_alike
from trimtok_cli.tokens import Selection

ALIGNMENTS, DIVERSITIES = ("l2", "sq_l2", "cosine", "mi"), ("cosine", "l2")
ORDERS = ("align-first", "diversity-first", "align-only", "diversity-only")  # the paper's, and Table 6's ablations 1, 2, 3
ROUNDING = 2e-7  # of a mean of cosines in float32


def trimtokenator(
    visual: Tensor, text: Tensor, keep: int, *, pool: float = 0.8, align: str = "l2", diversity: str = "cosine",
    text_mask: Tensor | None = None, order: str = "align-first",
) -> Tensor:  # fmt: skip
    """(B, N, D) visual and (B, M, D) text embeddings -> (B, keep) int64 indices, ascending.

    text_mask (B, M) is True at real tokens where texts are padded to one length. `keep` >= N keeps all. Unbatched (N, D)
    and (M, D) give (keep,). Raises ValueError for arguments that make no sense.
    """
    _check(visual, text, keep, pool, align, diversity, text_mask, order)
    if keep >= visual.shape[-2]:
        return torch.arange(visual.shape[-2], device=visual.device).expand(visual.shape[:-1])
    options = {"pool": pool, "align": align, "diversity": diversity, "text_mask": text_mask, "order": order}
    return greedy_order(visual, text, keep, **options).sort(-1).values


def greedy_order(
    visual: Tensor, text: Tensor, keep: int, *, pool: float = 0.8, align: str = "l2", diversity: str = "cosine",
    text_mask: Tensor | None = None, order: str = "align-first",
) -> Tensor:  # fmt: skip
    """The same tokens as `trimtokenator`, in the order in which its last stage takes them."""
    _check(visual, text, keep, pool, align, diversity, text_mask, order)
    if visual.dim() == 2:
        mask = None if text_mask is None else text_mask[None]
        options = {"pool": pool, "align": align, "diversity": diversity, "text_mask": mask, "order": order}
        return greedy_order(visual[None], text[None], keep, **options)[0]
    visual, text = visual.float(), text.float()
    num_visual = visual.shape[1]
    keep = min(keep, num_visual)
    # 1e-9: floor(0.29 * 100) must be 29 although the float product is 28.999...
    num_pool = max(int(pool * num_visual + 1e-9), keep)

    def nearest(candidates: Tensor, count: int) -> Tensor:
        score = alignment(visual, text, align, text_mask).gather(1, candidates)
        return candidates.gather(1, score.sort(dim=1, descending=True, stable=True).indices[:, :count])

    def most_diverse(candidates: Tensor, count: int) -> Tensor:
        rows = visual.gather(1, candidates[..., None].expand(-1, -1, visual.shape[2]))
        return candidates.gather(1, repmax(rows, count, diversity))

    every = torch.arange(num_visual, device=visual.device).expand(len(visual), -1)
    first, last = (nearest, most_diverse) if order.startswith("align") else (most_diverse, nearest)
    if order.endswith("only"):
        return first(every, keep)
    left = first(every, num_pool).sort(dim=1).values if num_pool < num_visual else every
    return last(left, keep)


def alignment(visual: Tensor, text: Tensor, align: str = "l2", text_mask: Tensor | None = None) -> Tensor:
    """Eq. 3, alpha (B, N) of visual (B, N, D) and text (B, M, D): minus the mean distance to the text tokens.

    `sq_l2` squares the distance (Appendix B); `cosine` takes the mean cosine similarity instead, `mi` the mean mutual
    information (Table 9). A row of text_mask that is all False scores 0 everywhere.
    """
    if align == "mi":
        each = mutual_information(visual, text)
    elif align == "cosine":
        each = F.normalize(visual, dim=-1) @ F.normalize(text, dim=-1).mT
    else:
        # The largest temporary is (B, N, M). "donot_use": the product form |x|^2 + |t|^2 - 2xt loses digits by cancellation.
        each = -torch.cdist(visual, text, compute_mode="donot_use_mm_for_euclid_dist")
        if align == "sq_l2":
            each = -each.square()
    if text_mask is None:
        return each.mean(-1)
    weight = text_mask.to(each.dtype)
    return (each * weight[:, None]).sum(-1) / weight.sum(-1).clamp(min=1)[:, None]


def mutual_information(visual: Tensor, text: Tensor, neighbors: int = 3) -> Tensor:
    """I(x_i; t_j) in nats, (B, N, M) of (B, N, D) and (B, M, D): the D coordinates are samples of two variables.

    Estimated from nearest neighbours by scikit-learn (the extra `mi`), as in Appendix D; on the CPU, and slow: N x M fits.
    """
    try:
        from sklearn.feature_selection import mutual_info_regression
    except ImportError:
        raise ValueError("align=mi needs scikit-learn: run pip install 'trimtok[mi]'") from None
    found = [
        [mutual_info_regression(x.T, word, n_neighbors=neighbors, random_state=0) for word in words]
        for x, words in zip(visual.cpu().numpy(), text.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(found)).to(visual).mT


def repmax(visual: Tensor, keep: int, diversity: str = "cosine") -> Tensor:
    """Greedy RepMax, Eq. 8-16: (B, N1, D) -> (B, keep) indices in the order of selection.

    Eq. 13's 1/(t-1) is a positive constant of each step and is left out. `l2` minimises minus the distance (Table 10).
    Nothing leaves the device inside the loop.
    """
    if diversity == "cosine":
        # A token of length zero is similar to nothing: its similarities are 0, not NaN.
        unit = F.normalize(visual, dim=-1, eps=1e-30)
        similarity = unit @ unit.mT  # C, (B, N1, N1)
    else:
        similarity = -torch.cdist(visual, visual, compute_mode="donot_use_mm_for_euclid_dist")
    order = torch.empty(len(visual), keep, dtype=torch.long, device=visual.device)
    mean = similarity.mean(dim=2)  # Eq. 9
    # Eq. 10. Two tokens alone are always as far from each other: that tie, too, goes to the lowest index and not to rounding.
    tied = mean <= mean.amin(dim=1, keepdim=True) + (ROUNDING if diversity == "cosine" else 0.0)
    chosen = tied.int().argmax(dim=1)
    # From here on the diagonal is +inf: adding row s to sigma also takes s out of the race (Eq. 11, 15).
    similarity.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    sigma = torch.zeros_like(similarity[:, 0])
    rows = torch.arange(len(visual), device=visual.device)
    for t in range(keep):
        if t:
            chosen = sigma.argmin(dim=1)  # Eq. 14
        order[:, t] = chosen
        sigma += similarity[rows, chosen]  # Eq. 12, 16
    return order


def _check(visual, text, keep, pool, align, diversity, text_mask, order) -> None:
    if visual.dim() not in (2, 3) or text.dim() != visual.dim():
        raise ValueError(
            f"visual and text must both be (B, N, D) or both (N, D), got {tuple(visual.shape)} and {tuple(text.shape)}"
        )
    if visual.shape[-1] != text.shape[-1] or visual.shape[:-2] != text.shape[:-2]:
        raise ValueError(f"visual {tuple(visual.shape)} and text {tuple(text.shape)} must agree in batch and width")
    if text_mask is not None and text_mask.shape != text.shape[:-1]:
        raise ValueError(f"text_mask must be {tuple(text.shape[:-1])}, got {tuple(text_mask.shape)}")
    if keep < 1 or visual.shape[-2] < 1 or text.shape[-2] < 1:
        raise ValueError(f"keep, N and M must be at least 1, got {keep}, {visual.shape[-2]} and {text.shape[-2]}")
    if not 0 < pool <= 1:
        raise ValueError(f"pool is a share of the visual tokens, 0 < pool <= 1, got {pool}")
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(ALIGNMENTS)}, got {align!r}")
    if diversity not in DIVERSITIES:
        raise ValueError(f"diversity must be one of {', '.join(DIVERSITIES)}, got {diversity!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")


@dataclass(frozen=True)
class TrimTokenator(Pruner):
    """The paper's pruner. pool: share that stage 1 leaves; align, diversity: the measures of the two stages.

    text: `instruction` compares with the user's own words, `prompt` with every text token of the prompt. order: which stage
    comes first, or either alone.
    """

    needs: ClassVar[tuple[str, ...]] = ("text",)
    paper: ClassVar[str] = "2509.00320"

    pool: float = 0.8
    align: str = "l2"
    diversity: str = "cosine"
    text: str = "instruction"
    order: str = "align-first"

    def __post_init__(self) -> None:
        if not 0 < self.pool <= 1:
            raise ValueError(f"pool is a share of the visual tokens, 0 < pool <= 1, got {self.pool}")
        for name, known in (
            ("align", ALIGNMENTS),
            ("diversity", DIVERSITIES),
            ("text", ("instruction", "prompt")),
            ("order", ORDERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """Every image of every sample at once, grouped by token count and budget: one greedy loop serves a whole batch."""

        def choose(images: list[tuple[Stage, Tensor]], keep: int) -> Tensor:
            visual = torch.stack([stage.visual_embeds[rows] for stage, rows in images])
            texts, mask = padded([stage.text(self.text) for stage, _ in images])
            return trimtokenator(
                visual, texts, keep, pool=self.pool, align=self.align, diversity=self.diversity, text_mask=mask, order=self.order
            )

        return select_alike(self, stages, choose)
