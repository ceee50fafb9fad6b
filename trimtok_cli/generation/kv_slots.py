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
    (rows,): the place of each slot's next token. `filling`, `prefilling` and `stepping`
    choose the slots that the model's code sees.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        """config: the decoder's."""
        numbers = range(config.num_hidden_layers)
        super().__init__(layers=[_Layer(self, number) for number in numbers])
        self.heads, self.width = heads_and_width(config)
        self.dtype, self.device = dtype, device
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.store: list[Tensor] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.numbers = torch.zeros(0, dtype=torch.long, device=self.device)
        self.rows = self.length = self.past = self.count = 0
        self.filled: slice | Tensor | None = None
        self.place: tuple[Tensor, Tensor] | None = None

    def holds(self, rows: int, length: int) -> bool:
        return rows <= self.rows and length <= self.length

    def reserve(self, rows: int, length: int) -> None:
        """Makes room for `rows` slots of `length` places; what was written is copied.

        The tensors are made anew one by one, so that only one of them is in memory twice.
        """
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
        while len(self.store) < 2 * len(self.layers):
            self.store.append(self._empty())

    def _grown(self, old: Tensor) -> Tensor:
        grown = self._empty()
        grown[: old.shape[0], : old.shape[1]] = old
        return grown

    def _empty(self) -> Tensor:
        """A tensor of zeros: a masked place weighs 0, and 0 times a leftover NaN is NaN."""
        size = self.rows, self.length, self.heads, self.width
        return torch.zeros(size, dtype=self.dtype, device=self.device)

    @contextmanager
    def filling(self, first: int, lengths: Sequence[int]) -> Iterator[None]:
        """A block in which a prefill of right-padded prompts fills the slots from `first` on.

        lengths: the lengths of the prompts, without padding.
        """
        slots = slice(first, first + len(lengths))
        with self.prefilling(slots):
            yield
        self.lengths[slots] = torch.tensor(lengths).to(self.device, non_blocking=True)

    @contextmanager
    def prefilling(self, slots: slice | Tensor) -> Iterator[None]:
        """A block in which a prefill fills these slots, or those of their numbers on the device.

        `lengths` is left to the caller.
        """
        self.filled, self.past = slots, 0
        try:
            yield
        finally:
            self.filled = None

    def stepping(self, count: int, span: int, *, even: bool) -> None:
        """Takes one token for each of the first `count` slots from now on.

        Attention sees the first `span` places of these slots. even: all slots have the length
        span - 1; otherwise each slot's place to write to is read from `lengths`, on the device.
        """
        self.count, self.past = count, span - 1
        self.place = None if even else (self.numbers[:count], self.lengths[:count])

    def move(self, source: int, target: int, length: int) -> None:
        """Moves `length` places from slot `source` to slot `target`."""
        for kept in self.store:
            kept[target, :length] = kept[source, :length]
        self.lengths[target] = self.lengths[source]

    def wipe(self, slot: int) -> None:
        """Zeros a slot whose answer left NaN, which the next answer's mask would not hide."""
        for kept in self.store:
            kept[slot] = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, heads, S, head_dim) of one layer.

        Returns the keys and values that the layer's attention sees.
        """
        kept_keys, kept_values = self.store[2 * layer : 2 * layer + 2]
        if self.filled is not None:
            kept_keys[self.filled, : keys.shape[2]] = keys.transpose(1, 2)
            kept_values[self.filled, : values.shape[2]] = values.transpose(1, 2)
            return keys, values
        return self._extended(kept_keys, keys), self._extended(kept_values, values)

    def _extended(self, kept: Tensor, new: Tensor) -> Tensor:
        """Writes a token into each slot; returns what attention sees of the slots."""
        span = self.past + 1
        if self.place is None:
            kept[: self.count, self.past] = new[:, :, 0]
        else:
            kept[self.place] = new[:, :, 0]
        # One view in place of three, which would take 5 % of a small model's step.
        row, token, head, _ = kept.stride()
        return kept.as_strided((self.count, self.heads, span, self.width), (row, head, token, 1))


def heads_and_width(config: Any) -> tuple[int, int]:
    """The heads of a decoder's keys, and the width of one."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, width


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
