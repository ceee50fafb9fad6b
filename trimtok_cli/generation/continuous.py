"""The continuous loop: as an answer ends, a waiting prompt takes its slot (continuous batching).

Prompts are prefilled together, up to a number of tokens, padded as in `plain.generate`. Each
answer is a slot of a static cache from then on, whatever its length. The tokens, greedy or sampled,
equal those of `plain.generate`, the oracle of this loop. Knows no pruner and no image.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Seconds
from trimtok_cli.device import Clock, forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.capacity import PREFILL_TOKENS, batch_limit_for
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.generation.slot_steps import SlotSteps
from trimtok_cli.generation.types import Finished, Generated, LanguageModel
from trimtok_cli.tokens import Prompt

log = logging.getLogger("trimtok")

REFILL = 4  # a quarter of the slots must be free before the answers under way wait for a prefill
# New tokens that a slot is made for. A longer answer makes its own room: few answers are as long as
# they may be.
AT_ONCE = 512
# Steps launched on CUDA before the host looks at their tokens. Looking costs nothing on other
# devices.
BLOCK = 4


@dataclass
class _Row:
    """One answer under way. Its slot is its index in the list of answers under way."""

    request: Any
    answer: Answer
    logits: list[Tensor] = field(default_factory=list)
    prefill: float = 0.0
    decode: float = 0.0
    peak_batch: int = 1

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt

    @property
    def finish(self) -> str:
        return self.answer.finish

    @property
    def seconds(self) -> Seconds:
        return Seconds(prefill=self.prefill, decode=self.decode)

    @property
    def length(self) -> int:
        """The filled places of its slot, without the last token: the next step writes its keys."""
        return len(self.prompt) + len(self.answer.ids) - 1

    @property
    def left(self) -> int:
        """The number of tokens that the answer may still have."""
        return self.answer.limit - len(self.answer.ids)


class Continuous:
    """Runs at most `batch_limit` answers at a time, each in a slot of one cache.

    A `batch_limit` of None takes as many as memory allows, once the first prompt shows how much one
    answer takes; the limit shrinks for good when memory runs out. One object serves a whole run,
    because it holds the cache and a device's recorded steps.
    """

    def __init__(
        self,
        model: LanguageModel,
        rules: Rules,
        *,
        batch_limit: int | None = 1,
        keep_logits: bool = False,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self.model, self.rules, self.batch_limit = model, rules, batch_limit
        self.keep_logits, self.prefill_tokens = keep_logits, prefill_tokens
        self.chooser = Chooser(rules)
        self.block = BLOCK if model.device.type == "cuda" else 1
        self.steps = SlotSteps(model)
        self.active: list[_Row] = []
        self.waiting: deque[_Row] = deque()
        self.refused: list[Finished] = []
        # The number of prompts still to be run alone, since one of them broke a batch.
        self.singly = 0

    @property
    def busy(self) -> bool:
        return bool(self.active or self.waiting or self.refused)

    def room(self) -> int:
        """The number of requests that may be added now.

        It is 0 while a broken batch is run again, and while too few slots are free for a prefill to
        be worth the wait of the answers under way.
        """
        return 0 if self.waiting or (self.singly and self.active) else self._free()

    def add(self, requests: Sequence[Any]) -> None:
        for request in requests:
            if error := self.rules.refusal(request.prompt):
                self.refused.append(Finished(request, None, error=error))
            else:
                self.waiting.append(self._row(request))

    def step(self) -> list[Finished]:
        """Prefills waiting prompts that fit, then decodes a block of tokens for all under way."""
        finished, self.refused = self.refused, []
        fresh = [self.waiting.popleft() for _ in range(min(self._free(), len(self.waiting)))]
        # Room is made once for all prompts: a growing cache is in memory twice while it is copied.
        longest = max((len(row.prompt) for row in fresh), default=0)
        admit = partial(self._admit, slots=len(self.active) + len(fresh), longest=longest)
        for group in self._groups(fresh):
            finished += self._attempt(admit, group)
        if self.active:
            finished += self._attempt(self._advance, self.active)
        return finished

    def _free(self) -> int:
        """The number of KV slots that a prefill may fill now."""
        # The first prompt runs alone and shows how much memory one answer takes.
        limit = 1 if self.singly or self.batch_limit is None else self.batch_limit
        free = limit - len(self.active)
        return max(free, 0) if not self.active or free * REFILL >= limit else 0

    def _row(self, request: Any) -> _Row:
        if self.batch_limit is None:
            self.batch_limit = batch_limit_for(self.model, self.rules, request.prompt)
        return _Row(request, self.rules.answer(request.prompt))

    def _groups(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Groups of prompts of like length, whose padded tokens stay within `prefill_tokens`."""
        rows = sorted(rows, key=lambda row: len(row.prompt))
        while rows:
            count = 1
            while (
                count < len(rows) and (count + 1) * len(rows[count].prompt) <= self.prefill_tokens
            ):
                count += 1
            yield rows[:count]
            rows = rows[count:]

    def _attempt(
        self, step: Callable[[list[_Row]], list[_Row]], rows: list[_Row]
    ) -> list[Finished]:
        """Runs a step, and returns the answers that end in it.

        Everything under way is run again after a step that breaks: fewer at a time if memory ran
        out, one by one after any other error, so that no prompt takes others along.
        """
        try:
            return [self._finished(row) for row in step(rows)]
        except ModelError:
            raise
        except Exception as error:
            failed = forget_frames(error)
        # Behind the handler the failed step's tensors are no longer held.
        under_way = set(map(id, self.active))
        broken = [*self.active, *(row for row in rows if id(row) not in under_way)]
        log.debug("a step of %d answers broke and is run again", len(broken), exc_info=failed)
        self.active = []
        self.chooser.clear()
        self.steps.clear()
        release(self.model.device)
        if len(broken) == 1:
            self.singly = max(self.singly - 1, 0)
            return [Finished(broken[0].request, None, broken[0].seconds, error=failed)]
        self.waiting.extendleft(self._row(row.request) for row in reversed(broken))
        if out_of_memory(failed):
            self.batch_limit = max(1, len(broken) // 2)
        else:
            self.singly = len(broken)
        return []

    def _finished(self, row: _Row) -> Finished:
        self.singly = max(self.singly - 1, 0)
        generated = Generated.of(row.answer, torch.stack(row.logits) if row.logits else None)
        return Finished.of(row.request, generated, row.seconds, row.peak_batch)

    @torch.inference_mode()
    def _admit(self, rows: list[_Row], *, slots: int, longest: int) -> list[_Row]:
        """Prefills `rows` into the first free slots; returns those that end with their first token.

        Room is reserved for `slots` slots and prompts of `longest` tokens.
        """
        clock, first = Clock(self.model.device), len(self.active)
        new_tokens = min(max(row.answer.limit for row in rows), AT_ONCE)
        logits = self.steps.prefill(
            first,
            [row.prompt for row in rows],
            slots=max(slots, first + len(rows)),
            length=longest + new_tokens + self.block,
        )
        self.chooser.admit([row.answer for row in rows])
        chosen = self.chooser(logits, first)
        self.steps.take(first, chosen)
        self.active += rows
        self._note([chosen], [logits], rows)
        for row in self.active:
            row.peak_batch = max(row.peak_batch, len(self.active))
        seconds = clock.mark()
        for row in rows:
            row.prefill = seconds / len(rows)
        return self._leave()

    @torch.inference_mode()
    def _advance(self, rows: list[_Row]) -> list[_Row]:
        """Decodes a block of tokens for the answers under way; returns those that end in it."""
        clock, count = Clock(self.model.device), len(rows)
        lengths = [row.length for row in rows]
        most = max(row.length + row.left for row in rows)
        self.steps.make_room(max(lengths) + self.block, most + self.block)
        even = max(lengths) == min(lengths)
        chosen, logits = [], []
        for number in range(min(self.block, max(row.left for row in rows))):
            found = self.steps.decode(count, max(lengths) + number + 1, even=even)
            logits.append(found.clone() if self.keep_logits else found)
            chosen.append(self.chooser(logits[-1]))
            self.steps.advance(count, chosen[-1])
        self._note(chosen, logits, rows)
        seconds = clock.mark()
        for row in rows:
            row.decode += seconds / count
        return self._leave()

    def _note(self, chosen: list[Tensor], logits: list[Tensor], rows: list[_Row]) -> None:
        """Adds the tokens of some steps to the answers, without tokens behind an answer's end."""
        for number, (row, tokens) in enumerate(
            zip(rows, torch.stack(chosen, 1).tolist(), strict=True)
        ):
            for step, token in enumerate(tokens):
                row.answer.take(token)
                if self.keep_logits:
                    row.logits.append(logits[step][number])
                if row.finish:
                    break

    def _leave(self) -> list[_Row]:
        """Takes the ended answers out, and returns them.

        The last answers move into the slots left free, so that the slots in use stay the first.
        """
        ended = [row for row in self.active if row.finish]
        for slot in reversed([i for i, row in enumerate(self.active) if row.finish]):
            if self.active[slot].finish == "error":
                self.steps.slots.wipe(slot)
            last = self.active.pop()
            self.chooser.remove(slot)
            if slot < len(self.active):
                self.active[slot] = last
                self.steps.move(len(self.active), slot, last.length)
        if ended:
            self.steps.leave(len(self.active))
        return ended
