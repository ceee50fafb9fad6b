"""Recorded prefills against eager ones and the plain loop: the same logits, keys and answers.

A function stands in for each recording, as for decode steps; a pretended device truly records.
"""

import pytest
import torch

from tests.bench.test_random_weights import described
from tests.generation.test_continuous import NoWaiting, Recording
from tests.generation.test_right_padding import NAMES, loaded
from tests.support.generating import continuous, generate, run_all
from trimtok_cli import cuda_graphs
from trimtok_cli.bench.pretend_cuda import pretend_cuda
from trimtok_cli.bench.random_models import random_model, shape_model
from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.generation import recorded_prefills, slot_steps
from trimtok_cli.generation.capacity import Room, answers_that_fit
from trimtok_cli.generation.recorded_prefills import MOST_TOKENS
from trimtok_cli.generation.slot_steps import SlotSteps
from trimtok_cli.tokens import Prompt

STEPS = 8
# Their prefills read more of a prompt than its length: deepstack layers, the places of images.
EAGER = {"qwen3_vl", "gemma3", "gemma3 window"}
RECORDED = [name for name in NAMES if name not in EAGER]


@pytest.fixture
def recorded(monkeypatch):
    """Passes are recorded from their second time on, and a recording may wait for nothing."""
    monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
    monkeypatch.setattr(cuda_graphs, "PAYS", 1)
    # A stand-in for a longer model: its prompts are short.
    monkeypatch.setattr(recorded_prefills, "MOST_TOKENS", 2048)
    # Eager prefills write no less padding, so that all that lies in the cache can be compared.
    monkeypatch.setattr(slot_steps, "FINE", 32)


def slots_of(adapter, prompts, count: int = 6) -> SlotSteps:
    steps = SlotSteps(adapter)
    steps.reserve(count, 512, prompts[0].positions)
    return steps


@pytest.mark.parametrize("name", RECORDED)
@torch.inference_mode()
def test_logits_keys_and_places_are_those_of_an_eager_prefill(name, tmp_path, recorded):
    """Three prompts, which run as four; the slots around theirs keep what they hold."""
    adapter, prompts = loaded(name, tmp_path)
    steps = slots_of(adapter, prompts)
    eager = slots_of(adapter, prompts)
    eager.prefills.graphs.used = False
    groups = [prompts[:3], prompts[1:], [prompts[3], prompts[0], prompts[2]]]
    for number, group in enumerate(groups * 2):
        first = number % 3
        for kept in (*steps.slots.store, *eager.slots.store):
            kept.fill_(7)
        for each in (steps, eager):
            each.slots.lengths.fill_(5)
            each.positions.fill_(6)
        if number < 2:
            got = steps.prefill(first, group)
        else:
            with NoWaiting():
                got = steps.prefill(first, group)
        want = eager.prefill(first, group)
        assert (got - want).abs().max() < 1e-5
        assert torch.equal(steps.slots.lengths, eager.slots.lengths)
        assert torch.equal(steps.positions, eager.positions)
        for ours, theirs in zip(steps.slots.store, eager.slots.store, strict=True):
            assert (ours - theirs).abs().max() < 1e-5
    graphs = steps.prefills.graphs
    assert len(graphs.recorded) == 1 and next(iter(graphs.recorded))[0] == 4
    assert (graphs.eager, graphs.replayed) == (1, 5)
    assert (eager.prefills.graphs.eager, eager.prefills.graphs.replayed) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_single_prompts_while_others_decode(name, tmp_path, recorded):
    adapter, prompts = loaded(name, tmp_path)
    prompts = (prompts + prompts[::-1]) * 2
    options = {"max_new_tokens": STEPS, "stop": False, "keep_logits": True}
    alone = [generate(adapter, [prompt], **options)[0][0] for prompt in prompts[:4]]
    adapter.model.generation_config.eos_token_id = [alone[0].ids[2], alone[1].ids[4]]
    options |= {"stop": True}
    loop = continuous(adapter, batch_limit=3, lag=1, **options)
    done = run_all(loop, prompts)
    refills = 0
    for number, prompt in enumerate(prompts):
        want = generate(adapter, [prompt], **options)[0][0]
        assert done[number].error is None
        assert done[number].generated.ids == want.ids
        assert (done[number].generated.logits - want.logits).abs().max() < 1e-4
        refills += done[number].peak_batch > 1
    assert refills > len(prompts) // 2
    graphs = loop.steps.prefills.graphs
    assert (graphs.replayed > 2) == (name not in EAGER)
    assert (graphs.eager > 0) == (name not in EAGER)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return loaded("llava", tmp_path_factory.mktemp("m"))


def test_many_or_long_prompts_are_prefilled_as_they_are(llava, monkeypatch):
    adapter, prompts = llava
    steps = slots_of(adapter, prompts)
    assert not steps.prefills.takes(1, 64), "the CPU records nothing"
    steps.prefills.graphs.used = True
    taken = steps.prefills.takes
    assert taken(1, 512) and taken(2, 512) and taken(8, 128) and taken(5, 128)
    assert not taken(1, 544) and not taken(3, 512) and not taken(8, 160) and not taken(9, 32)
    monkeypatch.setattr(type(adapter), "forward", lambda *_: None)
    assert not taken(1, 64), "a family's own forward pass may read more"


@torch.inference_mode()
def test_memory_that_ends_a_recording_gives_up_that_shape_only(llava, monkeypatch):
    adapter, prompts = llava

    class Full(CudaGraphs):
        def _check(self, step, shape):
            return 0

        def _fits(self, needed):
            return True

        def _record(self, step, shape):
            if shape[0] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            Recording._try(self, step, shape)

    monkeypatch.setattr(slot_steps, "CudaGraphs", Full)
    monkeypatch.setattr(Full, "replays", 0, raising=False)
    monkeypatch.setattr(cuda_graphs, "PAYS", 1)
    steps = slots_of(adapter, prompts)
    steps.prefills.graphs.used = steps.in_buckets = True
    want = slots_of(adapter, prompts).prefill(0, prompts[:2])
    for _ in range(3):
        assert (steps.prefill(0, prompts[:2]) - want).abs().max() < 1e-5
        assert (steps.prefill(0, prompts[:1]) - want[:1]).abs().max() < 1e-5
    graphs = steps.prefills.graphs
    assert graphs.used and len(graphs.given_up) == 1
    assert [count for count, _ in graphs.recorded] == [1] and graphs.replayed == 2
    steps.reserve(6, 1024, prompts[0].positions)
    assert not graphs.recorded and not graphs.given_up, "a new cache has no recordings"
    assert (steps.prefill(0, prompts[:1]) - want[:1]).abs().max() < 1e-5


def test_a_prefill_that_cannot_be_recorded_is_run_as_it_is(llava, caplog):
    """The error is told once, and decode steps are still recorded."""
    adapter, prompts = llava
    loop = continuous(adapter, batch_limit=1, max_new_tokens=2, stop=False)
    loop.steps.prefills.graphs.used = True
    loop.steps.prefills.graphs._check = _broken
    done = run_all(loop, prompts[:1] * 12)
    want = generate(adapter, prompts[:1], max_new_tokens=2, stop=False)[0][0].ids
    assert {each.generated.ids for each in done.values()} == {want}
    said = [record.message for record in caplog.records if "recorded" in record.message]
    assert len(said) == 1 and said[0].startswith("prefills of few tokens of this model cannot be")


def _broken(step, shape):
    raise RuntimeError("no such thing here")


def test_a_pretended_device_records_a_prefill_and_never_waits_in_it(monkeypatch):
    """Three prompts again and again: two eager prefills, a recording, and replays of one launch."""
    monkeypatch.setattr(cuda_graphs, "PAYS", 2)
    description = described("tiny")
    description["text_config"]["num_hidden_layers"] = 1

    def prefills(adapter, device: str, take) -> tuple[list, list]:
        none = torch.zeros(0, dtype=torch.long, device=device)
        steps, said, work = SlotSteps(adapter), [], []
        steps.reserve(5, 64, torch.arange(1, device=device))
        for number in range(5):
            prompts = []
            for length in (9, 5 + number, 12):
                rows = torch.randn(length, 64, generator=torch.Generator().manual_seed(length))
                places = torch.arange(length, device=device)
                prompts.append(Prompt(rows.to(device), places, none, none, none))
            take()
            logits = steps.prefill(1, prompts)
            work.append(take())
            said.append([logits.argmax(-1).tolist(), *map(list, _state(steps))])
        return said, work

    on_cpu = random_model("tiny", description, device="cpu", dtype="float32")
    with torch.inference_mode():
        wanted, _ = prefills(on_cpu, "cpu", list)
    with pretend_cuda() as tally, torch.inference_mode(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        adapter = shape_model("tiny", description, dtype=torch.float32)
        found, work = prefills(adapter, "cuda", tally.take)
        assert tally.replays == 3 and len(tally.recordings) == 1
    assert found == wanted
    assert len({tuple(each[0]) for each in found}) > 1, "every prefill says the same"
    # The first pass of a model looks for faster forms of its modules.
    assert not any(sum(each.waits.values()) for each in work[1:])
    # The numbers of the padded rows; rows and positions joined, gathered and put in place; slots and
    # lengths; the recording.
    assert [each.launches for each in work[3:]] == [1 + 2 * 3 + 2 + 1] * 2
    assert tally.recordings[0].launches > 20


def _state(steps: SlotSteps) -> tuple[list, list]:
    return steps.slots.lengths.tolist(), steps.positions.flatten().tolist()


def test_the_memory_of_recorded_prefills_is_counted_on_cuda(llava):
    adapter, _ = llava
    room = Room(1 << 30)

    def fit(device: str, tokens: int) -> int:
        options = {"length": 700, "prefill_tokens": tokens, "room": room}
        return answers_that_fit(adapter.config, torch.float32, torch.device(device), **options)

    assert fit("cuda", 100) == fit("cpu", 100 + MOST_TOKENS) < fit("cpu", 100)
