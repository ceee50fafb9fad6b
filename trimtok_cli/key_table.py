"""Many keys in little memory: some 30 bytes each, where a dict takes 200. Knows no sample."""

from array import array
from collections.abc import Iterator, Sequence

SIZE = 16  # bytes of a key

_FIRST_SLOTS = 64


class KeyTable:
    """Keys, each with the number under which it was met first: 0, 1, 2 and so on.

    Takes 16 bytes a key for the halves of all keys, one after the other, and 8 to 16 for slots, at
    most half of which are used: each holds the number of a key plus one, or 0.
    """

    def __init__(self) -> None:
        self._halves = array("Q")
        self._slots = array("I", bytes(4 * _FIRST_SLOTS))

    def __len__(self) -> int:
        return len(self._halves) // 2

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> bytes:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._halves[2 * number : 2 * number + 2].tobytes()

    def find(self, key: bytes) -> int | None:
        """The number of a key; None if it was never met."""
        (low, high), halves, slots = _halves([key]), self._halves, self._slots
        mask = len(slots) - 1
        slot = hash(key) & mask
        while found := slots[slot]:
            if halves[2 * found - 2] == low and halves[2 * found - 1] == high:
                return found - 1
            slot = (slot + 1) & mask
        return None

    def put(self, key: bytes) -> int:
        """The number of a key, which is a new one if it was never met."""
        return self.put_all((key,))[0]

    def put_all(self, keys: Sequence[bytes]) -> list[int]:
        """The numbers of keys, as `put` gives them. Raises ValueError for a key of another size."""
        pairs, numbers = _halves(keys), []
        if 2 * (len(self) + len(keys)) > len(self._slots):
            self.make_room(len(keys))
        halves, slots, mask, count = self._halves, self._slots, len(self._slots) - 1, len(self)
        for key, low, high in zip(keys, pairs[::2], pairs[1::2], strict=True):
            slot = hash(key) & mask
            while found := slots[slot]:
                if halves[2 * found - 2] == low and halves[2 * found - 1] == high:
                    break
                slot = (slot + 1) & mask
            else:
                halves.append(low)
                halves.append(high)
                count += 1
                slots[slot] = found = count
            numbers.append(found - 1)
        return numbers

    def make_room(self, more: int) -> None:
        """Enlarges the slots for `more` keys."""
        size = len(self._slots)
        while size < 2 * (len(self) + more):
            size *= 2
        slots, mask = array("I", bytes(4 * size)), size - 1
        for number, key in enumerate(self, 1):
            slot = hash(key) & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = number
        self._slots = slots


def _halves(keys: Sequence[bytes]) -> "array[int]":
    """Two numbers of 64 bits for each key."""
    if not all(len(key) == SIZE for key in keys):
        raise ValueError(f"a key has {SIZE} bytes, in hexadecimal {2 * SIZE} digits")
    return array("Q", b"".join(keys))
