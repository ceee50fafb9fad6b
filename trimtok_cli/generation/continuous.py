"""The continuous loop: as an answer ends, a waiting prompt takes its slot (continuous batching).

Prompts are prefilled together, up to a number of tokens, left-padded as in `plain.generate`. Each
answer is a slot of a static cache from then on, whatever its length. The tokens, greedy or sampled,
equal those of `plain.generate`, the oracle of this loop. Knows no pruner and no image.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Seconds
from trimtok_cli.device import Clock, forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.back_off import Alone, Sizes, Stage
from trimtok_cli.generation.capacity import PREFILL_TOKENS
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
        self.model, self.rules, self.keep_logits = model, rules, keep_logits
        self.sizes = Sizes(model, batch_limit, prefill_tokens, AT_ONCE)
        self.chooser = Chooser(rules)
        self.block = BLOCK if model.device.type == "cuda" else 1
        self.steps = SlotSteps(model)
        self.active: list[_Row] = []
        self.waiting: deque[_Row] = deque()
        self.finished: list[Finished] = []
        # The number of prompts still to be run alone, since one of them broke a batch.
        self.singly = 0
        self.stage = Stage()
        self.alone: Alone | None = None

    @property
    def batch_limit(self) -> int | None:
        return self.sizes.batch_limit

    @property
    def busy(self) -> bool:
        return bool(self.active or self.waiting or self.finished)

    def room(self) -> int:
        """The number of requests that may be added now.

        It is 0 while a broken batch is run again, and while too few slots are free for a prefill to
        be worth the wait of the answers under way.
        """
        return 0 if self.waiting or (self.singly and self.active) else self._free()

    def add(self, requests: Sequence[Any]) -> None:
        for request in requests:
            if error := self.rules.refusal(request.prompt):
                self.finished.append(Finished(request, None, error=error))
            else:
                self.sizes.see(request.prompt, self.rules)
                self.waiting.append(self._row(request))

    def step(self) -> list[Finished]:
        """Prefills waiting prompts that fit, then decodes a block of tokens for all under way."""
        fresh = [self.waiting.popleft() for _ in range(min(self._free(), len(self.waiting)))]
        failed = None
        try:
            self._run_stages(fresh)
        except ModelError:
            raise
        except Exception as error:
            failed = forget_frames(error)
        # Behind the handler the failed step's tensors are no longer held.
        if failed:
            self._run_again(failed, fresh)
        finished, self.finished = self.finished, []
        return finished

    def _free(self) -> int:
        """The number of KV slots that a prefill may fill now."""
        # The first prompt runs alone and shows how much memory one answer takes.
        limit = 1 if self.singly or self.batch_limit is None else self.batch_limit
        free = limit - len(self.active)
        return max(free, 0) if not self.active or free * REFILL >= limit else 0

    def _row(self, request: Any) -> _Row:
        return _Row(request, self.rules.answer(request.prompt))

    def _groups(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Groups of prompts of like length, whose padded tokens stay within `prefill_tokens`."""
        rows, most = sorted(rows, key=lambda row: len(row.prompt)), self.sizes.prefill_tokens
        while rows:
            count = 1
            while count < len(rows) and (count + 1) * len(rows[count].prompt) <= most:
                count += 1
            yield rows[:count]
            rows = rows[count:]

    @torch.inference_mode()
    def _run_stages(self, fresh: list[_Row]) -> None:
        """The stages of a step, each noted with the sizes that shrink where it does not fit."""
        if fresh:
            self._reserve(fresh)
        for group in self._groups(fresh):
            tokens = len(group) * len(group[-1].prompt)
            self.stage = Stage(partial(self.sizes.prefill_broke, tokens), group)
            self._admit(group)
        if self.active:
            self.stage = Stage(self.sizes.growth_broke)
            self._grow()
            size = len(self.active), self.steps.slots.length
            self.stage = Stage(partial(self.sizes.decode_broke, *size), self.active)
            self._advance(self.active)

    def _run_again(self, failed: Exception, fresh: list[_Row]) -> None:
        """Puts all prompts of a broken step back in front of the waiting ones, in an empty cache.

        If memory ran out, sizes shrink. A prompt that makes up the broken stage runs alone first,
        and has failed if it breaks again. After any other error the prompts run one by one, so that
        none takes others along.
        """
        ended = {id(finished.request) for finished in self.finished}
        rows = {id(row.request): row for row in (*self.active, *fresh)}
        broken = [row.request for number, row in rows.items() if number not in ended]
        log.debug("a step of %d answers broke and is run again", len(broken), exc_info=failed)
        held = self.steps.slots.rows, self.steps.slots.length
        self.active = []
        self.chooser.clear()
        self.steps.clear()
        release(self.model.device)
        lone = self.stage.lone.request if self.stage.lone else None
        if not out_of_memory(failed):
            lone = broken[0] if len(broken) == 1 else None
            self.singly = len(broken)
        elif lone is None:
            self.stage.shrink()
        elif not self.alone or self.alone.request is not lone:
            self.alone = Alone(lone, *held)
            self.singly = max(self.singly, 1)
            broken = [lone, *(request for request in broken if request is not lone)]
            lone = None
        if lone is not None:
            self._end(Finished(lone, None, error=failed))
            broken.remove(lone)
        self.waiting.extendleft(map(self._row, reversed(broken)))

    def _end(self, finished: Finished) -> None:
        self.singly = max(self.singly - 1, 0)
        if self.alone and self.alone.request is finished.request:
            if not finished.error:
                # The prompt fits alone, and did not beside so many slots.
                self.sizes.cache_broke(self.alone.slots, self.alone.length)
            self.alone = None
        self.finished.append(finished)

    def _reserve(self, rows: list[_Row]) -> None:
        """Makes room for `rows` beside the answers under way, once for all of their prefills."""
        slots = len(self.active) + len(rows)
        longest = max(len(row.prompt) for row in rows)
        if not self.alone:
            longest = max(longest, self.sizes.longest)
        new_tokens = min(max(row.answer.limit for row in rows), self.sizes.new_tokens)
        length = longest + new_tokens + self.block
        if self.steps.slots.rows:
            # It may fit once the old cache is gone.
            self.stage = Stage()
        else:
            self.stage = Stage(partial(self.sizes.cache_broke, slots, length), rows)
        self.steps.reserve(slots, length, rows[0].prompt.positions)

    def _admit(self, rows: list[_Row]) -> None:
        """Prefills `rows` into the first free slots."""
        clock, first = Clock(self.model.device), len(self.active)
        logits = self.steps.prefill(first, [row.prompt for row in rows])
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
        self._leave()

    def _grow(self) -> None:
        """Makes room for the next tokens of the answers under way."""
        longest = max(row.length for row in self.active)
        most = max(row.length + row.left for row in self.active)
        self.steps.make_room(longest + self.block, most + self.block)

    def _advance(self, rows: list[_Row]) -> None:
        """Decodes a block of tokens for the answers under way."""
        clock, count = Clock(self.model.device), len(rows)
        lengths = [row.length for row in rows]
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
        self._leave()

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

    def _leave(self) -> None:
        """Takes the ended answers out.

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
        for row in ended:
            generated = Generated.of(row.answer, torch.stack(row.logits) if row.logits else None)
            self._end(Finished.of(row.request, generated, row.seconds, row.peak_batch))
