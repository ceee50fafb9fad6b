"""Seeds: one for every sample of a run, and one made of several parts."""

import hashlib
import json
from collections import Counter


class SampleSeeds:
    """A number for every sample of a run, from what is asked and from how often the same was asked
    before.

    The order of a file, its ids, batches and workers play no part in it.
    """

    def __init__(self) -> None:
        self.before: Counter[bytes] = Counter()

    def number(self, names: tuple[str, ...], question: str) -> int:
        """Below 2**63."""
        key = hashlib.sha256(json.dumps([names, question]).encode()).digest()
        self.before[key] += 1
        return mixed_seed(key.hex(), self.before[key])


def mixed_seed(*parts: object) -> int:
    """A number below 2**63 that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
