"""The continuous loop: as an answer ends, a waiting prompt takes its slot (continuous batching).

Prompts are prefilled together, up to a number of tokens, padded as in `plain.generate`. Each
answer is a slot of a static cache from then on, whatever its length. The tokens, greedy or sampled,
equal those of `plain.generate`, the oracle of this loop. Knows no pruner and no image.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.device import forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.back_off import Alone, Sizes, Stage
from trimtok_cli.generation.capacity import Room, prefill_tokens_on
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.on_the_way import OnTheWay
from trimtok_cli.generation.padding import PADDING, like_lengths
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.slot_steps import SlotSteps
from trimtok_cli.generation.types import Finished, LanguageModel
from trimtok_cli.generation.under_way import Launched, Row

log = logging.getLogger("trimtok")

# The answers under way wait for a prefill of so many prompts: a quarter of the slots, up to FILLS,
# which keep a device busy; or an eighth where that is more.
FILLS = 8
# New tokens that a slot is made for. A longer answer makes its own room: few answers are as long as
# they may be.
AT_ONCE = 512
# Steps that are launched behind a step before the host reads its tokens. One keeps CUDA at work
# while the host reads, and costs an answer at most one step too many. Reading costs nothing on
# other devices.
LAG = {"cuda": 1}


class Continuous:
    """Runs at most `batch_limit` answers at a time, each in a slot of one cache.

    A `batch_limit` of None takes as many as memory allows, once the first prompt shows how much one
    answer takes; the limit follows the lengths of the prompts, and shrinks when memory runs out.
    One object serves a whole run, because it holds the cache and a device's recorded steps.
    retries: False drops everything under way at the first error and raises it, where a smaller
    batch would measure something else.
    """

    def __init__(
        self,
        model: LanguageModel,
        rules: Rules,
        *,
        batch_limit: int | None = 1,
        keep_logits: bool = False,
        prefill_tokens: int | None = None,
        lag: int | None = None,
        retries: bool = True,
        steps: SlotSteps | None = None,
    ) -> None:
        self.model, self.rules, self.keep_logits = model, rules, keep_logits
        self.retries = retries
        self.steps = steps or SlotSteps(model)
        tokens = prefill_tokens or prefill_tokens_on(model.device)
        self.sizes = Sizes(model, rules, batch_limit, tokens, AT_ONCE, self.steps.rows_held)
        self.padding = PADDING.get(model.device.type)
        self.chooser = Chooser(rules)
        self.lag = LAG.get(model.device.type, 0) if lag is None else lag
        self.active: list[Row] = []
        self.launched: deque[Launched] = deque()
        self.waiting: deque[Row] = deque()
        self.finished: list[Finished] = []
        # The number of prompts still to be run alone, since one of them broke a batch.
        self.singly = 0
        self.stage = Stage()
        self.since = 0.0
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
        longest = max((len(row.prompt) for row in (*self.active, *self.waiting)), default=0)
        for request in requests:
            if error := self.rules.refusal(request.prompt):
                self.finished.append(Finished(request, None, error=error))
            else:
                longest = max(longest, len(request.prompt))
                self.sizes.see(len(request.prompt), longest)
                self.waiting.append(self._row(request))

    def step(self) -> list[Finished]:
        """Prefills waiting prompts that fit, then launches a decode step for all under way.

        Tokens are read `lag` steps behind the step launched last.
        """
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
        worth = max(limit / 8, min(limit / 4, FILLS))
        return max(free, 0) if not self.active or free >= worth else 0

    def _row(self, request: Any) -> Row:
        return Row(request, self.rules.answer(request.prompt))

    def _groups(self, rows: list[Row]) -> Iterator[list[Row]]:
        """The rows of each prefill: prompts of like length."""
        rows = sorted(rows, key=lambda row: len(row.prompt))
        lengths, first = [len(row.prompt) for row in rows], 0
        for count in like_lengths(lengths, self.sizes.prefill_tokens, self.padding):
            yield rows[first : first + count]
            first += count

    @torch.inference_mode()
    def _run_stages(self, fresh: list[Row]) -> None:
        """The stages of a step, each noted with the sizes that shrink where it does not fit."""
        self.since = time.perf_counter()
        if fresh:
            self._reserve(fresh)
        for group in self._groups(fresh):
            tokens = len(group) * len(group[-1].prompt)
            self.stage = Stage(partial(self.sizes.prefill_broke, tokens), group)
            self._admit(group)
            self._read(self.lag)
        if any(row.left > 0 for row in self.active):
            self.stage = Stage(self.sizes.growth_broke)
            self._grow()
            size = len(self.active), self.steps.slots.length
            self.stage = Stage(partial(self.sizes.decode_broke, *size), self.active)
            self._advance()
            self._read(self.lag)
        else:
            self._read(len(self.launched) - 1)
        if not self.active:
            self.launched.clear()

    def _run_again(self, failed: Exception, fresh: list[Row]) -> None:
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
        self.launched.clear()
        self.chooser.clear()
        self.steps.clear()
        if out_of_memory(failed):
            release(self.model.device)
        if not self.retries:
            self.waiting.clear()
            self.finished.clear()
            raise failed
        lone = self.stage.lone.request if self.stage.lone else None
        if not out_of_memory(failed):
            lone = broken[0] if len(broken) == 1 else None
            self.singly = len(broken)
        elif lone is None:
            self.stage.shrink()
        elif not self.alone or self.alone.request is not lone:
            self.alone = Alone(lone, *held, Room.of(self.model.device))
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
                alone = self.alone
                self.sizes.cache_broke(alone.slots, alone.length, alone.room)
            self.alone = None
        self.finished.append(finished)

    def _reserve(self, rows: list[Row]) -> None:
        """Makes room for `rows` beside the answers under way, once for all of their prefills."""
        slots = len(self.active) + len(rows)
        longest = max(len(row.prompt) for row in (*self.active, *rows))
        if not self.alone:
            longest = max(longest, self.sizes.longest)
        new_tokens = min(max(row.answer.limit for row in rows), self.sizes.new_tokens)
        behind = new_tokens + self.lag + 1
        length = longest + behind
        if self.steps.slots.rows:
            # It may fit once the old cache is gone.
            self.stage = Stage()
        else:
            self.stage = Stage(partial(self.sizes.cache_broke, slots, length), rows)
        in_use, most = [row.length for row in self.active], self.batch_limit or 1
        positions = rows[0].prompt.positions
        self.steps.reserve(slots, length, positions, behind, in_use=in_use, most=most)

    def _admit(self, rows: list[Row]) -> None:
        """Prefills `rows` into the first free slots."""
        if self.steps.waits:
            self._read(0)
        first = len(self.active)
        logits = self.steps.take_in(first, [row.request for row in rows])
        self.chooser.admit([row.answer for row in rows])
        chosen = self.chooser(logits, first)
        self.steps.take(first, chosen)
        self.active += rows
        # A recorded prefill writes its next logits over these.
        self._note(rows, chosen, logits.clone() if self.keep_logits else logits, prefill=True)
        for row in self.active:
            row.peak_batch = max(row.peak_batch, len(self.active))

    def _grow(self) -> None:
        """Makes room for the next tokens of the answers under way."""
        most = [row.length + row.left + self.lag + 1 for row in self.active]
        self.steps.make_room([row.length for row in self.active], most)

    def _advance(self) -> None:
        """Launches a decode step for the answers under way."""
        logits = self.steps.decode([row.length for row in self.active])
        chosen = self.chooser(logits)
        self.steps.advance(len(logits), chosen)
        # A recorded step writes its next logits over these.
        self._note(self.active, chosen, logits.clone() if self.keep_logits else logits)

    def _note(
        self, rows: Sequence[Row], chosen: Tensor, logits: Tensor, *, prefill: bool = False
    ) -> None:
        """Notes a launched step, whose tokens start on their way to the host."""
        for row in rows:
            row.launched += 1
        tokens, kept = OnTheWay(chosen), logits if self.keep_logits else None
        self.launched.append(Launched(list(rows), tokens, kept, prefill))

    def _read(self, behind: int) -> None:
        """Reads the tokens of the oldest steps, all but `behind`; answers that end leave."""
        while len(self.launched) > max(behind, 0):
            step = self.launched.popleft()
            if step.needed:
                step.take(self.since)
                self.since = time.perf_counter()
                self._leave()

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
            self._end(row.finished())
