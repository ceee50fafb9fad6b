"""The greedy searches on a CPU, one sample at a time: rows of the cosine matrix are computed when
they are read.

A search for K of N tokens reads K rows, chosen as it goes. `Rows` computes a row together with
those of the tokens that are next in line, nearly as fast per row as the whole matrix. Of 2304, for
K = 288, that is 432 rows for RepMax on image-like tokens and 984 on random ones, 646 and 994 for
max-min. Small steps run in NumPy, whose calls cost a third of torch's. One sample at a time: on a
CPU a batch saves nothing. Nothing here is for another device.
"""

import numpy as np
import torch
from torch import Tensor

# Rows at a time. Fewer waste the processor (4 rows: half the speed a row), more compute rows that
# nobody reads. From 16 to 32 the time is the same within a tenth for N = 460 and 2304, D = 768 to
# 4096; the more rows, the less often threads must meet.
BLOCK = 24

# RepMax of few tokens computes each row alone: at N = 460, K = 64 a block would compute 2.5 rows
# for each that is read, and one product a row was a fifth faster; at N = 2304, where the vectors
# leave the cache, it took 1.5 to 3 times as long.
FEW = 1024


class Rows:
    """Rows of U U^T, or of 1 - U U^T, for unit vectors U (N, D): float32 on the CPU."""

    def __init__(self, unit: Tensor, *, distance: bool = False) -> None:
        self.unit, self.distance = unit, distance
        self.first, self.twins = _twins(unit.numpy())
        self.zero = ~unit.any(dim=1).numpy() if distance else np.zeros(0, dtype=bool)
        self.known = np.zeros(len(unit), dtype=bool)
        self._rows: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(unit)

    def __getitem__(self, place: int) -> np.ndarray:
        """(N,), of a known row."""
        return self._rows[place]

    def fetch(self, place: int, urgency: np.ndarray) -> None:
        """Makes a row known, and with it those of the unknown rows that have the highest `urgency`
        (N,).
        """
        waiting = np.where(self.known, -np.inf, urgency)
        waiting[place] = np.inf
        self.compute(_most(waiting))

    def alone(self, place: int) -> np.ndarray:
        """(N,), computed anew."""
        row = torch.mv(self.unit, self.unit[place]).numpy()
        row[self.twins] = row[self.first[self.twins]]
        return row

    def compute(self, places: np.ndarray) -> np.ndarray:
        """(m, N): these rows, which are known from now on."""
        block = (self.unit[torch.from_numpy(places)] @ self.unit.T).numpy()
        # A product's last bit may depend on where in the matrix a column stands; twins must tie
        # exactly.
        block[:, self.twins] = block[:, self.first[self.twins]]
        if self.distance:
            block[np.ix_(self.zero[places], self.zero)] = 1
            np.subtract(1, block, out=block)
        for place, row in zip(places, block, strict=True):
            self._rows[place] = row
        self.known[places] = True
        return block


def repmax_rows(unit: Tensor, keep: int, rounding: float) -> Tensor:
    """Greedy RepMax of unit vectors (N, D): (keep,) indices in the order of selection. rounding: of
    a mean of cosines.
    """
    rows, count = Rows(unit), len(unit)
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
    """Farthest-point search of unit vectors (N, D): (keep,) indices in the order of selection. tie:
    distances that are equal.
    """
    rows = Rows(unit, distance=True)
    order = np.empty(keep, dtype=np.int64)
    chosen = _loneliest(rows, tie)
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


def _loneliest(rows: Rows, tie: float) -> int:
    """The lowest token within `tie` of the one whose nearest neighbour is farthest.

    Exact without all rows: a token is at most as far from its nearest neighbour as from the nearest
    whose row is known. Who might still be the loneliest by that bound has its own row computed; the
    search ends when nobody is left.
    """
    count = len(rows.known)
    bound, exact = (
        np.full(count, np.inf, dtype=np.float32),
        np.full(count, -np.inf, dtype=np.float32),
    )
    places = np.unique(np.linspace(0, count - 1, BLOCK).astype(np.int64))
    while len(places):
        block = rows.compute(places).copy()
        block[np.arange(len(places)), places] = np.inf
        exact[places] = block.min(axis=1)
        np.minimum(bound, block.min(axis=0), out=bound)
        might = ~rows.known & (bound >= exact.max() - tie)
        places = _most(np.where(might, bound, -np.inf)) if might.any() else places[:0]
    return int((exact >= exact.max() - tie).argmax())


def _most(urgency: np.ndarray) -> np.ndarray:
    """The places of the BLOCK highest values, fewer where there are not as many above -inf."""
    places = (
        np.argpartition(-urgency, BLOCK)[:BLOCK]
        if len(urgency) > BLOCK
        else np.arange(len(urgency))
    )
    return places[urgency[places] > -np.inf]


def _twins(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of (N, D) the first row that equals it (N,); and the rows for which that is
    another one.
    """
    two = np.ascontiguousarray(
        unit[:, :2]
    )  # nearly always enough to tell rows apart, and quick to sort as one integer
    _, first, group = np.unique(
        two.view(f"i{two.nbytes // len(two)}")[:, 0], return_index=True, return_inverse=True
    )
    twins = np.flatnonzero(first[group] != np.arange(len(unit)))
    if (unit[twins] != unit[first[group[twins]]]).any():
        _, first, group = np.unique(unit, axis=0, return_index=True, return_inverse=True)
        group = group.ravel()
        twins = np.flatnonzero(first[group] != np.arange(len(unit)))
    return first[group], twins
