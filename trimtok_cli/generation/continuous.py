"""The token loop for many prompts: as an answer ends, a waiting prompt takes its slot (continuous
batching).

Prompts are prefilled together, up to a number of tokens, left-padded as in `decoding.generate`;
from then on each answer is a slot of a static cache, wherever it stands in its text. Slots in use
are always the first ones. Greedy or sampled, the tokens are those of `generate`, which is its
oracle. Knows no pruner and no image.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Sampling
from trimtok_cli.device import Clock, forget_frames, out_of_memory, release
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.capacity import PREFILL_TOKENS, likely_length, rows_for
from trimtok_cli.generation.choosing import Chooser
from trimtok_cli.generation.cuda_graphs import Graphs
from trimtok_cli.generation.kv_slots import Slots
from trimtok_cli.generation.padding import pad_left
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.generation.types import Done, Generated, Take, Times, apart, done_of, generated
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.tokens import Prompt

log = logging.getLogger("trimtok")

REFILL = 4  # a quarter of the slots must be free before the answers under way wait for a prefill

# new tokens that a slot is made for; a longer answer makes its own room, for few are as long as
# they may be
AT_ONCE = 512

# CUDA: so many steps are launched before the host looks at their tokens; elsewhere looking costs
# nothing
BLOCK = 4


@dataclass
class _Row:
    """One answer under way. Its slot is its place in the list of those."""

    key: Any
    prompt: Prompt
    answer: Answer
    logits: list[Tensor] = field(default_factory=list)
    prefill: float = 0.0
    decode: float = 0.0
    beside: int = 1

    @property
    def finish(self) -> str:
        return self.answer.finish

    @property
    def length(self) -> int:
        """Places of its slot that are filled: the last token's keys are written by the step that
        reads it.
        """
        return len(self.prompt) + len(self.answer.ids) - 1

    @property
    def left(self) -> int:
        """Tokens that it may still say."""
        return self.answer.limit - len(self.answer.ids)


def longest_of(rows: Sequence[_Row]) -> int:
    return max((len(row.prompt) for row in rows), default=0)


class Continuous:
    """At most `rows` answers at a time; None takes as many as memory allows, once the first prompt
    shows what one takes.

    Kept over a whole run: the cache and a device's recorded steps live here. `rows` shrinks for
    good when memory runs out.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        rows: int | None = 1,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: bool = True,
        keep_logits: bool = False,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> None:
        self.adapter, self.rows, self.keep_logits, self.prefill_tokens = (
            adapter,
            rows,
            keep_logits,
            prefill_tokens,
        )
        self.rules = Rules(adapter, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop)
        self.chooser = Chooser(self.rules)
        self.block = BLOCK if adapter.device.type == "cuda" else 1
        self.config = adapter.model.get_decoder().config
        self.slots = Slots(self.config.num_hidden_layers, adapter.device)
        self.graphs = Graphs(adapter.device)
        self.active: list[_Row] = []
        self.careful = 0  # so many prompts still to be run alone, since one of them broke a batch
        self.ids = torch.zeros(0, dtype=torch.long, device=adapter.device)
        self.positions = self.ids

    def run(self, take: Take) -> Iterator[Done]:
        """Answers as they end."""
        again: deque[_Row] = deque()
        dry = False
        while True:
            free = self._room() - len(self.active)
            if free > 0 and (not self.active or free * REFILL >= self._room()):
                fresh = [again.popleft() for _ in range(min(free, len(again)))]
                if not fresh and not dry and not self.careful:
                    taken = take(free)
                    prompts, lost = apart(taken, self.rules)
                    yield from lost
                    dry, fresh = not taken, [self._row(key, prompt) for key, prompt in prompts]
                # Room is made once for all of them: a cache that grows is there twice while it is
                # copied.
                admit = partial(
                    self._admit, count=len(self.active) + len(fresh), longest=longest_of(fresh)
                )
                for group in self._groups(fresh):
                    yield from self._attempt(admit, group, again)
            if self.active:
                yield from self._attempt(self._advance, self.active, again)
            elif dry and not again:
                return

    def batch(self, prompts: Sequence[Prompt]) -> tuple[list[Generated], Times]:
        """One batch that begins together, answers in order, and the times of the whole of it.
        Raises what any of it ends in.
        """
        self.rows, left = len(prompts), iter(enumerate(prompts))
        done = sorted(self.run(lambda count: list(islice(left, count))), key=lambda each: each.key)
        for each in done:
            if each.error:
                raise each.error
        if self.rows < len(prompts):
            raise torch.OutOfMemoryError(f"{len(prompts)} answers at a time do not fit")
        times = Times(
            sum(each.times.prefill for each in done), sum(each.times.decode for each in done)
        )
        return [each.said for each in done], times

    def _room(self) -> int:
        if self.careful:
            return 1
        return 1 if self.rows is None else self.rows  # the first prompt alone says what one takes

    def _row(self, key: Any, prompt: Prompt) -> _Row:
        if self.rows is None:
            self.rows = rows_for(
                self.adapter, len(prompt), likely_length(self.adapter, self.rules, prompt)
            )
        return _Row(key, prompt, self.rules.answer(prompt))

    def _groups(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Prompts of like length together, so many that their padded tokens stay within bounds."""
        rows = sorted(rows, key=lambda row: len(row.prompt))
        while rows:
            count = next(
                (
                    n
                    for n in range(1, len(rows))
                    if (n + 1) * len(rows[n].prompt) > self.prefill_tokens
                ),
                len(rows),
            )
            yield rows[:count]
            rows = rows[count:]

    def _attempt(
        self, step: Callable[[list[_Row]], list[_Row]], rows: list[_Row], again: deque[_Row]
    ) -> Iterator[Done]:
        """A step, and the answers that it ends. Where it breaks, everything under way is run again:
        fewer at a time where memory ran out, one by one where anything else happened, so that no
        prompt takes others along.
        """
        try:
            ended = step(rows)
        except ModelError:
            raise
        except Exception as error:
            failed = forget_frames(error)
        else:
            yield from map(self._done, ended)
            return
        under_way = set(map(id, self.active))
        broken = [*self.active, *(row for row in rows if id(row) not in under_way)]
        log.debug("a step of %d answers broke and is run again", len(broken), exc_info=failed)
        self.active = []
        self.chooser.clear()
        self.slots.clear()
        self.graphs.clear()
        release(self.adapter.device)
        if len(broken) == 1:
            self.careful = max(self.careful - 1, 0)
            yield Done(broken[0].key, None, Times(broken[0].prefill, broken[0].decode), 1, failed)
            return
        again.extendleft(self._row(row.key, row.prompt) for row in reversed(broken))
        if out_of_memory(failed):
            self.rows = max(1, len(broken) // 2)
        else:
            self.careful = len(broken)

    def _done(self, row: _Row) -> Done:
        self.careful = max(self.careful - 1, 0)
        logits = torch.stack(row.logits) if row.logits else None
        return done_of(
            row.key, generated(row.answer, logits), Times(row.prefill, row.decode), row.beside
        )

    @torch.inference_mode()
    def _admit(self, rows: list[_Row], *, count: int, longest: int) -> list[_Row]:
        """Prefill, into the slots behind those in use; the answers that end with their first token.

        count, longest: for so many slots, and prompts of so many tokens, there must be room.
        """
        clock, prompts, first = (
            Clock(self.adapter.device),
            [row.prompt for row in rows],
            len(self.active),
        )
        embeds, mask, positions = pad_left(prompts)
        new_tokens = min(max(row.answer.limit for row in rows), AT_ONCE)
        self._reserve(max(count, first + len(rows)), longest + new_tokens + self.block, positions)
        with self.slots.filling(first, [len(prompt) for prompt in prompts]):
            logits = self.adapter.forward(embeds, mask, positions, self.slots, prompts)
        self.chooser.admit([row.answer for row in rows])
        chosen = self.chooser(logits, first)
        self.ids[first : first + len(rows)] = chosen.clamp(min=0)
        self.positions[..., first : first + len(rows), :] = positions[..., -1:] + 1
        self.active += rows
        self._note([chosen], [logits], rows)
        for row in self.active:
            row.beside = max(row.beside, len(self.active))
        seconds = clock.mark()
        for row in rows:
            row.prefill = seconds / len(rows)
        return self._leave()

    @torch.inference_mode()
    def _advance(self, rows: list[_Row]) -> list[_Row]:
        """A block of steps for all answers under way; those that end in it."""
        clock, count = Clock(self.adapter.device), len(rows)
        longest = max(row.length for row in rows)
        self._make_room(
            longest + self.block, max(row.length + row.left for row in rows) + self.block
        )
        even = longest == min(row.length for row in rows)
        chosen, logits = [], []
        for step in range(min(self.block, max(row.left for row in rows))):
            span = longest + step + 1
            if self.graphs.used:
                found = self.graphs(
                    self._masked_step, count, span, self.slots.rows, self.slots.length
                )
            else:
                found = self._step(count, span, None if even else self._masks(count, span))
            logits.append(found.clone() if self.keep_logits else found)
            chosen.append(self.chooser(logits[-1]))
            self.ids[:count] = chosen[-1].clamp(min=0)
            self.positions[..., :count, :] += 1
            self.slots.lengths[:count] += 1
        self._note(chosen, logits, rows)
        seconds = clock.mark()
        for row in rows:
            row.decode += seconds / count
        return self._leave()

    def _masked_step(self, count: int, span: int) -> Tensor:
        """As a step of slots of unequal length; every number it depends on lies on the device."""
        return self._step(count, span, self._masks(count, span))

    def _step(self, count: int, span: int, mask: Tensor | dict | None) -> Tensor:
        """(count, V): one more token for each of the first slots, of which attention sees `span`
        places.
        """
        self.slots.stepping(count, span, even=mask is None)
        embeds = self.adapter.embed_ids(self.ids[:count, None])
        return self.adapter.forward(embeds, mask, self.positions[..., :count, :], self.slots)

    def _masks(self, count: int, span: int) -> Tensor | dict[str, Tensor]:
        """What each slot has written so far, as scores to add, (count, 1, 1, span); by kind of
        layer where there are several.
        """
        ends, places = (
            self.slots.lengths[:count, None],
            torch.arange(span, device=self.slots.lengths.device),
        )
        window = getattr(self.config, "sliding_window", None)
        kinds = set(
            getattr(self.config, "layer_types", None)
            or ["sliding_attention" if window else "full_attention"]
        )
        low = torch.finfo(self.adapter.dtype).min
        masks = {}
        for kind in kinds:
            seen = places <= ends
            if kind == "sliding_attention":
                seen &= places > ends - window
            scores = torch.zeros(count, span, dtype=self.adapter.dtype, device=seen.device)
            masks[kind] = scores.masked_fill_(~seen, low)[:, None, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _note(self, chosen: list[Tensor], logits: list[Tensor], rows: list[_Row]) -> None:
        """The tokens of some steps, up to each answer's end; what a row went on to say behind it
        does not count.
        """
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
        """Takes the ended answers out; the last ones move to where they were, so that the slots in
        use stay the first.
        """
        ended = [row for row in self.active if row.finish]
        for slot in reversed([i for i, row in enumerate(self.active) if row.finish]):
            if self.active[slot].finish == "error":
                self.slots.wipe(slot)
            last = self.active.pop()
            self.chooser.remove(slot)
            if slot < len(self.active):
                self.active[slot] = last
                self.slots.move(len(self.active), slot, last.length)
                self.ids[slot] = self.ids[len(self.active)]
                self.positions[..., slot, :] = self.positions[..., len(self.active), :]
        if ended:
            # a recorded step takes in slots that nobody uses any more: they shall write where every
            # slot has a place
            self.slots.lengths[len(self.active) :] = 0
        return ended

    def _make_room(self, length: int, most: int) -> None:
        """For slots of `length` places; where they are too short they double, up to as many as
        could ever be needed.
        """
        if not self.slots.holds(self.slots.rows, length):
            self._reserve(
                self.slots.rows, max(length, min(2 * self.slots.length, most)), self.positions
            )

    def _reserve(self, rows: int, length: int, positions: Tensor) -> None:
        if self.slots.holds(rows, length):
            return
        self.graphs.clear()  # they read the tensors that are made anew here
        self.slots.reserve(rows, length)
        if len(self.ids) < self.slots.rows:
            more = self.slots.rows - len(self.ids)
            self.ids = torch.cat([self.ids, self.ids.new_zeros(more)])
            empty = positions.new_zeros(*positions.shape[:-2], self.slots.rows, 1)
            if self.positions.dim() > 1:
                empty[..., : self.positions.shape[-2], :] = self.positions
            self.positions = empty
