"""The sizes that a loop runs at: how they follow its prompts, and shrink after memory ran out.

After memory ran out every rule takes something strictly smaller, so that no loop tries for ever
where a device says that more is free than fits. Knows no answer and no cache.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from statistics import fmean
from typing import Any

from trimtok_cli.generation.capacity import (
    MOST_AT_ONCE,
    Room,
    answers_that_fit,
    batch_limit_for,
    likely_length,
    places_of,
)
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import LanguageModel

# Prompts for each answer at once that a long prompt is remembered for: slots that are soon too
# short again would cost a new cache and new recordings each time.
REMEMBERED = 4
# How many times more answers must fit before the limit rises again, for the same reason.
WORTH = 1.5


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
    """A request that is tried alone, because it did not fit beside `slots` of `length` places.

    room: the room that there was without them.
    """

    request: Any
    slots: int
    length: int
    room: Room


class Sizes:
    """batch_limit: answers at once. prefill_tokens: tokens of one prefill, padding counted.

    asked: the user's limit, None where memory decides. new_tokens: the new tokens that a slot is
    made for. A longer answer makes its own room. longest: the longest prompt of those not answered
    yet and of the last ones. held: the most rows of a prompt of some length in each layer, as far
    as is known; nothing where layers hold whole prompts.
    """

    def __init__(
        self,
        model: LanguageModel,
        rules: Rules,
        asked: int | None,
        prefill_tokens: int,
        new_tokens: int,
        held: Callable[[int], Sequence[int]] = lambda longest: (),
    ) -> None:
        self.model, self.rules, self.held = model, rules, held
        self.asked = self.batch_limit = asked
        self.prefill_tokens, self.new_tokens = prefill_tokens, new_tokens
        self.longest = 0
        self.last: deque[int] = deque(maxlen=REMEMBERED * max(MOST_AT_ONCE.values()))
        # The room of an empty cache; None while the user's limit has fitted.
        self.room: Room | None = None
        # The places of a cache, as a layer has them in the mean; more did not fit.
        self.most_places = inf

    def see(self, length: int, unanswered: int) -> None:
        """Follows the length of a new prompt, and the longest of those not answered yet.

        A limit that was left open is what fits of the longest, in the room that there was before
        the first one; a limit that memory has cut grows again with shorter prompts.
        """
        self.last.append(length)
        if self.asked is None and self.room is None:
            self.room = Room.of(self.model.device)
        remembered = REMEMBERED * (self.batch_limit or 1)
        longest = max(unanswered, *islice(reversed(self.last), remembered))
        limit = self._limit(longest)
        if (
            self.batch_limit is None
            or limit < self.batch_limit
            or limit >= WORTH * self.batch_limit
        ):
            self.batch_limit = limit
        self.longest = longest

    def _limit(self, longest: int) -> int:
        if self.asked is not None and self.room is None:
            return self.asked
        held = self.held(longest)
        fit = batch_limit_for(self.model, self.rules, longest, self.room, held, self.asked)
        return max(1, int(min(fit, self.most_places / self._places(longest))))

    def _places(self, longest: int) -> float:
        """The places of a slot for a prompt of `longest` tokens, in the mean over the layers."""
        likely = likely_length(self.model.num_positions, self.rules, longest)
        behind = min(likely, self.new_tokens)
        return fmean(places_of(rows + behind) for rows in self.held(longest) or [longest])

    def cache_broke(self, slots: int, length: int, room: Room | None = None) -> None:
        """A cache of `slots` slots of `length` places does not fit: as many as do, or fewer.

        room: that of an empty cache; the present one by default.
        """
        self._at_most(slots - max(1, slots // 16), length, room)

    def growth_broke(self) -> None:
        """Slots could not grow under way: the next ones are made longer at once."""
        self.new_tokens *= 2

    def prefill_broke(self, tokens: int) -> None:
        """A prefill of `tokens` tokens does not fit beside the cache: half of it may."""
        self.prefill_tokens = tokens // 2

    def decode_broke(self, count: int, length: int) -> None:
        """A step of `count` answers does not fit beside the cache: a quarter fewer, or less."""
        self._at_most(count - max(1, count // 4), length)

    def _at_most(self, count: int, length: int, room: Room | None = None) -> None:
        if count < 1:
            return
        self.room = room or Room.of(self.model.device)
        self.most_places = min(self.most_places, count * self._places(self.longest))
        fit = answers_that_fit(
            self.model.config,
            self.model.dtype,
            self.model.device,
            length=length,
            prefill_tokens=self.prefill_tokens,
            room=self.room,
        )
        self.batch_limit = max(1, min(self.batch_limit or count, count, fit))
