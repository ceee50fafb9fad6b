"""Counting without a device: the pretended one does what a real one does, and counts may only fall."""

import pytest
import torch
import torch.nn.functional as F

from tests.bench.test_random_weights import described
from tests.support.generating import continuous, requests
from trimtok_cli import cuda_graphs
from trimtok_cli.bench.pretend_calls import outside
from trimtok_cli.bench.pretend_cuda import pretend_cuda, values_of
from trimtok_cli.bench.random_models import random_model, shape_model
from trimtok_cli.bench.schedule import schedule_row
from trimtok_cli.bench.spec import Bench, SchedulePart
from trimtok_cli.generation import slot_attention
from trimtok_cli.generation.types import run
from trimtok_cli.tokens import Prompt


@pytest.fixture
def tally():
    with pretend_cuda() as tally, torch.inference_mode():
        yield tally


@torch.library.custom_op("trimtok_tests::fused", mutates_args=())
def fused(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left * right + right


@fused.register_fake
def _(left, right):
    return torch.empty_like(left)


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (lambda x: F.rms_norm(x, (8,)), 1),
        (lambda x: F.layer_norm(x, (8,)), 1),
        (lambda x: F.linear(x, x, x[:, 0]), 1),
        (lambda x: torch.ops.trimtok_tests.fused(x, x), 1),
        (lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3, is_causal=True), 1),
        (lambda x: x.reshape(8, 8).to(x.dtype).view(-1, 2).transpose(0, 1)[1:], 0),
        (lambda x: x.transpose(0, 1).contiguous(), 1),
        (lambda x: x.cpu() * 2 + 1, 1),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), 5),
    ],
    ids=["rms_norm", "layer_norm", "linear", "custom", "attention", "views", "copy", "cpu", "norm"],
)
def test_what_is_one_kernel_on_a_device_counts_as_one(tally, work, kernels):
    square = torch.ones(8, 8, device="cuda")
    tally.take()
    work(square)
    assert sum(tally.take().kernels.values()) == kernels


def attended(device: str) -> torch.Tensor:
    """Three answers of 2, 5 and 1 places in slots of 6, two query heads to a key, in bfloat16."""
    size = {"generator": torch.Generator().manual_seed(0), "dtype": torch.bfloat16}
    query, key, value = (torch.randn(3, heads, 6, 8, **size).to(device) for heads in (4, 2, 2))
    slots = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (key, value)]
    lengths = torch.tensor([1, 4, 0]).to(device)
    if device == "cpu":
        mask = (torch.arange(6) <= lengths[:, None])[:, None, None]
        given = [query[:, :, :1], *(each.repeat_interleave(2, 1) for each in slots)]
        return F.scaled_dot_product_attention(*given, attn_mask=mask).transpose(1, 2)
    used = slot_attention.used_places(lengths, 6)
    return slot_attention.attend(None, query[:, :, :1], *slots, used)[0]


@pytest.mark.skipif(
    slot_attention.variable_length() is None, reason="this torch's attention reads whole sequences"
)
def test_attention_over_the_places_in_use_is_one_kernel_that_reads_these_alone(tally):
    found = attended("cuda")
    work = tally.take()
    assert work.kernels["attention"] == 1 and list(work.attention.values()) == [1]
    with outside():
        wanted = attended("cpu")
        assert torch.allclose(values_of(found).float(), wanted.float(), atol=2e-2)
    numbers = torch.tensor([0, 1, 2, 3], dtype=torch.int32).to("cuda")
    row = torch.zeros(3, 1, 8, dtype=torch.bfloat16, device="cuda")
    keys = torch.zeros(18, 1, 8, dtype=torch.bfloat16, device="cuda")
    used = torch.tensor([2, 5, 1], dtype=torch.int32).to("cuda")
    given = (row, keys, keys, numbers, numbers * 6, 1, 6)
    tally.take()
    slot_attention.variable_length()(*given, seqused_k=used)
    work = tally.take()
    assert work.bytes == 2 * row.nbytes + 2 * (8 * 8 * 2) and work.flops == 4 * 8 * 8


def test_bytes_and_flops_are_those_of_the_operands(tally):
    left, right = torch.ones(4, 8, device="cuda"), torch.ones(16, 8, device="cuda")
    tally.take()
    F.linear(left, right)
    work = tally.take()
    assert work.flops == 2 * 4 * 8 * 16 and work.bytes == 4 * (4 * 8 + 16 * 8 + 4 * 16)
    left[None] @ right.T[None]
    assert tally.take().flops == 2 * 4 * 8 * 16


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda x: x.tolist(), 1),
        (lambda x: int(x[2]), 1),
        (lambda x: bool((x > 3).any()), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: (x > 2).nonzero(), 1),
        (lambda x: x[x > 2], 1),
        (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: x.masked_fill_(x > 2, 0), 0),
        (lambda x: x.__setitem__(x > 2, 0), 0),
        (lambda x: x[x], 0),
    ],
    ids=["tolist", "int", "if", "cpu", "nonzero", "mask", "synchronize", "fill", "set", "index"],
)
def test_reads_of_a_device_are_waits_and_a_recording_refuses_them(tally, read, waits):
    numbers = torch.arange(5, device="cuda")
    tally.take()
    read(numbers)
    assert sum(tally.take().waits.values()) == waits
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        if waits:
            with pytest.raises(RuntimeError, match="capturing"):
                read(numbers)
        else:
            read(numbers)
    assert not tally.take().kernels, "recorded, not run"


@pytest.mark.parametrize("behind", [False, True])
def test_a_wait_with_work_behind_it_is_no_stop_of_the_device(tally, behind):
    numbers = torch.arange(5, device="cuda")
    tokens = torch.empty_like(numbers, device="cpu", pin_memory=True)
    tally.take()
    tokens.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    if behind:
        numbers += 1
    event.synchronize()
    work = tally.take()
    assert sum(work.waits.values()) == 1 and work.stops == (not behind)
    tokens.copy_(numbers)
    assert tally.take().stops == 1 and tokens.tolist() == numbers.tolist()


def test_a_replay_runs_what_was_recorded_on_the_tensors_as_they_are_now(tally):
    source = torch.ones(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = source * 2
        later = doubled[1:] + 1
    source.fill_(5)
    tally.take()
    graph.replay()
    work = tally.take()
    assert doubled.tolist() == [10, 10, 10] and later.tolist() == [11, 11]
    assert work.launches == 1 and work.kernels == {"mul": 1, "add": 1} and tally.replays == 1


def test_a_loop_on_the_pretended_device_gives_a_cpus_tokens_with_recorded_steps(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "PAYS", 2, raising=False)
    description = described("tiny")
    description["text_config"]["num_hidden_layers"] = 1
    prompts = [
        torch.randn(length, 64, generator=torch.Generator().manual_seed(length))
        for length in (5, 9)
    ]

    def tokens(adapter, device: str) -> list:
        none = torch.zeros(0, dtype=torch.long, device=device)
        placed = [
            Prompt(each.to(device), torch.arange(len(each), device=device), none, none, none)
            for each in prompts
        ]
        loop = continuous(adapter, batch_limit=2, max_new_tokens=13, stop=False)
        ended = sorted(run(loop, requests(placed)), key=lambda end: end.request.number)
        return [end.answer.ids for end in ended]

    wanted = tokens(random_model("tiny", description, device="cpu", dtype="float32"), "cpu")
    with pretend_cuda() as tally, torch.random.fork_rng([]):
        torch.manual_seed(0)
        found = tokens(shape_model("tiny", description, dtype=torch.float32), "cuda")
    assert found == wanted and len({*wanted[0]}) > 2
    assert tally.replays > 4 and len(tally.recordings) == 1
    assert torch.cuda.is_available() or torch.cuda.CUDAGraph.__module__.startswith("torch")


def test_a_schedule_ends_every_answer_at_its_own_length():
    row = schedule_row(SchedulePart(samples=5, batch=2, answer=(5, 3), longest=9), Bench())
    assert row["steps"] > 0 and 0 < row["useful_slot_steps"] <= 1
