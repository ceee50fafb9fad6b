"""The memory of the KV slots, counted byte by byte, and what a prefill and a step copy."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trimtok_cli.generation import slot_attention
from trimtok_cli.generation.kv_slots import KVSlots

CONFIG = SimpleNamespace(
    num_hidden_layers=6, num_key_value_heads=2, num_attention_heads=4, hidden_size=32
)


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that live at once, and every operation."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most, self.known, self.operations = 0, 0, set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.operations.append(func.name())
        if isinstance(made, torch.Tensor) and not func.is_view:
            self._count(made.untyped_storage())
        return made

    def _count(self, storage):
        number, size = storage._cdata, storage.nbytes()
        if number in self.known:
            return
        self.known.add(number)
        self.bytes += size
        self.most = max(self.most, self.bytes)
        weakref.finalize(storage, self._freed, number, size)

    def _freed(self, number, size):
        self.known.discard(number)
        self.bytes -= size


def slots_of(rows: int, length: int, groups=(0,)) -> KVSlots:
    slots = KVSlots(CONFIG, torch.float32, torch.device("cpu"), groups)
    slots.reserve(rows, length)
    return slots


def rows_of(count: int, length: int, layer: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(layer)
    return torch.randn(count, 2, length, 8, generator=generator)


def test_a_growing_cache_is_in_memory_once_and_one_tensor_more():
    slots = slots_of(4, 64)
    with slots.filling(0, [60, 50, 40, 30]):
        for layer in range(6):
            slots.write(layer, rows_of(4, 60, layer), -rows_of(4, 60, layer))
    before = [kept.clone() for kept in slots.store]
    with Living() as living:
        slots.reserve(6, 128)
    one = 6 * 128 * 2 * 8 * 4
    assert {kept.nbytes for kept in slots.store} == {one} and len(slots.store) == 12
    # All old tensors were there before the count began: as new ones came, old ones went.
    assert 12 * one <= living.most < 12 * one + 1024
    for kept, old in zip(slots.store, before, strict=True):
        assert torch.equal(kept[:4, :64], old) and not kept[4:].any() and not kept[:, 64:].any()
    assert slots.lengths.tolist() == [60, 50, 40, 30, 0, 0]


@pytest.mark.parametrize("unmasked", [False, True])
def test_the_keys_of_a_head_lie_together_where_the_library_attends_on_a_cpu(monkeypatch, unmasked):
    monkeypatch.setattr(slot_attention, "fits", lambda *_: unmasked)
    slots, given, new = slots_of(2, 64), rows_of(2, 60, 0), rows_of(2, 1, 1)
    for _ in range(2):
        with slots.filling(0, [60, 60]):
            slots.write(0, given, -given)
        slots.stepping(2, 61, even=True)
        keys, values = slots.write(0, new, -new)
        assert torch.equal(keys, torch.cat([given, new], 2)) and torch.equal(values, -keys)
        assert keys.stride()[1:] == ((8, 2 * 8, 1) if unmasked else (slots.length * 8, 8, 1))
        slots.reserve(4, 128)  # a cache that has grown lies as before


def test_every_old_tensor_goes_before_the_next_new_one_comes(monkeypatch):
    slots = slots_of(2, 64)
    old = [weakref.ref(kept) for kept in slots.store]
    alive, real = [], slots._empty

    def empty(number):
        alive.append(sum(each() is not None for each in old))
        return real(number)

    monkeypatch.setattr(slots, "_empty", empty)
    slots.reserve(2, 128)
    assert alive == list(range(12, 0, -1))


@pytest.mark.parametrize("lengths", [[9], [9, 4, 7, 2, 9]])
def test_a_prefill_is_one_copy_a_tensor_whatever_the_lengths(lengths):
    slots = slots_of(8, 64)
    keys = rows_of(len(lengths), 9, 0)
    with slots.filling(2, lengths), Living() as living:
        slots.write(0, keys, -keys)
    assert living.operations.count("aten::copy_") == 2
    for row, length in enumerate(lengths):
        kept = slots.store[0][2 + row, :length].transpose(0, 1)
        assert torch.equal(kept, keys[row, :, :length])
        assert torch.equal(slots.store[1][2 + row, :length].transpose(0, 1), -keys[row, :, :length])
    assert slots.lengths.tolist() == [0, 0, *lengths] + [0] * (6 - len(lengths))


@pytest.mark.parametrize("even", [False, True])
def test_a_step_writes_behind_each_slot_and_shows_the_places_in_use(even):
    slots = slots_of(4, 64)
    lengths = [9, 9, 9] if even else [9, 4, 7]
    with slots.filling(0, lengths):
        for layer in range(6):
            slots.write(layer, rows_of(3, 9, layer), -rows_of(3, 9, layer))
    slots.stepping(3, 10, even=even)
    new = rows_of(3, 1, 99)
    keys, values = slots.write(5, new, -new)
    assert keys.shape == (3, 2, 10, 8) and torch.equal(values, -keys)
    for row, length in enumerate(lengths):
        assert torch.equal(keys[row, :, :length], rows_of(3, 9, 5)[row, :, :length])
        assert torch.equal(keys[row, :, length], new[row, :, 0])
    assert keys.untyped_storage().data_ptr() == slots.store[10].data_ptr(), "a copy was made"


class Grouped:
    """Slots whose layers from 2 on, and from 5 on, hold fewer rows of a prompt, or more."""

    def __init__(self) -> None:
        self.slots = slots_of(4, 64, (0, 2, 5))
        self.slots.behind = 8
        self.rows: dict[int, list[int]] = {}  # of each slot, in each group

    def prefill(self, first: int, count: int, *rows: int) -> None:
        with self.slots.filling(first, [rows[0]] * count):
            for layer, group in enumerate(self.slots.group_of):
                keys = rows_of(count, rows[group], layer) + first
                self.slots.write(layer, keys, -keys)
        self.rows |= {first + number: list(rows) for number in range(count)}

    def check(self, lengths: list[int]) -> None:
        """Each slot holds what was written, and says so on the device and on the host."""
        slots, count = self.slots, len(lengths)
        assert slots.lengths[:count].tolist() == lengths
        for group in range(3):
            rows = [self.rows[slot][group] for slot in range(count)]
            assert slots.ends(group, count).tolist() == rows
            assert slots.longest(lengths)[group] == max(rows)


def test_groups_of_layers_have_lengths_and_room_of_their_own():
    given = Grouped()
    slots = given.slots
    assert slots.places == [64, 0, 0] and {kept.shape[1] for kept in slots.store[4:]} == {0}
    given.prefill(0, 2, 50, 20, 3)
    assert slots.places == [64, 64, 64], "in steps of GRAIN, with room for new tokens behind"
    given.prefill(2, 1, 50, 58, 9)
    assert slots.places == [64, 128, 64], "a prompt may grow on its way as well"
    given.prefill(3, 1, 7, 7, 7)
    given.check([50, 50, 50, 7])
    assert [kept.shape[1] for kept in slots.store] == [64] * 4 + [128] * 6 + [64] * 2
    for layer, group in enumerate(slots.group_of):
        want = rows_of(2, given.rows[0][group], layer).transpose(1, 2)
        assert torch.equal(slots.store[2 * layer][:2, : want.shape[1]], want), "not lost by growth"
    assert slots.holds(4, 64, 128) and not slots.holds(4, 64, 129) and not slots.holds(5, 64)


def test_more_and_shorter_slots_keep_what_is_in_use_and_nothing_else():
    """Places go in every group, but for those of the slots in use."""
    given = Grouped()
    slots = given.slots
    slots.reserve(4, 250)
    given.prefill(0, 4, 200, 150, 90)
    assert slots.places == [256, 192, 128]
    given.prefill(0, 1, 70, 30, 3)
    given.prefill(1, 1, 50, 66, 9)
    slots.leave(2)
    slots.reserve(9, 60, in_use=[70, 50])
    assert slots.rows == 9 and slots.places == [128, 128, 64], "60 places hold no 70"
    given.rows |= {slot: [0, 0, 0] for slot in range(2, 9)}
    given.check([70, 50, *[0] * 7])
    for layer, group in enumerate(slots.group_of):
        for slot in range(2):
            rows = given.rows[slot][group]
            want = rows_of(1, rows, layer)[0].transpose(0, 1) + slot
            assert torch.equal(slots.store[2 * layer][slot, :rows], want)
    slots.reserve(1, 64, in_use=[])
    assert (slots.rows, slots.places) == (1, [64, 0, 0])
    assert slots.lengths.tolist() == [0] and slots.less_there.tolist() == [[0]] * 3
    given.prefill(0, 1, 50, 20, 3)
    given.check([50])


@pytest.mark.parametrize("even", [False, True])
def test_a_step_writes_behind_each_group_of_layers(even):
    given = Grouped()
    slots = given.slots
    given.prefill(0, 2, 50, 20, 3)
    if not even:
        given.prefill(1, 1, 40, 30, 6)
    lengths = [50, 50 if even else 40]
    assert slots.even(lengths) == even
    spans = [length + 1 for length in slots.longest(lengths)]
    assert spans == [51, 21 if even else 31, 4 if even else 7]
    slots.stepping(2, *spans, even=even)
    new = rows_of(2, 1, 99)
    for layer, group in enumerate(slots.group_of):
        keys, values = slots.write(layer, new, -new)
        assert keys.shape == (2, 2, spans[group], 8) and torch.equal(values, -keys)
        for slot in range(2):
            assert torch.equal(keys[slot, :, given.rows[slot][group]], new[slot, :, 0])
    equal_in_the_first = Grouped()
    equal_in_the_first.prefill(0, 1, 50, 20, 3)
    equal_in_the_first.prefill(1, 1, 50, 20, 4)
    assert not equal_in_the_first.slots.even([50, 50])


def test_a_moved_slot_takes_its_lengths_along_and_a_free_one_has_none():
    given = Grouped()
    slots = given.slots
    given.prefill(0, 2, 50, 20, 3)
    given.prefill(2, 1, 40, 30, 6)
    slots.move(2, 0, 40)
    slots.leave(2)
    given.rows = {0: [40, 30, 6], 1: [50, 20, 3], 2: [0, 0, 0]}
    given.check([40, 50, 0])
    assert slots.less == [[0] * 4, [10, 30, 0, 0], [34, 47, 0, 0]]
    for layer, group in enumerate(slots.group_of):
        rows = given.rows[0][group]
        want = rows_of(1, rows, layer)[0].transpose(0, 1) + 2
        assert torch.equal(slots.store[2 * layer][0, :rows], want)


def test_layers_of_a_group_with_unequal_prompts_are_a_fault():
    slots = slots_of(1, 64, (0, 3))
    with pytest.raises(LookupError, match="unequal"), slots.filling(0, [9]):
        slots.write(0, rows_of(1, 9, 0), rows_of(1, 9, 0))
        slots.write(1, rows_of(1, 5, 1), rows_of(1, 5, 1))
