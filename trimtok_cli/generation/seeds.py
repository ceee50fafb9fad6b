"""Seeds: one for every sample of a run, and one made from several parts. Knows no model."""

import hashlib
import json
from collections import Counter


class SampleSeeds:
    """A number for every sample of a run, from its image names and its question.

    A sample that repeats both gets a number of its own. The order of a file, its ids,
    batches and workers do not change the number.
    """

    def __init__(self) -> None:
        self.before: Counter[bytes] = Counter()

    def number(self, names: tuple[str, ...], question: str, turn: int = 0) -> int:
        """The number of one sample, below 2**63.

        turn: how often the same was asked up to this sample; 0 counts the calls instead.
        """
        key = hashlib.sha256(json.dumps([names, question]).encode()).digest()
        if not turn:
            self.before[key] += 1
            turn = self.before[key]
        return mixed_seed(key.hex(), turn)


def mixed_seed(*parts: object) -> int:
    """A number below 2**63 that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
