"""Sampling: the user's settings over the checkpoint's own generation settings. Knows no model."""

from dataclasses import dataclass
from typing import Any

from trimtok_cli.bounds import Facts, check_number, check_record, setting
from trimtok_cli.errors import UsageError

COLDEST = 1e-30  # scores divided by a lower temperature leave float32

MOST_TOKENS = 2**31 - 1

LENGTH = Facts(least=1, most=MOST_TOKENS)  # tokens of an answer


@dataclass(frozen=True)
class Sampling:
    """The user's settings, which overrule the checkpoint's; None leaves the checkpoint's own.

    temperature: 0 is greedy, a higher one samples. top_p, top_k (0 is no bound) and
    repetition_penalty are as in transformers. greedy: the likeliest token each time, whatever the
    checkpoint says of sampling, beams and other searches; the checkpoint's penalties stay. Every
    sample draws from a generator of its own, made of `seed`, the image names and the question, so
    that no answer depends on its batch. Raises UsageError for a value that means nothing.
    """

    temperature: float | None = setting(None, least=0, most=10**6)
    top_p: float | None = setting(None, above=0, most=1)
    seed: int = setting(0, least=0, most=2**63 - 1)
    top_k: int | None = setting(None, least=0, most=MOST_TOKENS)
    repetition_penalty: float | None = setting(None, least=0.01, most=100)
    greedy: bool = setting(False)

    def __post_init__(self) -> None:
        check_record(self)
        heat = self.temperature
        if heat and heat < COLDEST:
            raise UsageError(
                f"--temperature must be 0 (greedy) or a number of at least {COLDEST:g}, got {heat}."
            )
        if self.greedy and heat:
            raise UsageError(
                f"--greedy and --temperature {heat:g} contradict each other; give one of them."
            )

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that are given, keyed by the names of transformers' GenerationConfig."""
        named = {
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
        }
        found = {name: value for name, value in named.items() if value is not None}
        if self.greedy or self.temperature == 0:
            return found | {"do_sample": False}
        return (
            found
            if self.temperature is None
            else found | {"do_sample": True, "temperature": self.temperature}
        )


def check_length(max_new_tokens: int | None) -> None:
    """Raises UsageError if no answer can have so many tokens; None is the checkpoint's number."""
    if max_new_tokens is not None:
        check_number(LENGTH, max_new_tokens, "--max-new-tokens must be")
