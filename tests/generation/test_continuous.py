"""The continuous loop against the plain loop and the library, both run one prompt at a time.

The tests cover refilled slots, smaller batches after errors, and slots of unequal length.
"""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.generating import (
    continuous,
    generate,
    generated_by_library,
    loop_of,
    requests,
    run_all,
)
from trimtok_cli.cuda_graphs import CudaGraphs, no_collection, rounded
from trimtok_cli.device import frozen_heap
from trimtok_cli.generation import slot_steps
from trimtok_cli.generation.capacity import (
    MOST_AT_ONCE,
    Room,
    answers_that_fit,
    cache_bytes,
    most_ahead,
)
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.padding import PADDING
from trimtok_cli.generation.plain import Plain
from trimtok_cli.generation.retry import in_halves
from trimtok_cli.generation.types import Finished
from trimtok_cli.models.loading import load_model
from trimtok_cli.sampling import Sampling

STEPS = 12


def prompts_of(adapter, count: int):
    """Prompts of unequal length, with and without an image, not sorted by length."""
    found = []
    for i in range(count):
        inputs = adapter.prepare(
            [picture(i, 80 + 9 * i, 60)] * (i % 3 != 1), "Why? " * (1 + (5 * i) % 7)
        )
        found.append(adapter.embed(inputs, adapter.encode_many([inputs])[0]))
    return found


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A model and prompts whose answers end at unequal lengths.

    The end token is the token that occurs in most of the answers.
    """
    adapter = load_model(
        str(tiny.llava(tmp_path_factory.mktemp("m") / "m", end=None)), device="cpu"
    )
    prompts = prompts_of(adapter, 9)
    said = [
        generate(adapter, [prompt], max_new_tokens=STEPS, stop=False)[0][0].ids
        for prompt in prompts
    ]
    adapter.model.generation_config.eos_token_id = [said[0][3], said[2][6], said[4][1]]
    return adapter, prompts


def run(adapter, prompts, **options):
    """The outcome of each prompt, the loop, and the number of prompts taken each time."""
    loop, taken = continuous(adapter, max_new_tokens=STEPS, **options), []
    add = loop.add

    def noted(given):
        taken.append(len(given))
        add(given)

    loop.add = noted
    return run_all(loop, prompts), loop, taken


def same(done, prompts, adapter, **options):
    assert sorted(done) == list(range(len(prompts)))
    for i, prompt in enumerate(prompts):
        want = generate(adapter, [prompt], max_new_tokens=STEPS, **options)[0][0]
        assert (done[i].generated.ids, done[i].generated.finish, done[i].generated.steps) == (
            want.ids,
            want.finish,
            want.steps,
        ), i


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, None])
def test_refilled_answers_equal_singles(llava, rows, unbroken):
    adapter, prompts = llava
    done, loop, taken = run(adapter, prompts, batch_limit=rows, keep_logits=True)
    same(done, prompts, adapter)
    lengths = {each.generated.steps for each in done.values()}
    assert len(lengths) > 2 and {each.generated.finish for each in done.values()} == {
        "stop",
        "length",
    }, "nothing to refill"
    for i, prompt in enumerate(prompts):
        alone = generate(adapter, [prompt], max_new_tokens=STEPS, keep_logits=True)[0][0].logits
        assert (
            done[i].generated.logits - alone[: len(done[i].generated.logits)]
        ).abs().max() < 1e-4
    assert sum(taken) == len(prompts) and not loop.active
    assert max(each.peak_batch for each in done.values()) == min(loop.batch_limit, 9 if rows else 8)
    if rows in (2, 3, 4):
        assert len(taken) > 2 + len(prompts) // rows, (
            "freed slots were not filled before the batch was over"
        )


def test_equals_the_library(llava, unbroken):
    """Tokens and logits equal those of the library, which gets each prompt alone, so unpadded."""
    adapter, prompts = llava
    done, _, _ = run(adapter, prompts, batch_limit=3, stop=False, keep_logits=True)
    assert sorted(done) == list(range(len(prompts)))
    for i, prompt in enumerate(prompts):
        inputs = {
            "inputs_embeds": prompt.embeds[None],
            "attention_mask": torch.ones(1, len(prompt)),
        }
        sequences, logits = generated_by_library(adapter.model, STEPS, **inputs)
        assert sequences[0].tolist() == list(done[i].generated.ids)
        assert (logits[0] - done[i].generated.logits).abs().max() < 1e-4


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", [*FAMILIES, "gemma3 window", "llava_next window"])
def test_slots_of_unequal_length_in_every_family(name, recorded, tmp_path, unbroken, monkeypatch):
    """Refilled slots stand at other places of their texts than their neighbours.

    `recorded` runs recorded steps, whose tokens are read late, as on CUDA. `window` stands for layers that look back over
    six tokens only: most layers in Gemma 3, all layers in an old Mistral.
    """
    name, _, window = name.partition(" ")
    options = {"text_model": "mistral"} if window and name == "llava_next" else {}
    adapter = load_model(str(FAMILIES[name](tmp_path / "m", **options)), device="cpu")
    prompts = prompts_of(adapter, 5)
    if window:
        wide = generate(adapter, prompts[:1], max_new_tokens=STEPS, stop=False, keep_logits=True)[
            0
        ][0].logits
        adapter.model.get_decoder().config.sliding_window = 6
        narrow = generate(adapter, prompts[:1], max_new_tokens=STEPS, stop=False, keep_logits=True)[
            0
        ][0].logits
        assert (wide - narrow).abs().max() > 0.01, "the window does nothing"
    if recorded:
        monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
        monkeypatch.setattr("trimtok_cli.cuda_graphs.PAYS", 1)
    alone = [
        generate(adapter, [prompt], max_new_tokens=STEPS, stop=False, keep_logits=True)[0][0]
        for prompt in prompts
    ]
    adapter.model.generation_config.eos_token_id = [alone[0].ids[2], alone[1].ids[4]]
    loop = continuous(adapter, batch_limit=2, max_new_tokens=STEPS, keep_logits=True, lag=1)
    finished = run_all(loop, prompts)
    assert sorted(finished) == list(range(5))
    for number, done in finished.items():
        want = generate(adapter, [prompts[number]], max_new_tokens=STEPS)[0][0]
        assert (done.generated.ids, done.generated.finish) == (want.ids, want.finish)
        assert (done.generated.logits - alone[number].logits[: want.steps]).abs().max() < 1e-4


def test_sampling_draws_what_each_draws_alone(llava, unbroken):
    adapter, prompts = llava
    sampling = Sampling(1.3, 0.9, seed=3)
    done, _, _ = run(adapter, prompts, batch_limit=3, sampling=sampling)
    same(done, prompts, adapter, sampling=sampling)


def test_one_batch_as_the_plain_loop_has_it(llava):
    adapter, prompts = llava
    loop = continuous(adapter, batch_limit=len(prompts), max_new_tokens=STEPS, stop=False)
    got = run_all(loop, prompts)
    want, _ = generate(adapter, prompts, max_new_tokens=STEPS, stop=False)
    for number, answer in enumerate(want):
        assert got[number].generated.ids == answer.ids
        assert got[number].seconds.prefill > 0 and got[number].seconds.decode > 0


class Full:
    """A device on which more than `most` rows do not fit."""

    def __init__(self, adapter, most: int, error=torch.OutOfMemoryError):
        self.real, self.most, self.error, self.raised = adapter.forward, most, error, 0

    def __call__(self, embeds, *args, **kwargs):
        if len(embeds) > self.most:
            self.raised += 1
            raise self.error("out of memory: can't allocate memory")
        return self.real(embeds, *args, **kwargs)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("loop", [Continuous, Plain])
def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(llava, monkeypatch, error, loop):
    adapter, prompts = llava
    released = []
    for name in ("continuous", "retry"):
        monkeypatch.setattr(f"trimtok_cli.generation.{name}.release", released.append)
    full = Full(adapter, 2, error)
    monkeypatch.setattr(adapter, "forward", full, raising=False)
    made = loop_of(loop, adapter, batch_limit=8, max_new_tokens=STEPS)
    done = run_all(made, prompts)
    assert len(released) == full.raised > 0 and not any(each.error for each in done.values())
    if loop is Continuous:
        assert made.batch_limit == 2, "the size that fits is remembered"
        # The prefill of 8 takes two halvings, the steps of 8 answers 6, 5, 4 and 3 before 2.
        assert full.raised == 2 + 5
    monkeypatch.undo()
    same(done, prompts, adapter)


def test_a_prompt_that_does_not_fit_even_alone_fails_alone(llava, monkeypatch):
    adapter, prompts = llava
    longest = max(range(9), key=lambda i: len(prompts[i]))
    real = adapter.forward

    def forward(embeds, mask, positions, cache, given=()):
        if any(prompt is prompts[longest] for prompt in given):
            raise torch.OutOfMemoryError("no")
        return real(embeds, mask, positions, cache, given)

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    done, _, _ = run(adapter, prompts, batch_limit=4)
    monkeypatch.undo()
    assert isinstance(done.pop(longest).error, torch.OutOfMemoryError)
    for i, each in done.items():
        assert each.generated.ids == generate(adapter, [prompts[i]], max_new_tokens=STEPS)[0][0].ids


def test_a_prompt_that_breaks_a_step_takes_no_neighbour_along(llava, monkeypatch):
    """The error comes only in decoding; then all requests under way run again, one by one."""
    adapter, prompts = llava
    real, bad = adapter.forward, int(prompts[3].positions[-1])

    def forward(embeds, mask, positions, cache, given=()):
        if (
            not given
            and bool((positions == bad + 2).any())
            and positions.shape[-1] == 1
            and bad_is_under_way()
        ):
            raise ValueError("broken")
        return real(embeds, mask, positions, cache, given)

    loop = continuous(adapter, batch_limit=4, max_new_tokens=STEPS, stop=False)
    released = []

    def bad_is_under_way():
        return any(row.request.number == 3 for row in loop.active)

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    monkeypatch.setattr("trimtok_cli.generation.continuous.release", released.append)
    done = run_all(loop, prompts)
    monkeypatch.undo()
    assert not released, "no memory ran out: a collection of a model's objects takes long"
    assert str(done.pop(3).error) == "broken" and len(done) == 8
    for i, each in done.items():
        assert (
            each.error is None
            and each.generated.ids
            == generate(adapter, [prompts[i]], max_new_tokens=STEPS, stop=False)[0][0].ids
        )


def test_an_error_behind_the_prefill_doubles_no_answer(llava, monkeypatch):
    """A device reports some errors only when its tokens are fetched.

    The new answers already count as under way by then.
    """
    adapter, prompts = llava
    loop = continuous(adapter, batch_limit=3, max_new_tokens=STEPS)
    real, broken = loop._note, []

    def note(rows, *given, **options):
        if len(rows) == 3 and not broken:
            broken.append(1)
            raise torch.OutOfMemoryError("late")
        real(rows, *given, **options)

    monkeypatch.setattr(loop, "_note", note)
    done = run_all(loop, prompts)
    assert broken and sorted(done) == list(range(9))
    same(done, prompts, adapter)


def test_prefills_are_bounded_by_tokens_and_sorted_by_length(llava, unbroken):
    adapter, prompts = llava
    loop = continuous(
        adapter, batch_limit=9, max_new_tokens=1, prefill_tokens=2 * max(map(len, prompts))
    )
    groups = [
        [len(row.prompt) for row in group]
        for group in loop._groups([loop._row(request) for request in requests(prompts)])
    ]
    assert [length for group in groups for length in group] == sorted(
        len(prompt) for prompt in prompts
    )
    assert (
        all(len(group) * group[-1] <= loop.sizes.prefill_tokens for group in groups)
        and len(groups) > 2
    )
    done, _, _ = run(adapter, prompts, batch_limit=9, prefill_tokens=1)
    same(done, prompts, adapter)


def test_a_cpu_prefills_a_long_prompt_apart_from_short_ones(llava, monkeypatch):
    adapter, prompts = llava
    together = len(prefilled(adapter, prompts, monkeypatch))
    monkeypatch.setitem(PADDING, "cpu", max(map(len, prompts)))
    apart = prefilled(adapter, prompts, monkeypatch)
    assert len(apart) > together == 1
    for lengths in apart:
        assert len(lengths) * max(lengths) - sum(lengths) <= PADDING["cpu"]


def prefilled(adapter, prompts, monkeypatch) -> list[list[int]]:
    """The lengths of each prefill; the answers are those of single prompts."""
    loop, prefills = continuous(adapter, batch_limit=9, max_new_tokens=STEPS), []
    take_in = loop.steps.take_in

    def noted(first, given):
        prefills.append([len(request.prompt) for request in given])
        return take_in(first, given)

    monkeypatch.setattr(loop.steps, "take_in", noted)
    same(run_all(loop, prompts), prompts, adapter)
    return prefills


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that would make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name().split("::")[1].split(".")[0] not in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "equal",
        ), func.name()
        return func(*args, **(kwargs or {}))


class Recording(CudaGraphs):
    """CUDA graphs without CUDA: a function stands in for each recording.

    The function reads and writes the same tensors as the recording would, and may not wait.
    """

    def __init__(self, device, *kind):
        super().__init__(device, *kind)
        self.used, self.replays = True, 0

    def _try(self, step, shape):
        owner = self

        class Graph:
            def __init__(self):
                self.logits = step(*shape)

            def replay(self):
                owner.replays += 1
                with NoWaiting():
                    self.logits.copy_(step(*shape))

        graph = Graph()
        self.recorded[shape] = graph, graph.logits


@pytest.mark.parametrize("name", ["llava", *FAMILIES])
@torch.inference_mode()
def test_recorded_steps_have_fixed_shapes_wait_for_nothing_and_say_the_same(
    name, tmp_path, monkeypatch, unbroken
):
    monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
    build = tiny.llava if name == "llava" else FAMILIES[name]
    adapter = load_model(str(build(tmp_path / "m")), device="cpu")
    prompts = prompts_of(adapter, 5)
    options = {"max_new_tokens": 24, "stop": False, "keep_logits": True, "lag": 1}
    loop = continuous(adapter, batch_limit=3, **options)
    done = run_all(loop, prompts)
    assert loop.steps.graphs.replays > 10 and len(loop.steps.graphs.recorded) <= 4
    assert sorted(done) == list(range(5))
    for number, each in done.items():
        want = generate(
            adapter, [prompts[number]], max_new_tokens=24, stop=False, keep_logits=True
        )[0][0]
        assert (
            each.generated.ids == want.ids
            and (each.generated.logits - want.logits).abs().max() < 1e-4
        )


def test_slots_that_nobody_uses_any_more_stay_in_bounds(llava, monkeypatch, unbroken):
    """Recorded steps still cover the slots of answers that have ended.

    The longest answers end first, so the steps that go on have fewer places than those slots had.
    """
    adapter, prompts = llava
    monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
    monkeypatch.setattr("trimtok_cli.cuda_graphs.PLACES", 4)
    monkeypatch.setattr("trimtok_cli.cuda_graphs.PAYS", 0)
    monkeypatch.setattr("trimtok_cli.cuda_graphs.PAYS_BESIDE", 0)
    order = sorted(range(9), key=lambda i: -len(prompts[i]))
    alone = {
        i: generate(adapter, [prompts[i]], max_new_tokens=30, stop=False)[0][0].ids for i in order
    }
    monkeypatch.setattr(
        adapter.model.generation_config, "eos_token_id", [alone[order[0]][2], alone[order[1]][3]]
    )
    chosen = [
        prompts[order[0]],
        prompts[order[1]],
        prompts[order[-1]],
        prompts[order[-2]],
        prompts[order[-3]],
    ]
    loop = continuous(adapter, batch_limit=5, max_new_tokens=30)
    done = run_all(loop, chosen)
    assert loop.steps.graphs.replays > 10
    for i, prompt in enumerate(chosen):
        want = generate(adapter, [prompt], max_new_tokens=30)[0][0]
        assert done[i].error is None and (done[i].generated.ids, done[i].generated.finish) == (
            want.ids,
            want.finish,
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="recording works here")
def test_a_step_that_cannot_be_recorded_is_run_as_it_is(llava, caplog):
    """Recording fails without CUDA; the answers stay the same and one warning says so."""
    adapter, prompts = llava
    loop = continuous(adapter, batch_limit=3, max_new_tokens=STEPS)
    loop.steps.graphs.used = True
    done = run_all(loop, prompts)
    same(done, prompts, adapter)
    assert [
        record.levelname for record in caplog.records if "cannot be recorded" in record.message
    ] == ["WARNING"]


class Failing(CudaGraphs):
    """Recordings that fail with an error."""

    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 MiB")

    def _check(self, step, shape):
        return 0

    def _fits(self, needed):
        return True

    def _record(self, step, shape):
        raise self.error


def ask(graphs: CudaGraphs, count: int, *, times: int = 10) -> None:
    for _ in range(times):
        graphs(lambda slots, span: torch.zeros(slots, 4), count, [70], 8, [256])


def test_a_recording_that_does_not_fit_gives_up_its_shape_only(caplog):
    graphs = Failing(torch.device("cpu"))
    graphs.used = True
    ask(graphs, 8)
    assert graphs.used and graphs.given_up == {(8, 256)} and not caplog.records
    graphs._record = lambda step, shape: graphs.recorded.update({shape: (_Graph(), step(*shape))})
    ask(graphs, 8)
    assert not graphs.recorded, "a shape that did not fit is not tried again"
    ask(graphs, 6, times=100)
    assert not graphs.recorded and graphs.asked[8, 256] == 120, "6 answers run as 8"
    graphs.clear()
    ask(graphs, 8)
    assert list(graphs.recorded) == [(8, 256)], "a new cache leaves other room"


def test_memory_that_ends_a_recording_is_told_behind_another_error():
    graphs = Failing(torch.device("cpu"))
    graphs.used = True
    graphs.error = RuntimeError("the recording was invalidated")
    graphs.error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    ask(graphs, 8)
    assert graphs.used and graphs.given_up
    graphs.error = RuntimeError("no such thing on this device")
    graphs.clear()
    ask(graphs, 8)
    assert not graphs.used


class _Graph:
    def replay(self):
        pass


def test_a_step_runs_as_a_larger_one_that_was_recorded_rather_than_kernel_by_kernel():
    graphs, ran = CudaGraphs(torch.device("cpu")), []
    graphs.recorded[64, 256] = _Graph(), torch.zeros(64, 4)

    def step(slots, span):
        ran.append(slots)
        return torch.zeros(slots, 4)

    for count in (64, 48, 33, 17, 5):
        assert len(graphs(step, count, [70], 64, [256])) == count
    assert ran == [8], "17 answers run as 32, half of 64; 5 run as 8, far less"


def test_counts_above_sixteen_are_multiples_of_sixteen():
    assert [rounded(count, 500) for count in (1, 3, 16, 17, 40, 250)] == [1, 4, 16, 32, 48, 256]
    assert rounded(250, 250) == 250


def test_nothing_is_collected_in_a_recording(thawed):
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with frozen_heap():
        frozen = gc.get_freeze_count()
        assert frozen > 10_000
        with frozen_heap():
            pass
        assert gc.get_freeze_count() == frozen, "the outer block ends it"
    assert gc.get_freeze_count() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llava", *FAMILIES])
def test_recorded_steps_on_a_device(tmp_path, unbroken, name):
    """CUDA graphs on a real device.

    float32 answers equal the plain loop on CUDA and on the CPU; bfloat16 only has to run.
    """
    folder = {"llava": tiny.llava, **FAMILIES}[name](tmp_path / name)
    on_cpu, adapter = (
        load_model(str(folder), device=device, dtype="float32") for device in ("cpu", "cuda")
    )
    prompts, theirs = prompts_of(adapter, 5), prompts_of(on_cpu, 5)
    loop = continuous(adapter, batch_limit=3, max_new_tokens=40, stop=False, keep_logits=True)
    done = run_all(loop, prompts)
    assert loop.steps.graphs.used and loop.steps.graphs.recorded, "no step was recorded"
    for number, each in done.items():
        for model, prompt in ((adapter, prompts[number]), (on_cpu, theirs[number])):
            options = {"max_new_tokens": 40, "stop": False, "keep_logits": True}
            want = generate(model, [prompt], **options)[0][0]
            assert each.generated.ids == want.ids
            assert (each.generated.logits.cpu() - want.logits.cpu()).abs().max() < 1e-2
    half = load_model(str(folder), device="cuda")
    loop = continuous(half, batch_limit=5, max_new_tokens=40, stop=False)
    said = run_all(loop, prompts_of(half, 5)).values()
    assert all(each.generated.steps == 40 for each in said)


def test_how_many_rows_fit(llava, monkeypatch):
    adapter, prompts = llava
    config = adapter.model.get_decoder().config
    loop = continuous(adapter, batch_limit=1, max_new_tokens=1)
    run_all(loop, prompts[:1])
    store = loop.steps.slots.store
    rows, _, heads, width = store[0].shape
    layers = len(store) // 2
    assert rows == 1 and cache_bytes(config, torch.float32) == len(store) * heads * width * 4
    # 700 tokens and two places behind the end are 704 places; the cache grows layer by layer.
    slot = 704 * cache_bytes(config, torch.float32) * (layers + 1) // layers
    row = slot + 700 * 4 * config.hidden_size + config.vocab_size * (4 * 4 + 2 * 4)
    prefill = 100 * (3 * config.intermediate_size + 8 * config.hidden_size) * 4

    def fit(rows: float, passing: int = 0) -> int:
        room = Room(int((rows * row + prefill) / 0.85), passing)
        options = {"length": 700, "prefill_tokens": 100, "room": room}
        return answers_that_fit(config, torch.float32, adapter.device, **options)

    assert [fit(rows) for rows in (0, 0.5, 3.5, 100.5)] == [1, 1, 3, 100]
    assert fit(8.5, passing=4 * row) == 4, "a quarter may pass through the tower at once"


def test_an_open_limit_falls_where_a_longer_prompt_comes(llava, monkeypatch):
    """The room is that before the first prompt: the cache itself takes it afterwards."""
    adapter, prompts = llava
    order = sorted(prompts, key=len)
    seen = []

    def room(longest):
        return max(1, 400 // longest)

    def limit(model, rules, longest, room_then, held, most):
        assert not held and most is None
        seen.append(room_then.free)
        return room(longest)

    monkeypatch.setattr("trimtok_cli.generation.back_off.batch_limit_for", limit)
    frees = iter((10, 20, 30))
    monkeypatch.setattr("trimtok_cli.generation.capacity.free_bytes", lambda device: next(frees))
    loop = continuous(adapter, batch_limit=None, max_new_tokens=STEPS)
    same(run_all(loop, order), order, adapter)
    assert loop.batch_limit == room(len(order[-1])) < room(len(order[0]))
    assert len(seen) > 1 and set(seen) == {10}
    given = continuous(adapter, batch_limit=4, max_new_tokens=STEPS)
    run_all(given, order)
    assert given.batch_limit == 4, "a limit that the user gave stays"


def test_memory_decides_on_cuda_and_the_host_holds_few_samples():
    assert MOST_AT_ONCE["cuda"] == 512 and most_ahead(torch.device("cuda")) == 64
    assert most_ahead(torch.device("cpu")) == MOST_AT_ONCE["cpu"]


def test_halves_find_the_item_that_fails():
    calls = []

    def work(items):
        calls.append(len(items))
        if 5 in items:
            raise ValueError("five")
        return [10 * item for item in items]

    found = list(in_halves(work, list(range(8)), torch.device("cpu")))
    assert [item for item, _ in found] == list(range(8)) and calls == [8, 4, 4, 2, 1, 1, 2]
    assert [made for item, made in found if item != 5] == [0, 10, 20, 30, 40, 60, 70] and str(
        found[5][1]
    ) == "five"


def test_a_request_without_an_answer_raises_its_error_where_the_answer_is_asked_for():
    with pytest.raises(ValueError, match="broken"):
        _ = Finished(None, None, error=ValueError("broken")).answer
    with pytest.raises(LookupError):
        _ = Finished(None, None).answer
