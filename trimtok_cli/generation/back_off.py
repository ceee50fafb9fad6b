"""The sizes that a loop runs at, and how they shrink after memory ran out.

Every rule takes something strictly smaller, so that no loop tries for ever where a device says that
more is free than fits. Knows no answer and no cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtok_cli.generation.capacity import Room, answers_that_fit, batch_limit_for
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import LanguageModel
from trimtok_cli.tokens import Prompt


@dataclass(frozen=True)
class Stage:
    """A part of a loop's step: the sizes that shrink, and the rows that run, if it does not fit."""

    shrink: Callable[[], None] = lambda: None
    rows: Sequence[Any] = ()

    @property
    def lone(self) -> Any:
        """The row that is the whole stage, so that nothing smaller can be tried beside others."""
        return self.rows[0] if len(self.rows) == 1 else None


@dataclass(frozen=True)
class Alone:
    """A request that is tried alone, because it did not fit beside `slots` of `length` places."""

    request: Any
    slots: int
    length: int


class Sizes:
    """batch_limit: answers at once. prefill_tokens: tokens of one prefill, padding counted.

    new_tokens: the new tokens that a slot is made for. A longer answer makes its own room. longest:
    the longest prompt so far.
    """

    def __init__(
        self, model: LanguageModel, batch_limit: int | None, prefill_tokens: int, new_tokens: int
    ) -> None:
        self.model, self.batch_limit = model, batch_limit
        self.prefill_tokens, self.new_tokens = prefill_tokens, new_tokens
        self.longest = 0
        self.room: Room | None = None

    def see(self, prompt: Prompt, rules: Rules) -> None:
        """Notes a prompt's length.

        A limit that was left open follows the longest prompt so far, in the room that there was
        before the first one.
        """
        longer = len(prompt) > self.longest
        self.longest = max(self.longest, len(prompt))
        if self.batch_limit is None:
            self.room = Room.of(self.model.device)
        if self.room and longer:
            limit = batch_limit_for(self.model, rules, self.longest, self.room)
            self.batch_limit = min(self.batch_limit or limit, limit)

    def cache_broke(self, slots: int, length: int) -> None:
        """A cache of `slots` slots of `length` places does not fit: as many as do, or fewer."""
        self._at_most(slots - max(1, slots // 16), length)

    def growth_broke(self) -> None:
        """Slots could not grow under way: the next ones are made longer at once."""
        self.new_tokens *= 2

    def prefill_broke(self, tokens: int) -> None:
        """A prefill of `tokens` tokens does not fit beside the cache: half of it may."""
        self.prefill_tokens = tokens // 2

    def decode_broke(self, count: int, length: int) -> None:
        """A step of `count` answers does not fit beside the cache: a quarter fewer, or less."""
        self._at_most(count - max(1, count // 4), length)

    def _at_most(self, count: int, length: int) -> None:
        if count < 1:
            return
        fit = answers_that_fit(
            self.model.config,
            self.model.dtype,
            self.model.device,
            length=length,
            prefill_tokens=self.prefill_tokens,
        )
        self.batch_limit = max(1, min(self.batch_limit or count, count, fit))
