"""Alignment of visual tokens with the text, and the tokens of highest alignment.

Eq. 3 and 4 of TrimTokenator (arXiv 2509.00320). `alignment` is the measure as it reads. `near_text`
finds the same tokens faster, from one product. Knows no method and no model.
"""

import importlib.util

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.kernels.numerics import full_float32, in_parts

ALIGNMENTS = ("l2", "sq_l2", "cosine", "mi")

POOL = "is a share of the visual tokens"

# How far apart the squared distances of a product and of `alignment` may be, as a share of
# |x|^2 + |t|^2: 256 float32 roundings. At D = 4096 the product was up to 13 roundings off float64,
# `alignment` up to 78.
PRODUCT_ERROR = 256 * 2.0**-24

NO_SKLEARN = "align=mi needs scikit-learn: run pip install 'trimtok[mi]'"

# Tokens around the cut whose distances are computed anew on a GPU, where counting the tokens that
# need it would make the host wait.
BAND = 128


def alignment(
    visual: Tensor, text: Tensor, align: str = "l2", text_mask: Tensor | None = None
) -> Tensor:
    """Eq. 3: (B, N, D) visual and (B, M, D) text -> alpha (B, N), minus the mean distance to text.

    `sq_l2` squares the distance (Appendix B). `cosine` is the mean cosine similarity and `mi` the
    mean mutual information (Table 9). A row of text_mask (B, M) that is all False scores 0
    everywhere.
    """
    if align == "mi":
        pairs = mutual_information(visual, text)
    elif align == "cosine":
        with full_float32():
            pairs = F.normalize(visual, dim=-1) @ F.normalize(text, dim=-1).mT
    else:
        # The largest temporary is (B, N, M). "donot_use": the product form |x|^2 + |t|^2 - 2xt
        # loses digits by cancellation.
        pairs = -torch.cdist(visual, text, compute_mode="donot_use_mm_for_euclid_dist")
        if align == "sq_l2":
            pairs = -pairs.square()
    return _mean_over_text(pairs, text_mask)


def mutual_information(visual: Tensor, text: Tensor, neighbors: int = 3) -> Tensor:
    """I(x_i; t_j) in nats: (B, N, D) and (B, M, D) -> (B, N, M).

    The D coordinates are taken for samples of two variables. scikit-learn (the extra `mi`)
    estimates from nearest neighbours, as in Appendix D: on the CPU, and slow, N x M fits. Raises
    ValueError where scikit-learn is not installed.
    """
    try:
        from sklearn.feature_selection import mutual_info_regression
    except ImportError:
        raise ValueError(NO_SKLEARN) from None
    information = [
        [mutual_info_regression(x.T, word, n_neighbors=neighbors, random_state=0) for word in words]
        for x, words in zip(visual.cpu().numpy(), text.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(information)).to(visual).mT


def check_align(align: str) -> None:
    """Raises ValueError for a measure that this installation cannot take, before any sample."""
    if align == "mi" and importlib.util.find_spec("sklearn") is None:
        raise ValueError(NO_SKLEARN)


def check_pool(pool: float, align: str) -> None:
    """Raises ValueError for a stage 1 that makes no sense."""
    if not 0 < pool <= 1:
        raise ValueError(f"pool {POOL}, 0 < pool <= 1, got {pool}")
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(ALIGNMENTS)}, got {align!r}")


def pool_count(pool: float, num_visual: int, keep: int) -> int:
    """N1, the number of tokens that stage 1 leaves: floor(pool N), never fewer than are kept."""
    # 1e-9: floor(0.29 * 100) must be 29 although the float product is 28.999...
    return max(int(pool * num_visual + 1e-9), keep)


@torch.no_grad()
def near_text(
    visual: Tensor, text: Tensor, count: int, align: str = "l2", text_mask: Tensor | None = None
) -> Tensor:
    """Eq. 4: (B, N, D), (B, M, D) -> (B, count) places of highest `alignment`, ascending.

    Ties go to the lowest place. The distances of all pairs cost more than everything else that a
    pruner does. One product gives them up to rounding. Tokens that rounding could move over the
    cut, in or out, are then measured by `alignment` itself: on a CPU all such tokens, elsewhere the
    BAND nearest to the cut, because the host would have to wait for their number.
    """
    if align not in ("l2", "sq_l2"):
        score = alignment(visual.float(), text.float(), align, text_mask)
        return score.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values

    def nearest(visual: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        return _near_text(visual, text, count, align, mask)

    return in_parts(nearest, 4 * visual.shape[1] * visual.shape[2], visual, text, text_mask)


def _near_text(
    visual: Tensor, text: Tensor, count: int, align: str, text_mask: Tensor | None
) -> Tensor:
    score, error = _by_product(visual, text, align, text_mask)
    ranked = score.sort(dim=1, descending=True)
    cut = ranked.values[:, count - 1 : count]
    cut_place = ranked.indices[:, count - 1 : count]
    gap = (score - cut).abs()
    width = min(BAND, visual.shape[1])
    if visual.device.type == "cpu":
        width = int((gap <= error + error.gather(1, cut_place)).sum(dim=1).max())
    band = gap.sort(dim=1, stable=True).indices[:, :width].sort(dim=1).values
    rows = visual.gather(1, band[..., None].expand(-1, -1, visual.shape[2]))
    exact = alignment(rows.float(), text.float(), align, text_mask)
    rank = exact.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1)
    stays = (score > cut).scatter(1, band, False)
    stays = stays.scatter(1, band, rank < count - stays.sum(dim=1, keepdim=True))
    return stays.int().sort(dim=1, descending=True, stable=True).indices[:, :count]


def _by_product(
    visual: Tensor, text: Tensor, align: str, text_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, N) scores as `alignment` gives them, and (B, N) bounds of their error."""
    # |x - t|^2 = |x|^2 + |t|^2 - 2 x.t cancels where x and t share a large part. A rough mean of
    # the visual tokens is subtracted first to remove this part.
    middle = visual[:, ::16].mean(dim=1, keepdim=True, dtype=torch.float32)
    visual, text = visual - middle, text - middle
    lengths = (
        torch.linalg.vector_norm(visual, dim=-1)[:, :, None].square()
        + text.square().sum(dim=-1)[:, None]
    )
    with full_float32():
        distance = torch.baddbmm(lengths, visual, text.mT, alpha=-2)
    error = lengths.mul_(PRODUCT_ERROR)
    if align == "l2":
        error = error / torch.maximum(distance, error).clamp(min=1e-30).sqrt_()
        distance = distance.clamp_(min=0).sqrt_()
    return -_mean_over_text(distance, text_mask), _mean_over_text(error, text_mask)


def _mean_over_text(pairs: Tensor, text_mask: Tensor | None) -> Tensor:
    """(B, N, M) -> (B, N): the mean over real text tokens; 0 where there are none."""
    if text_mask is None:
        return pairs.mean(-1)
    weight = text_mask.to(pairs.dtype)
    return (pairs * weight[:, None]).sum(-1) / weight.sum(-1).clamp(min=1)[:, None]
