"""Memory that runs out in each stage of the continuous loop: nothing is lost, and little shrinks.

A card of so many cache places stands in for a device; the answers are those of a run in which
everything fits.
"""

import random
import weakref

import pytest
import torch

from tests.support import tiny
from tests.support.generating import continuous, rules, run_all
from trimtok_cli.engine.loops import LOOPS, loop_for
from trimtok_cli.generation import back_off, capacity, kv_slots
from trimtok_cli.generation.capacity import cache_bytes, places_of, prefill_tokens_on
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.models.loading import load_model
from trimtok_cli.tokens import Prompt

NEW = 12


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tiny.llava(tmp_path_factory.mktemp("m") / "m", end=None)
    return load_model(str(folder), device="cpu")


def prompts(adapter, lengths: list[int]) -> list[Prompt]:
    lots = torch.Generator().manual_seed(0)
    width = adapter.config.hidden_size
    none = torch.arange(0)
    return [
        Prompt(torch.randn(length, width, generator=lots), torch.arange(length), none, none, none)
        for length in lengths
    ]


class Card:
    """Places of a cache that fit; a growing cache counts twice while it is copied."""

    def __init__(self, monkeypatch, places: int) -> None:
        self.places, self.broke = places, 0
        self.real = kv_slots.KVSlots.reserve
        card = self

        def reserve(slots, rows, length, in_use=None):
            length = max(length, *(in_use or [0]))
            longer = -(-length // kv_slots.GRAIN) * kv_slots.GRAIN
            want = rows * longer
            if want + slots.rows * slots.length > card.places:
                card.broke += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            card.real(slots, rows, length, in_use=in_use)

        monkeypatch.setattr(kv_slots.KVSlots, "reserve", reserve)


def ran(
    monkeypatch,
    adapter,
    lengths: list[int],
    *,
    card: int = 0,
    memory: "Memory | None" = None,
    breaks=None,
    **options,
) -> Continuous:
    """A loop after it answered everything as a loop of one answer does on an endless device.

    card: the places of a card. memory: a device's. breaks(loop, embeds): whether memory runs out in a pass.
    """
    given = prompts(adapter, lengths)
    want = run_all(continuous(adapter, max_new_tokens=NEW, stop=False), given)
    options = {"batch_limit": 8, "max_new_tokens": NEW, "stop": False} | options
    loop, real = continuous(adapter, **options), adapter.forward

    def forward(embeds, *rest):
        if breaks(loop, embeds):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(embeds, *rest)

    if card:
        Card(monkeypatch, card)
    if memory:
        memory.on = True
    if breaks:
        monkeypatch.setattr(adapter, "forward", forward, raising=False)
    done = run_all(loop, given)
    assert not [number for number in done if done[number].error]
    assert [done[i].answer.ids for i in range(len(given))] == [
        want[i].answer.ids for i in range(len(given))
    ]
    return loop


def test_a_longer_prompt_grows_the_cache_and_costs_no_slot(monkeypatch, adapter):
    """Eight long slots fit, though not beside eight short ones."""
    loop = ran(monkeypatch, adapter, [40] * 8 + [100] + [40] * 10, card=1100)
    assert loop.batch_limit == 8


@pytest.mark.parametrize("prefill", [500, 700], ids=["groups of 5 and 3", "groups of 7 and 1"])
def test_as_many_slots_as_fit_are_left(monkeypatch, adapter, prefill):
    loop = ran(monkeypatch, adapter, [100] * 16, card=7 * 128, prefill_tokens=prefill)
    assert loop.batch_limit == 7 and loop.sizes.prefill_tokens == prefill


def test_free_memory_says_how_many_slots_are_left(monkeypatch, adapter):
    for module in (back_off, capacity):
        monkeypatch.setattr(module, "answers_that_fit", lambda *given, **options: 3)
    assert ran(monkeypatch, adapter, [100] * 10, card=7 * 128).batch_limit == 3


def test_a_prefill_that_does_not_fit_costs_no_slot(monkeypatch, adapter):
    broke = []

    def breaks(loop, embeds):
        if embeds.shape[0] * embeds.shape[1] > 250:
            broke.append(len(embeds))
        return embeds.shape[0] * embeds.shape[1] > 250

    loop = ran(monkeypatch, adapter, [100] * 20, breaks=breaks)
    assert (loop.batch_limit, loop.sizes.prefill_tokens, broke) == (8, 200, [8, 4])


def test_a_step_that_does_not_fit_costs_a_quarter_of_the_slots(monkeypatch, adapter):
    def breaks(loop, embeds):
        return embeds.shape[1] == 1 and len(embeds) > 6

    loop = ran(monkeypatch, adapter, [20] * 20, breaks=breaks)
    assert (loop.batch_limit, loop.sizes.prefill_tokens) == (6, prefill_tokens_on(adapter.device))


def test_a_prompt_that_fits_only_alone_is_answered_and_costs_one_slot(monkeypatch, adapter):
    def breaks(loop, embeds):
        return embeds.shape[1] == 90 and loop.steps.slots.rows > 1

    lengths = [20] * 5 + [90] + [20] * 6
    loop = ran(monkeypatch, adapter, lengths, breaks=breaks, batch_limit=4)
    assert loop.batch_limit == 3 and not loop.singly


def test_a_prompt_that_does_not_fit_alone_fails_and_costs_nothing(monkeypatch, adapter):
    real = adapter.forward
    loop = continuous(adapter, batch_limit=4, max_new_tokens=NEW, stop=False)

    def forward(embeds, *given):
        if embeds.shape[1] == 90:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(embeds, *given)

    given = prompts(adapter, [20] * 5 + [90] + [20] * 6)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "forward", forward, raising=False)
        done = run_all(loop, given)
    assert [number for number in sorted(done) if done[number].error] == [5]
    assert loop.batch_limit == 4 and not loop.singly and loop.alone is None


def test_slots_that_cannot_grow_are_made_longer_at_once(monkeypatch, adapter):
    """Answers outlast their slots; the longer cache fits once the shorter one is gone."""
    monkeypatch.setattr("trimtok_cli.generation.continuous.AT_ONCE", 2)
    monkeypatch.setattr(kv_slots, "GRAIN", 1)
    loop = ran(monkeypatch, adapter, [40] * 12, card=8 * 60)
    assert loop.batch_limit == 8 and loop.sizes.new_tokens >= NEW


@pytest.mark.parametrize("places", [0, 63])
def test_where_nothing_fits_every_prompt_fails_and_the_loop_ends(monkeypatch, adapter, places):
    card = Card(monkeypatch, places)
    loop = continuous(adapter, batch_limit=8, max_new_tokens=NEW, stop=False)
    done = run_all(loop, prompts(adapter, [20] * 3))
    assert len(done) == 3 and all(out.error for out in done.values())
    assert card.broke < 10


def test_every_size_that_broke_shrinks_though_more_is_said_to_be_free(adapter):
    """From 256 answers to 1 there are few tries, whatever the device says is free."""
    for rule in ("cache_broke", "decode_broke"):
        sizes, tries = back_off.Sizes(adapter, rules(adapter), 256, 100, 8), 0
        while sizes.batch_limit > 1:
            before = sizes.batch_limit
            getattr(sizes, rule)(before, 1)
            assert sizes.batch_limit < before
            tries += 1
        assert tries < 70


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_without_retries_raises_at_once(monkeypatch, adapter, kind):
    passes = []

    def forward(embeds, *rest):
        passes.append(len(embeds))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    loop = loop_for(
        adapter, None, rules(adapter, max_new_tokens=NEW), decode=kind, batch_limit=8, retries=False
    )
    with pytest.raises(torch.OutOfMemoryError):
        run_all(loop, prompts(adapter, [20] * 8))
    assert passes == [8] and loop.batch_limit == 8 and not loop.busy


class Memory:
    """A device of so many bytes for the tensors of caches, old and new ones counted together."""

    def __init__(self, monkeypatch, free: int) -> None:
        self.free, self.used, self.most, self.broke, self.on = free, 0, 0, 0, False
        self.shapes: list[tuple[int, int]] = []  # of each whole cache
        real, memory = kv_slots.KVSlots._empty, self

        def empty(slots, number):
            tensor = real(slots, number)
            if not memory.on:
                return tensor
            if memory.used + tensor.nbytes > memory.free:
                memory.broke += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            memory.used += tensor.nbytes
            memory.most = max(memory.most, memory.used)
            weakref.finalize(tensor, memory.gone, tensor.nbytes)
            if number == 0:
                memory.shapes.append((slots.rows, slots.length))
            return tensor

        monkeypatch.setattr(kv_slots.KVSlots, "_empty", empty)

    def gone(self, size: int) -> None:
        self.used -= size


GIANT = 900


def room_for(adapter, slots: int, length: int) -> int:
    """Bytes of which `batch_limit_for` finds room for so many slots of `length` places."""
    layers = adapter.config.num_hidden_layers
    places = slots * length * (layers + 1) // layers
    return places * cache_bytes(adapter.config, adapter.dtype)


def counted_alone(monkeypatch, free: int) -> None:
    """Leaves the cache alone to memory: what stands beside it takes nothing."""

    def fit(config, dtype, device, *, length, in_layers=(), room=None, **_):
        places = [places_of(each) for each in in_layers or [length] * config.num_hidden_layers]
        size = (sum(places) + max(places)) * cache_bytes(config, dtype)
        return max(1, free * config.num_hidden_layers // size)

    monkeypatch.setattr(capacity, "answers_that_fit", fit)
    monkeypatch.setattr(back_off, "answers_that_fit", fit)
    monkeypatch.setitem(capacity.MOST_AT_ONCE, "cpu", 64)


@pytest.mark.parametrize(("asked", "first"), [(None, 60), (24, 60), (None, 1)])
def test_short_prompts_have_their_slots_again_behind_a_giant_one(
    monkeypatch, adapter, asked, first
):
    """Memory decides: room for 24 short answers is room for one giant one and a bit.

    first: short prompts in front of the giant one; others wait behind it.
    """
    free = room_for(adapter, 24, 64)
    monkeypatch.setattr(kv_slots, "GRAIN", 64)
    counted_alone(monkeypatch, free)
    memory = Memory(monkeypatch, free)
    lengths = [40] * first + [GIANT] + [40] * 120
    loop = ran(monkeypatch, adapter, lengths, memory=memory, batch_limit=asked)
    assert loop.batch_limit == 24 and not loop.singly
    giant = next(number for number, (_, length) in enumerate(memory.shapes) if length > GIANT)
    assert memory.shapes[giant][0] == 1
    before, after = memory.shapes[:giant], memory.shapes[giant + 1 :]
    assert max(rows for rows, _ in before) == min(first, 24)
    assert max(rows for rows, _ in after) == 24
    assert after[-1][1] == 64, "slots are as long as the giant's"
    assert len(after) <= 4, "the cache was made anew again and again"
    # A limit of the user's is tried with the giant: beside the old cache, and without it.
    assert memory.broke == (0 if asked is None else 2) and memory.most <= free


def test_prompts_of_any_length_do_not_make_the_cache_anew_all_the_time(monkeypatch, adapter):
    lots = random.Random(0)
    lengths = [lots.randint(20, 300) for _ in range(150)]
    counted_alone(monkeypatch, free := room_for(adapter, 12, 320))
    memory = Memory(monkeypatch, free)
    loop = ran(monkeypatch, adapter, lengths, memory=memory, batch_limit=None)
    assert 12 <= loop.batch_limit <= 18 and memory.broke == 0
    assert len(memory.shapes) <= 8
