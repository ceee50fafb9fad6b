"""How near visual tokens are to the text, Eq. 3 of TrimTokenator (arXiv 2509.00320), and the
nearest of them.

`alignment` is the measure as it reads. `near_text` keeps the same tokens with most distances taken
from one product.
"""

import importlib.util

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.pruners.kernels.numerics import full_float32, in_parts

ALIGNMENTS = ("l2", "sq_l2", "cosine", "mi")

POOL = "is a share of the visual tokens"

# Relative to |x|^2 + |t|^2, how far apart a squared distance from a product and the one of
# `alignment` may be: 256 float32 roundings. Measured against float64 at D = 4096: 13 off for the
# product, 78 for the other.
PRODUCT_ERROR = 256 * 2.0**-24

NO_SKLEARN = "align=mi needs scikit-learn: run pip install 'trimtok[mi]'"

# tokens around the cut whose distances are computed anew where looking how many need it would cost
# a wait
BAND = 128


def alignment(
    visual: Tensor, text: Tensor, align: str = "l2", text_mask: Tensor | None = None
) -> Tensor:
    """Eq. 3, alpha (B, N) of visual (B, N, D) and text (B, M, D): minus the mean distance to the
    text tokens.

    `sq_l2` squares the distance (Appendix B); `cosine` takes the mean cosine similarity instead,
    `mi` the mean mutual information (Table 9). A row of text_mask that is all False scores 0
    everywhere.
    """
    if align == "mi":
        each = mutual_information(visual, text)
    elif align == "cosine":
        with full_float32():
            each = F.normalize(visual, dim=-1) @ F.normalize(text, dim=-1).mT
    else:
        # The largest temporary is (B, N, M). "donot_use": the product form |x|^2 + |t|^2 - 2xt
        # loses digits by cancellation.
        each = -torch.cdist(visual, text, compute_mode="donot_use_mm_for_euclid_dist")
        if align == "sq_l2":
            each = -each.square()
    return _over_text(each, text_mask)


def mutual_information(visual: Tensor, text: Tensor, neighbors: int = 3) -> Tensor:
    """I(x_i; t_j) in nats, (B, N, M) of (B, N, D) and (B, M, D): the D coordinates are samples of
    two variables.

    Estimated from nearest neighbours by scikit-learn (the extra `mi`), as in Appendix D; on the
    CPU, and slow: N x M fits.
    """
    try:
        from sklearn.feature_selection import mutual_info_regression
    except ImportError:
        raise ValueError(NO_SKLEARN) from None
    found = [
        [mutual_info_regression(x.T, word, n_neighbors=neighbors, random_state=0) for word in words]
        for x, words in zip(visual.cpu().numpy(), text.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(found)).to(visual).mT


def check_align(align: str) -> None:
    """ValueError for a measure that this installation cannot take: said once, not for every
    sample.
    """
    if align == "mi" and importlib.util.find_spec("sklearn") is None:
        raise ValueError(NO_SKLEARN)


def check_pool(pool: float, align: str) -> None:
    """ValueError for a first stage that makes no sense."""
    if not 0 < pool <= 1:
        raise ValueError(f"pool {POOL}, 0 < pool <= 1, got {pool}")
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(ALIGNMENTS)}, got {align!r}")


def pool_count(pool: float, num_visual: int, keep: int) -> int:
    """How many tokens the first stage leaves: floor(pool N), never fewer than are kept."""
    # 1e-9: floor(0.29 * 100) must be 29 although the float product is 28.999...
    return max(int(pool * num_visual + 1e-9), keep)


@torch.no_grad()
def near_text(
    visual: Tensor, text: Tensor, count: int, align: str = "l2", text_mask: Tensor | None = None
) -> Tensor:
    """(B, N, D) and (B, M, D) -> (B, count) ascending places of the tokens of highest `alignment`,
    ties to the lowest place.

    Distances of all pairs cost more than all else that a pruner does. One product gives them too,
    up to rounding; the tokens that rounding could bring over the cut, in or out, are measured again
    by `alignment` itself: on a CPU all of them, elsewhere the BAND nearest to the cut, as how many
    they are would have to be waited for.
    """
    if align not in ("l2", "sq_l2"):
        score = alignment(visual.float(), text.float(), align, text_mask)
        return score.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values

    def nearest(*part):
        return _near_text(*part[:2], count, align, part[2])

    return in_parts(nearest, 4 * visual.shape[1] * visual.shape[2], visual, text, text_mask)


def _near_text(
    visual: Tensor, text: Tensor, count: int, align: str, text_mask: Tensor | None
) -> Tensor:
    score, error = _by_product(visual, text, align, text_mask)
    cut, place = (each[:, count - 1 : count] for each in score.sort(dim=1, descending=True))
    gap = (score - cut).abs()
    width = min(BAND, visual.shape[1])
    if visual.device.type == "cpu":
        width = int((gap <= error + error.gather(1, place)).sum(dim=1).max())
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
    # |x - t|^2 = |x|^2 + |t|^2 - 2 x.t loses what x and t have in common: it is taken off first,
    # roughly, by a mean.
    middle = visual[:, ::16].mean(dim=1, keepdim=True, dtype=torch.float32)
    visual, text = visual - middle, text - middle
    lengths = (
        torch.linalg.vector_norm(visual, dim=-1)[:, :, None].square()
        + text.square().sum(dim=-1)[:, None]
    )
    with full_float32():
        each = torch.baddbmm(lengths, visual, text.mT, alpha=-2)
    error = lengths.mul_(PRODUCT_ERROR)
    if align == "l2":
        error = error / torch.maximum(each, error).clamp(min=1e-30).sqrt_()
        each = each.clamp_(min=0).sqrt_()
    return -_over_text(each, text_mask), _over_text(error, text_mask)


def _over_text(each: Tensor, text_mask: Tensor | None) -> Tensor:
    """(B, N, M) -> (B, N): the mean over real text tokens; 0 where there are none."""
    if text_mask is None:
        return each.mean(-1)
    weight = text_mask.to(each.dtype)
    return (each * weight[:, None]).sum(-1) / weight.sum(-1).clamp(min=1)[:, None]
