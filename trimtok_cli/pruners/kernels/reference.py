"""TrimTokenator as its equations read (arXiv 2509.00320, Eq. 3, 4, 8 to 16), one sample at a time.

The reference that tests hold the fast forms against, and the baseline of `trimtok bench`. No answer
is computed here. Knows no other module.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def trimtokenator_reference(visual: Tensor, text: Tensor, keep: int, pool: float = 0.8) -> Tensor:
    """(N, D) visual and (M, D) text embeddings -> (keep,) indices in the order of selection.

    Arithmetic is in the embeddings' own type. `keep` >= N takes every token. Of equal tokens any
    may come first in stage 2.
    """
    num_visual = len(visual)
    num_pool = max(int(pool * num_visual + 1e-9), min(keep, num_visual))  # N1, see `pool_count`
    alpha = -(visual[:, None] - text).norm(dim=-1).mean(dim=1)  # Eq. 3
    nearest = alpha.sort(descending=True, stable=True).indices[:num_pool]  # Eq. 4
    pooled = nearest.sort().values
    return pooled[repmax_reference(visual[pooled], min(keep, num_visual))]


def repmax_reference(visual: Tensor, keep: int) -> list[int]:
    """(N1, D) floating point -> `keep` <= N1 indices in the order of selection."""
    unit = F.normalize(visual, dim=-1, eps=1e-30)
    return least_mean_reference(unit @ unit.mT, keep)  # Eq. 8


def least_mean_reference(similarity: Tensor, keep: int) -> list[int]:
    """Similarities (N1, N1) -> `keep` indices: always the token least similar to those chosen.

    The mean is computed anew and one value is read back at every step, as a first implementation
    would do. Rows are read in place of columns, which are up to 25 times slower.
    """
    chosen = [int(similarity.mean(dim=1).argmin())]  # Eq. 9, 10, 11
    while len(chosen) < keep:
        mean = similarity[chosen].mean(dim=0)  # Eq. 12, 13, 16: sigma / (t - 1)
        mean[chosen] = torch.inf  # Eq. 15: a chosen token is no candidate
        chosen.append(int(mean.argmin()))  # Eq. 14
    return chosen
