"""Where the line of each key begins, in some 40 bytes a key. Knows no file."""

from array import array
from collections.abc import Iterator, MutableMapping, Sequence

from trimtok_cli.key_table import KeyTable

_NOWHERE = (1 << 64) - 1


class LineStarts(MutableMapping[bytes, int]):
    """Key -> the byte at which its line begins; in the order in which the keys were met first.

    keys_met: every key that was ever put or met, by a number; a key may have no line.
    """

    def __init__(self) -> None:
        self.keys_met = KeyTable()
        self._starts = array("Q")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (self.keys_met[number] for number in range(len(self._starts)) if self.has(number))

    def __getitem__(self, key: bytes) -> int:
        number = self.keys_met.find(key)
        if number is None or not self.has(number):
            raise KeyError(key)
        return self._starts[number]

    def __setitem__(self, key: bytes, start: int) -> None:
        number = self.meet(key)
        self._count += not self.has(number)
        self._starts[number] = start

    def __delitem__(self, key: bytes) -> None:
        self[key]  # KeyError
        self._starts[self.meet(key)] = _NOWHERE
        self._count -= 1

    def meet(self, key: bytes) -> int:
        """The number of a key, whether it has a line or not."""
        number = self.keys_met.put(key)
        if number == len(self._starts):
            self._starts.append(_NOWHERE)
        return number

    def add_new(self, keys: Sequence[bytes], starts: Sequence[int]) -> bool:
        """Adds keys with their lines; False, and nothing is added, if a key was met before."""
        before = len(self.keys_met)
        numbers = self.keys_met.put_all(keys)
        if numbers == list(range(before, before + len(keys))):
            self._starts.extend(starts)
            self._count += len(keys)
            return True
        self._starts.extend([_NOWHERE] * (len(self.keys_met) - before))
        return False

    def has(self, number: int) -> bool:
        """Whether the key of a number has a line."""
        return self._starts[number] != _NOWHERE

    def at(self, number: int) -> int:
        """Where the line begins of the key of a number, which has one."""
        return self._starts[number]
