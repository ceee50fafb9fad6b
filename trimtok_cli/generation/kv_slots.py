"""Keys and values of the answers under way, in tensors made once: row i of the cache is slot i.

A prompt's keys fill its slot from the left, with the padding behind them, and every new token is
written behind the prompt, over the padding. Slots may have different lengths. Knows no model, no
sampling, and not which answer lies in which slot.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

GRAIN = 64  # places that a short cache grows by at least, because growing copies the cache


class KVSlots(Cache):
    """A cache of slots, which the model's own code uses like any other cache.

    store: the keys and the values of each layer in turn, one tensor (rows, length, heads, head_dim)
    each: a token's heads lie together, as attention over unequal lengths reads them. lengths
    (rows,): the place of each slot's next token. `filling` and `stepping` choose the slots that the
    model's code sees.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        super().__init__(layers=[_Layer(self, number) for number in range(num_layers)])
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.store: list[Tensor] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.numbers = torch.zeros(0, dtype=torch.long, device=self.device)
        self.rows = self.length = self.first = self.past = 0
        self.new: Sequence[int] = ()
        self.place: tuple[Tensor, Tensor] | None = None
        self.seen: list[Tensor] = []
        self.last: list[Tensor] = []

    def holds(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def reserve(self, rows: int, length: int) -> None:
        """Makes room for `rows` slots of `length` places; the keys are copied.

        The tensors are made anew one by one: no more than one of them is in memory twice.
        """
        self.seen, self.last = [], []
        self.place = None
        if length > self.length:
            length = -(-length // GRAIN) * GRAIN
        old_lengths = self.lengths
        self.rows, self.length = max(rows, self.rows), max(length, self.length)
        self.numbers = torch.arange(self.rows, device=self.device)
        self.lengths = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self.lengths[: len(old_lengths)] = old_lengths
        for number in range(len(self.store)):
            self.store[number] = self._grown(self.store[number])

    def _grown(self, old: Tensor) -> Tensor:
        grown = self._empty(*old.shape[2:], like=old)
        grown[: old.shape[0], : old.shape[1]] = old
        return grown

    def _empty(self, heads: int, width: int, *, like: Tensor) -> Tensor:
        """One tensor of zeros: a masked place weighs 0, and 0 times a leftover NaN is NaN."""
        return like.new_zeros(self.rows, self.length, heads, width)
