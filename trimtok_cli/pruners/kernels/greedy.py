"""The two greedy searches over visual tokens, each by the cheapest exact way on its device.

RepMax (arXiv 2509.00320) takes the token least similar to the chosen ones on average; max-min
(arXiv 2503.02175) takes the token whose nearest chosen token is farthest. Both read single rows of
the N x N cosine matrix. On a CPU the matrix is nine tenths of the cost, so only the rows that are
read are computed (`greedy_cpu`). Elsewhere launches are the cost: the matrix is one product, and
the whole search is one kernel (`greedy_triton`) or, without Triton, a loop that waits for no value.
Tests hold `repmax_gram` against `reference`, and the other forms against `repmax_gram` and
`max_min_gram`. Knows no method and no model.
"""

import logging
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.device import out_of_memory
from trimtok_cli.pruners.kernels.greedy_cpu import max_min_rows, repmax_rows
from trimtok_cli.pruners.kernels.numerics import cosines, first_of_best, in_parts

log = logging.getLogger("trimtok")

# Means of cosines that differ by less are equal but for float32's rounding.
ROUNDING = 2e-7

# Cosine distances that differ by less are equal: between two equal tokens float32 gives up to 4e-7.
TIE = 1e-6

# Most tokens that one program of a kernel keeps in registers.
WIDEST = 16384

_without_kernels = False


@torch.no_grad()
def repmax(visual: Tensor, keep: int, diversity: str = "cosine") -> Tensor:
    """Greedy RepMax, Eq. 8-16 of arXiv 2509.00320: (B, N, D) -> (B, keep) in order of selection.

    diversity: `cosine`, or `l2`, which minimises minus the distance (Table 10). Of duplicates the
    lowest index goes first.
    """
    if visual.device.type == "cpu" and diversity == "cosine":
        unit = F.normalize(visual.float(), dim=-1, eps=1e-30)
        return torch.stack([repmax_rows(rows, keep, ROUNDING) for rows in unit])
    return in_parts(
        lambda part: repmax_gram(part, keep, diversity), 4 * visual.shape[1] ** 2, visual
    )


@torch.no_grad()
def max_min(visual: Tensor, keep: int) -> Tensor:
    """Farthest-point search in cosine distance: (B, N, D) -> (B, keep) in order of selection.

    The first token is the one whose nearest neighbour is farthest; each next token is the one whose
    nearest chosen token is farthest. Distances less than TIE apart go to the lowest index. Tokens
    of length zero count as one vector at a right angle to every other.
    """
    if visual.device.type == "cpu":
        unit = F.normalize(visual.float(), dim=-1, eps=1e-30)
        return torch.stack([max_min_rows(rows, keep, TIE) for rows in unit])
    return in_parts(lambda part: max_min_gram(part, keep), 4 * visual.shape[1] ** 2, visual)


def repmax_gram(visual: Tensor, keep: int, diversity: str = "cosine") -> Tensor:
    """`repmax` with the whole matrix.

    The factor 1/(t-1) of Eq. 13 is a positive constant of each step and is left out.
    """
    if diversity == "cosine":
        similarity = cosines(visual)[0]  # C, (B, N, N)
    else:
        rows = visual.float()
        similarity = -torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    mean = similarity.mean(dim=2)  # Eq. 9
    # Eq. 10. Two tokens always tie, being equally far from each other: the tie goes to the lowest
    # index and not to rounding.
    first = first_of_best(-mean, ROUNDING if diversity == "cosine" else 0.0)
    order = _launched("least_sum", similarity, first, keep)
    return least_sum(similarity, first, keep) if order is None else order


def max_min_gram(visual: Tensor, keep: int) -> Tensor:
    """`max_min` with the whole matrix."""
    similarity, zero = cosines(visual)
    similarity += zero[:, :, None] & zero[:, None, :]
    distance = similarity.neg_().add_(1)
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)  # no token is its own neighbour
    first = first_of_best(distance.amin(dim=2), TIE)
    order = _launched("farthest", distance, first, keep, TIE)
    return farthest(distance, first, keep) if order is None else order


def least_sum(similarity: Tensor, first: Tensor, keep: int) -> Tensor:
    """(B, N, N), (B,) -> (B, keep): `first`, then always the token least similar to the chosen.

    The least sum of similarities is the least mean. Writes on the diagonal of `similarity`. Nothing
    leaves the device inside the loop.
    """
    order = torch.empty(len(first), keep, dtype=torch.long, device=first.device)
    # The diagonal is +inf: adding row s to sigma also takes s out of the race (Eq. 11, 15).
    similarity.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    sigma = torch.zeros_like(similarity[:, 0])
    rows = torch.arange(len(first), device=first.device)
    chosen = first
    for t in range(keep):
        if t:
            chosen = sigma.argmin(dim=1)  # Eq. 14
        order[:, t] = chosen
        sigma += similarity[rows, chosen]  # Eq. 12, 16
    return order


def farthest(distance: Tensor, first: Tensor, keep: int) -> Tensor:
    """(B, N, N), (B,) -> (B, keep): `first`, then always the token farthest from the chosen.

    The lowest token within TIE of the farthest is taken. Writes on the diagonal of `distance`.
    Nothing leaves the device inside the loop.
    """
    order = torch.empty(len(first), keep, dtype=torch.long, device=first.device)
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # a chosen token is no candidate
    nearest = torch.full_like(distance[:, 0], torch.inf)
    rows = torch.arange(len(first), device=first.device)
    chosen = first
    for t in range(keep):
        if t:
            chosen = first_of_best(nearest, TIE)
        order[:, t] = chosen
        nearest = torch.minimum(nearest, distance[rows, chosen])
    return order


def _launched(name: str, matrix: Tensor, *rest: Any) -> Tensor | None:
    """The search as one kernel; None where the device or the installation cannot use Triton."""
    global _without_kernels
    if not matrix.is_cuda or _without_kernels or matrix.shape[1] > WIDEST:
        return None
    try:
        from trimtok_cli.pruners.kernels import greedy_triton

        return getattr(greedy_triton, name)(matrix, *rest)
    except Exception as error:
        if out_of_memory(error):
            raise
        # No Triton, no compiler for it, an unknown card: the plain loop does without the kernel.
        _without_kernels = True
        log.warning(
            "the pruner's kernels cannot be used: %s. The search goes on as a loop of small "
            "kernels, four launches for each kept token in place of one in all",
            _without_triton(error),
        )
        log.debug("Triton's own words", exc_info=error)
        return None


def _without_triton(error: Exception) -> str:
    """Why Triton cannot be used, and what to install.

    Triton compiles a launcher in C when a kernel first runs, which slim images cannot do.
    """
    if isinstance(error, ImportError):
        return "Triton cannot be imported (pip install triton)"
    if "C compiler" in str(error):
        return "Triton finds no C compiler (install gcc, or name one in CC)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Triton needs Python.h (install python3-dev, or your system's name for it)"
    reason = (str(error).strip().splitlines() or [""])[0]
    return f"Triton says {type(error).__name__}: {reason}"
