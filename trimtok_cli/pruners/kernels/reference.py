"""The paper's search as its equations read: what a straightforward implementation costs. Knows
nothing of the pruners.

TrimTokenator, arXiv 2509.00320, Eq. 8-16. It is the baseline of the benchmark and the oracle of
tests; no answer uses it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def repmax_reference(visual: Tensor, keep: int) -> list[int]:
    """(N1, D) floating point -> `keep` <= N1 indices in the order of selection; of equal vectors
    any may come first.

    A Python list of what is chosen, the mean over it anew at every step, one value read back per
    step.
    """
    unit = F.normalize(visual, dim=-1, eps=1e-30)
    similarity = unit @ unit.mT  # C
    chosen = [int(similarity.mean(dim=1).argmin())]  # Eq. 9, 10
    while len(chosen) < keep:
        mean = similarity[chosen].mean(
            dim=0
        )  # Eq. 12, 13, by rows: columns are read up to 25 times slower
        mean[chosen] = torch.inf
        chosen.append(int(mean.argmin().item()))  # Eq. 14
    return chosen
