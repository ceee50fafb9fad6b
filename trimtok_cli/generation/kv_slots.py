"""Keys and values of the answers under way, in tensors made once: row i of the cache is slot i.

A prompt's keys fill its slot from the left, with the padding behind them, and every new token is
written behind the prompt, over the padding. Slots may have different lengths, and so may groups of
layers, where prompts lose rows on their way through the decoder. Knows no model, no sampling, and
not which answer lies in which slot.
"""

import weakref
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from trimtok_cli.generation import slot_attention

GRAIN = 64  # places that a short cache grows by at least, because growing copies the cache


class KVSlots(Cache):
    """A cache of slots, which the model's own code uses like any other cache.

    store: the keys and the values of each layer in turn, one tensor (rows, length, heads, head_dim)
    each. A token's heads lie together in memory, as attention over unequal lengths reads them; on a
    CPU a head's tokens do, which halves what a step's attention takes in a small model. lengths
    (rows,): the place of each slot's next token. `filling`, `prefilling` and `stepping`
    choose the slots that the model's code sees.

    Layers that hold equally many rows of every prompt are a group; usually all layers are. places:
    the places of a slot in each group. less: for each group, the rows that each slot's prompt has
    less there than in the first group; less_there (groups, rows) is the same on the device.
    behind: places for new tokens, where a prefill makes room in a group.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        groups: Sequence[int] = (0,),
    ) -> None:
        """config: the decoder's. groups: the first layer of each group."""
        numbers = range(config.num_hidden_layers)
        super().__init__(layers=[_Layer(self, number) for number in numbers])
        self.num_groups = len(groups)
        self.group_of = [bisect(groups, number) - 1 for number in numbers]
        self.heads, self.width = slot_attention.heads_and_width(config)
        self.dtype, self.device = dtype, device
        # Writes a step's keys and values of a layer by one kernel, where a device has it.
        self.writer = slot_attention.token_writer(device, dtype)
        # Whether steps attend to the places in use, without masks.
        self.unmasked = slot_attention.fits(config, dtype, device, self.width)
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.store: list[Tensor] = []
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.numbers = torch.zeros(0, dtype=torch.long, device=self.device)
        self.rows = self.past = self.count = self.behind = 0
        self.places = [0] * self.num_groups
        self.less: list[list[int]] = [[] for _ in self.places]
        self.less_there = torch.empty(self.num_groups, 0, dtype=torch.long, device=self.device)
        self.filled: slice | Tensor | None = None
        self.prompt_rows: dict[int, int] = {}  # of the prefill that runs, in each group
        self.spans: Sequence[int] = (0,)
        self.place: list[tuple[Tensor, Tensor]] = []

    @property
    def length(self) -> int:
        """The places of a slot in the first group."""
        return self.places[0]

    def holds(self, rows: int, *lengths: int) -> bool:
        """Whether there are `rows` slots of these lengths; groups without a length fit."""
        fits = all(length <= there for length, there in zip(lengths, self.places, strict=False))
        return fits and rows <= self.rows

    def reserve(self, rows: int, *lengths: int, in_use: Sequence[int] | None = None) -> None:
        """Makes room for `rows` slots; what was written is copied.

        lengths: the places of a slot in each group; the last groups may be left out. A prefill
        makes room in these by itself, because only then their prompts' lengths are known. in_use:
        the lengths of the slots in use; all others go, and places go. Without it nothing goes. The
        tensors are made anew one by one, so that only one of them is in memory twice.
        """
        self.place = []
        if in_use is None:
            self.rows = max(rows, self.rows)
            lengths = tuple(map(max, lengths, self.places))
        else:
            self.rows = max(rows, len(in_use))
            lengths = self._around(in_use, lengths[0])
        self.places[: len(lengths)] = [in_grains(length) for length in lengths]
        kept = len(self.lengths) if in_use is None else len(in_use)
        old_lengths, old_less = self.lengths, self.less_there
        self.numbers = torch.arange(self.rows, device=self.device)
        self.lengths = torch.zeros(self.rows, dtype=torch.long, device=self.device)
        self.lengths[:kept] = old_lengths[:kept]
        if self.num_groups > 1:
            self.less_there = self.numbers.new_zeros(self.num_groups, self.rows)
            self.less_there[:, :kept] = old_less[:, :kept]
        self.less = [less[:kept] + [0] * (self.rows - kept) for less in self.less]
        for number in range(len(self.store)):
            self.store[number] = self._resized(number, kept)
        while len(self.store) < 2 * len(self.layers):
            self.store.append(self._empty(len(self.store)))

    def _around(self, in_use: Sequence[int], length: int) -> tuple[int, ...]:
        """The places of a slot in each group if those in use and `length` in the first one fit."""
        if not in_use:
            return (length, *[0] * (self.num_groups - 1))
        longest = self.longest(in_use)
        behind = max(length - longest[0], 0)
        return tuple(each + behind for each in longest)

    def _resized(self, number: int, rows: int) -> Tensor:
        """A tensor made anew, with the first `rows` slots."""
        new, old = self._empty(number), self.store[number]
        places = min(old.shape[1], new.shape[1])
        new[:rows, :places] = old[:rows, :places]
        return new

    def _empty(self, number: int) -> Tensor:
        """A tensor of zeros: a masked place weighs 0, and 0 times a leftover NaN is NaN."""
        places, heads = self.places[self.group_of[number // 2]], self.heads
        options: Any = {"dtype": self.dtype, "device": self.device}
        if self.device.type == "cpu" and not self.unmasked:
            return torch.zeros(self.rows, heads, places, self.width, **options).transpose(1, 2)
        return torch.zeros(self.rows, places, heads, self.width, **options)

    @contextmanager
    def filling(self, first: int, lengths: Sequence[int]) -> Iterator[None]:
        """A block in which a prefill of right-padded prompts fills the slots from `first` on.

        lengths: the lengths of the prompts, without padding.
        """
        slots = slice(first, first + len(lengths))
        self.prompt_rows = {}
        with self.prefilling(slots):
            yield
        self.lengths[slots] = torch.tensor(lengths).to(self.device, non_blocking=True)
        for group, rows in self.prompt_rows.items():
            less = self.prompt_rows[0] - rows
            self.less[group][slots] = [less] * len(lengths)
            self.less_there[group, slots] = less

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

    def longest(self, lengths: Sequence[int]) -> list[int]:
        """The most places in use in each group, by the lengths of the first slots in the first."""
        if self.num_groups == 1:
            return [max(lengths)]
        return [max(map(int.__sub__, lengths, less)) for less in self.less]

    def even(self, lengths: Sequence[int]) -> bool:
        """Whether the first slots, of these lengths in the first group, have one length in each."""
        alike = all(len(set(less[: len(lengths)])) == 1 for less in self.less[1:])
        return alike and max(lengths) == min(lengths)

    def ends(self, group: int, count: int) -> Tensor:
        """(count,) the place of the next token in each of the first slots, in a group."""
        ends = self.lengths[:count]
        return ends - self.less_there[group, :count] if group else ends

    def stepping(self, count: int, *spans: int, even: bool) -> None:
        """Takes one token for each of the first `count` slots from now on.

        Attention sees the first places of these slots, in each group as many as its span. even: all
        slots have the length span - 1; otherwise each slot's place to write to is read from
        `lengths`, on the device.
        """
        self.count, self.spans, self.past = count, spans, spans[0] - 1
        numbers = self.numbers[:count]
        groups = range(0 if even else self.num_groups)
        self.place = [(numbers, self.ends(group, count)) for group in groups]

    def move(self, source: int, target: int, length: int) -> None:
        """Moves `length` places, as the first group counts them, from one slot to another."""
        for number, kept in enumerate(self.store):
            there = length - self.less[self.group_of[number // 2]][source]
            kept[target, :there] = kept[source, :there]
        self.lengths[target] = self.lengths[source]
        for group in range(1, self.num_groups):
            self.less[group][target] = self.less[group][source]
            self.less_there[group, target] = self.less_there[group, source]

    def leave(self, in_use: int) -> None:
        """Frees the slots from `in_use` on: their next token would come to place 0."""
        self.lengths[in_use:] = 0
        for group in range(1, self.num_groups):
            self.less[group][in_use:] = [0] * (self.rows - in_use)
            self.less_there[group, in_use:] = 0

    def wipe(self, slot: int) -> None:
        """Zeros a slot whose answer left NaN, which the next answer's mask would not hide."""
        for kept in self.store:
            kept[slot] = 0

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, heads, S, head_dim) of one layer.

        Returns the keys and values that the layer's attention sees.
        """
        group = self.group_of[layer]
        if self.filled is not None and self.num_groups > 1:
            self._open(group, keys.shape[2])
        kept_keys, kept_values = self.store[2 * layer : 2 * layer + 2]
        if self.filled is not None:
            kept_keys[self.filled, : keys.shape[2]] = keys.transpose(1, 2)
            kept_values[self.filled, : values.shape[2]] = values.transpose(1, 2)
            return keys, values
        if self.writer and self.place and keys.stride(-1) == values.stride(-1) == 1:
            self.writer(keys, values, kept_keys, kept_values, self.place[group][1])
        else:
            self._put(kept_keys, keys, group)
            self._put(kept_values, values, group)
        return self._seen(kept_keys, group), self._seen(kept_values, group)

    def _open(self, group: int, rows: int) -> None:
        """Makes room in a group for a prefill that has so many rows there."""
        if self.prompt_rows.setdefault(group, rows) != rows:
            raise LookupError("the layers of a group have prompts of unequal length")
        if group == 0 or rows + self.behind <= self.places[group]:
            return
        self.places[group] = in_grains(rows + self.behind)
        for number in range(len(self.store)):
            if self.group_of[number // 2] == group:
                self.store[number] = self._resized(number, self.rows)

    def _put(self, kept: Tensor, new: Tensor, group: int) -> None:
        """Writes a token into each slot."""
        if self.place:
            kept[self.place[group]] = new[:, :, 0]
        else:
            kept[: self.count, self.spans[group] - 1] = new[:, :, 0]

    def _seen(self, kept: Tensor, group: int) -> Tensor:
        """What attention sees of the slots."""
        span = self.spans[group]
        # One view in place of three, which would take 5 % of a small model's step.
        row, token, head, _ = kept.stride()
        return kept.as_strided((self.count, self.heads, span, self.width), (row, head, token, 1))


def in_grains(length: int) -> int:
    """The places that a slot of this length is made with."""
    return -(-length // GRAIN) * GRAIN


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
