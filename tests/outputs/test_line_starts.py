"""Compact tables do what a dict does, whatever comes in whatever order."""

import hashlib
import random
import sys

import pytest

from trimtok_cli.key_table import KeyTable
from trimtok_cli.outputs.line_starts import LineStarts


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def test_numbers_of_keys_are_those_of_a_dict():
    lots, table, known = random.Random(0), KeyTable(), {}
    for _ in range(300):
        block = [key(lots.randrange(5000)) for _ in range(lots.randrange(40))]
        assert table.put_all(block) == [known.setdefault(each, len(known)) for each in block]
        assert len(table) == len(known)
    assert list(table) == list(known)
    for number in range(5000):
        assert table.find(key(number)) == known.get(key(number))
    assert table[len(known) - 1] == list(known)[-1]
    with pytest.raises(IndexError):
        table[len(known)]


@pytest.mark.parametrize("numbers", [range(20000), range(0, 20000 << 100, 1 << 100)])
def test_keys_that_are_no_hashes_take_no_longer(numbers):
    """Each is met with few others on its way: in a table that is filled badly this never ends."""
    table = KeyTable()
    assert table.put_all([each.to_bytes(16) for each in numbers]) == list(range(20000))


@pytest.mark.parametrize("odd", [b"", b"a" * 15, b"a" * 17, b"a" * 32])
def test_a_key_of_another_size_is_refused(odd):
    table = KeyTable()
    with pytest.raises(ValueError, match="a key has 16 bytes"):
        table.put_all([b"a" * 16, odd])
    assert len(table) == 0


def test_a_key_takes_few_bytes():
    table = KeyTable()
    for number in range(50000):
        table.put(key(number))
    held = sys.getsizeof(table._halves) + sys.getsizeof(table._slots)
    assert held / 50000 < 34


def test_line_starts_are_those_of_a_dict():
    lots, starts, known = random.Random(1), LineStarts(), {}
    for _ in range(5000):
        one, at = key(lots.randrange(300)), lots.randrange(10**12)
        match lots.randrange(4):
            case 0:
                starts[one] = known[one] = at
            case 1:
                assert (starts.pop(one, None)) == known.pop(one, None)
            case 2:
                starts.meet(one)
            case 3:
                assert starts.get(one) == known.get(one) and (one in starts) == (one in known)
        assert len(starts) == len(known)
    assert dict(starts) == known


def test_lines_are_added_together_only_if_all_are_new():
    starts = LineStarts()
    assert starts.add_new([key(1), key(2)], [5, 9])
    assert not starts.add_new([key(3), key(2)], [11, 12])
    assert not starts.add_new([key(4), key(4)], [13, 14])
    assert dict(starts) == {key(1): 5, key(2): 9}
