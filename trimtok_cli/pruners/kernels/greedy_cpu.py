"""The greedy searches on a CPU: rows of the cosine matrix are computed when they are read.

A search for K of N tokens reads K rows, chosen as it goes. `Rows` computes a row together with the
rows of the tokens that are next in line, nearly as fast per row as the whole matrix. With N = 2304
and K = 288 RepMax computes 432 rows on image-like tokens and 984 on random ones, max-min 646 and
994. Small steps run in NumPy, whose calls cost a third of torch's. One sample at a time: on a CPU a
batch saves nothing. Knows no other device.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Rows computed at a time. Fewer waste the processor (4 rows: half the speed a row), more compute
# rows that nobody reads. From 16 to 32 the time is the same within a tenth for N = 460 and 2304,
# D = 768 to 4096; with more rows threads meet less often.
BLOCK = 24

# RepMax of up to so many tokens computes each row alone. At N = 460, K = 64 blocks compute 2.5 rows
# for each that is read, and one product a row was a fifth faster. At N = 2304, where the vectors
# leave the cache, one product a row took 1.5 to 3 times as long.
FEW = 1024


class Rows:
    """Rows of U U^T, or with `distance` of 1 - U U^T, for unit vectors U (N, D) in float32."""

    def __init__(self, unit: Tensor, *, distance: bool = False) -> None:
        self.unit, self.distance = unit, distance
        self.first, self.duplicates = _duplicates(unit.numpy())
        self.zero = ~unit.any(dim=1).numpy() if distance else np.zeros(0, dtype=bool)
        self.known = np.zeros(len(unit), dtype=bool)
        self._rows: list[np.ndarray[Any, Any]] = [np.zeros(0, dtype=np.float32)] * len(unit)

    def __getitem__(self, place: int) -> np.ndarray[Any, Any]:
        """The row (N,) of a place that is known."""
        return self._rows[place]

    def fetch(self, place: int, urgency: np.ndarray[Any, Any]) -> None:
        """Makes a row known, and with it the unknown rows of the highest `urgency` (N,)."""
        unknown = np.where(self.known, -np.inf, urgency)
        unknown[place] = np.inf
        self.compute(_most_urgent(unknown))

    def alone(self, place: int) -> np.ndarray[Any, Any]:
        """The row (N,) of a place, computed anew and not stored."""
        row = torch.mv(self.unit, self.unit[place]).numpy()
        row[self.duplicates] = row[self.first[self.duplicates]]
        return row

    def compute(self, places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The rows (n, N) of `places` (n,), which are known from now on."""
        block = (self.unit[torch.from_numpy(places)] @ self.unit.T).numpy()
        # A product's last bit may depend on where in the matrix a column stands. Duplicates must
        # tie exactly.
        block[:, self.duplicates] = block[:, self.first[self.duplicates]]
        if self.distance:
            block[np.ix_(self.zero[places], self.zero)] = 1
            np.subtract(1, block, out=block)
        for place, row in zip(places, block, strict=True):
            self._rows[place] = row
        self.known[places] = True
        return block


def repmax_rows(unit: Tensor, keep: int, rounding: float) -> Tensor:
    """Greedy RepMax of unit vectors (N, D) -> (keep,) indices in the order of selection.

    Means of cosines that differ by up to `rounding` tie.
    """
    rows = Rows(unit)
    count = len(unit)
    order = np.empty(keep, dtype=np.int64)
    mean = (unit @ unit.sum(dim=0)).numpy() / count  # the matrix's row means, without the matrix
    chosen = int((mean <= mean.min() + rounding).argmax())
    sigma = np.zeros(count, dtype=np.float32)
    for t in range(keep):
        if t:
            chosen = int(sigma.argmin())
        order[t] = chosen
        if count > FEW and not rows.known[chosen]:
            rows.fetch(chosen, -sigma)
        sigma += rows[chosen] if count > FEW else rows.alone(chosen)
        sigma[chosen] = np.inf
    return torch.from_numpy(order)


def max_min_rows(unit: Tensor, keep: int, tie: float) -> Tensor:
    """Farthest-point search of unit vectors (N, D) -> (keep,) indices in the order of selection.

    Distances that differ by up to `tie` are equal.
    """
    rows = Rows(unit, distance=True)
    order = np.empty(keep, dtype=np.int64)
    chosen = _most_isolated(rows, tie)
    nearest = np.full(len(unit), np.inf, dtype=np.float32)
    for t in range(keep):
        if t:
            chosen = int((nearest >= nearest.max() - tie).argmax())
        order[t] = chosen
        if not rows.known[chosen]:
            rows.fetch(chosen, nearest)
        np.minimum(nearest, rows[chosen], out=nearest)
        nearest[chosen] = -np.inf
    return torch.from_numpy(order)


def _most_isolated(rows: Rows, tie: float) -> int:
    """The lowest token within `tie` of the one whose nearest neighbour is farthest.

    Exact without all rows: the nearest token whose row is known is an upper bound of a token's
    distance to its nearest neighbour. A token that may still be the most isolated by this bound has
    its own row computed. The search ends when no such token is left.
    """
    count = len(rows.known)
    bound = np.full(count, np.inf, dtype=np.float32)
    exact = np.full(count, -np.inf, dtype=np.float32)
    places = np.unique(np.linspace(0, count - 1, BLOCK).astype(np.int64))
    while len(places):
        block = rows.compute(places).copy()
        block[np.arange(len(places)), places] = np.inf
        exact[places] = block.min(axis=1)
        np.minimum(bound, block.min(axis=0), out=bound)
        undecided = ~rows.known & (bound >= exact.max() - tie)
        places = _most_urgent(np.where(undecided, bound, -np.inf))
    return int((exact >= exact.max() - tie).argmax())


def _most_urgent(urgency: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The places of the BLOCK highest values, fewer where fewer are above -inf."""
    places = np.arange(len(urgency))
    if len(urgency) > BLOCK:
        places = np.argpartition(-urgency, BLOCK)[:BLOCK]
    return places[urgency[places] > -np.inf]


def _duplicates(unit: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first row equal to each row of (N, D), as (N,) places; the places of all later equals."""
    # Two numbers nearly always tell rows apart, and sort quickly as one integer.
    two = np.ascontiguousarray(unit[:, :2])
    keys = two.view(f"i{two.nbytes // len(two)}")[:, 0]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    duplicates = np.flatnonzero(first[group] != np.arange(len(unit)))
    if (unit[duplicates] != unit[first[group[duplicates]]]).any():
        _, first, group = np.unique(unit, axis=0, return_index=True, return_inverse=True)
        group = group.ravel()
        duplicates = np.flatnonzero(first[group] != np.arange(len(unit)))
    return first[group], duplicates
