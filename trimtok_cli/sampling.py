"""How the next token is asked for: what a user says over the checkpoint's own generation settings, and whose lots are drawn.

Knows no model and no torch: the settings are checked before anything is loaded.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from trimtok_cli.bounds import check_number, flag, setting
from trimtok_cli.errors import UsageError

COLDEST = 1e-30  # below it scores divided by the temperature leave float32
MOST_TOKENS = 2**31 - 1
LENGTH = {"least": 1, "most": MOST_TOKENS}  # of an answer


@dataclass(frozen=True)
class Sampling:
    """What overrules the checkpoint's generation settings; None leaves its own word standing. UsageError for what means nothing.

    temperature: 0 is greedy, more samples at it. top_p, top_k (0 is no bound) and repetition_penalty are as in transformers.
    greedy: the likeliest token each time, whatever the checkpoint says of sampling, beams and other searches; its penalties stay.
    Every sample draws from a generator of its own, made of `seed` and of what is asked, so that no answer depends on its batch.
    """

    temperature: float | None = setting(None, least=0, most=10**6)
    top_p: float | None = setting(None, above=0, most=1)
    seed: int = setting(0, least=0, most=2**63 - 1)
    top_k: int | None = setting(None, least=0, most=MOST_TOKENS)
    repetition_penalty: float | None = setting(None, least=0.01, most=100)
    greedy: bool = setting(False)

    def __post_init__(self) -> None:
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None:
                check_number(each.metadata, value, f"{flag(each.name)} must be")
        heat = self.temperature
        if heat and heat < COLDEST:
            raise UsageError(f"--temperature must be 0 (greedy) or a number of at least {COLDEST:g}, got {heat}.")
        if self.greedy and heat:
            raise UsageError(f"--greedy and --temperature {heat:g} contradict each other; give one of them.")

    @property
    def overrides(self) -> dict[str, Any]:
        """The same by the names of transformers' GenerationConfig."""
        named = {"top_p": self.top_p, "top_k": self.top_k, "repetition_penalty": self.repetition_penalty}
        found = {name: value for name, value in named.items() if value is not None}
        if self.greedy or self.temperature == 0:
            return found | {"do_sample": False}
        return found if self.temperature is None else found | {"do_sample": True, "temperature": self.temperature}


def check_length(max_new_tokens: int | None) -> None:
    """UsageError where an answer cannot have so many tokens; None is the checkpoint's own number."""
    if max_new_tokens is not None:
        check_number(LENGTH, max_new_tokens, "--max-new-tokens must be")


class Lots:
    """A number for every sample of a run, from what is asked and from how often the same was asked before.

    The order of a file, its ids, batches and workers play no part in it.
    """

    def __init__(self) -> None:
        self.before: Counter[bytes] = Counter()

    def number(self, names: tuple[str, ...], question: str) -> int:
        """Below 2**63."""
        key = hashlib.sha256(json.dumps([names, question]).encode()).digest()
        self.before[key] += 1
        return mixed(key.hex(), self.before[key])


def mixed(*parts: object) -> int:
    """A number below 2**63 that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
