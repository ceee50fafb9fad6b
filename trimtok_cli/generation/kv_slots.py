"""Keys and values of the answers under way, in tensors made once: row i of the cache is slot i.

A prompt's keys fill its slot from the left, without the padding, and every new token is written
behind them. Slots may have different lengths. Knows no model, no sampling, and not which answer
lies in which slot.
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

    store (layers, 2, rows, heads, length, head_dim): keys and values. lengths (rows,): the place of
    each slot's next token. `filling` and `stepping` choose the slots that the model's code sees.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        super().__init__(layers=[_Layer(self, number) for number in range(num_layers)])
        self.device = device
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.store: Tensor | None = None
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.numbers = torch.zeros(0, dtype=torch.long, device=self.device)
        self.rows = self.length = self.first = self.past = 0
        self.new: Sequence[int] = ()
        self.place: tuple[Tensor, slice, Tensor] | None = None
        self.seen: tuple[Tensor, ...] = ()
        self.last: tuple[Tensor, ...] = ()

    def holds(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def reserve(self, rows: int, length: int) -> None:
        """Makes room for `rows` slots of `length` places, in new tensors; the keys are copied."""
        self.seen = self.last = ()
        self.place = None
        if length > self.length:
            length = -(-length // GRAIN) * GRAIN
        old, old_lengths = self.store, self.lengths
        self.rows, self.length = max(rows, self.rows), max(length, self.length)
        self.numbers = torch.arange(self.rows, device=self.device)
        self.lengths = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self.lengths[: len(old_lengths)] = old_lengths
        if old is not None:
            self._make(old)[:, :, : old.shape[2], :, : old.shape[4]] = old

    def _make(self, like: Tensor) -> Tensor:
        """Makes the store, of zeros: a masked place weighs 0, and 0 times a leftover NaN is NaN."""
        heads, width = like.shape[-3], like.shape[-1]
        self.store = like.new_zeros(len(self.layers), 2, self.rows, heads, self.length, width)
        return self.store

    @property
    def _stored(self) -> Tensor:
        """The store, which exists once a prompt has been written."""
        if self.store is None:
            raise LookupError("no prompt has been written yet")
        return self.store

    @contextmanager
    def filling(self, first: int, lengths: Sequence[int]) -> Iterator[None]:
        """A block in which a prefill of left-padded prompts fills the slots from `first` on.

        lengths: the lengths of the prompts, without padding.
        """
        self.new, self.first, self.past = lengths, first, 0
        try:
            yield
        finally:
            self.new = ()
        self.lengths[first : first + len(lengths)] = torch.tensor(lengths).to(
            self.device, non_blocking=True
        )

    def stepping(self, count: int, span: int, *, even: bool) -> None:
        """Takes one token for each of the first `count` slots from now on.

        Attention sees the first `span` places of these slots. even: all slots have the length
        span - 1; otherwise each slot's place to write to is read from `lengths`, on the device.
        """
        self.past = span - 1
        self.place = None if even else (self.numbers[:count], slice(None), self.lengths[:count])
        # Views of all layers are made at once: one by one they take 5 % of a small model's step.
        seen = self._stored[:, :, :count, :, :span].flatten(0, 1)
        self.seen, self.last = seen.unbind(), seen[:, :, :, -1:].unbind()

    def move(self, source: int, target: int, length: int) -> None:
        """Moves `length` places from slot `source` to slot `target`."""
        store = self._stored
        store[:, :, target, :, :length] = store[:, :, source, :, :length]
        self.lengths[target] = self.lengths[source]

    def wipe(self, slot: int) -> None:
        """Zeros a slot whose answer left NaN, which the next answer's mask would not hide."""
        self._stored[:, :, slot] = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, heads, S, head_dim) of one layer.

        Returns the keys and values that the layer's attention sees.
        """
        store = self._make(keys) if self.store is None else self.store
        for which, new in enumerate((keys, values), 2 * layer):
            if self.new:
                self._fill(new, store[which // 2, which % 2])
            elif self.place is None:
                self.last[which].copy_(new)
            else:
                self.seen[which][self.place] = new[:, :, 0]
        return (keys, values) if self.new else (self.seen[2 * layer], self.seen[2 * layer + 1])

    def _fill(self, new: Tensor, kept: Tensor) -> None:
        padded = new.shape[2]
        if min(self.new) == padded:
            kept[self.first : self.first + len(new), :, :padded] = new
            return
        for row, length in enumerate(self.new):
            kept[self.first + row, :, :length] = new[row, :, padded - length :]


class _Layer(CacheLayerMixin):
    """The cache of one layer, in the library's form.

    A prefill starts from an empty cache, whatever lies in other slots.
    """

    is_sliding = False  # windows are masked; every slot keeps all of its places
    supports_early_init = False

    def __init__(self, owner: KVSlots, number: int) -> None:
        super().__init__()
        # A reference cycle would keep the cache until the next garbage collection.
        self.owner: Any = weakref.proxy(owner)
        self.number = number

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.owner.write(self.number, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.past + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.past

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # the same question in older versions
        return -1
