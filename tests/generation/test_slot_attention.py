"""Decode steps that attend by variable-length attention, with a stand-in for torch's own."""

import inspect

import pytest
import torch

from tests.generation.test_continuous import Recording
from tests.generation.test_right_padding import NAMES, loaded
from tests.support.generating import continuous, generate, run_all
from trimtok_cli.generation import slot_attention, slot_steps

STEPS = 8


def varlen_attn(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    """torch.nn.attention.varlen.varlen_attn written out, sequence by sequence.

    It checks what the kernel relies on, and never touches a place that is not in use.
    """
    assert {cu_seq_q.dtype, cu_seq_k.dtype, seqused_k.dtype} == {torch.int32}
    assert cu_seq_q.is_contiguous() and cu_seq_k.is_contiguous() and seqused_k.is_contiguous()
    assert query.dim() == key.dim() == value.dim() == 3 and query.stride(-1) == key.stride(-1) == 1
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1 and max_q == 1
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert int(seqused_k.max()) <= max_k
    found = []
    for row, used in enumerate(seqused_k.tolist()):
        start = int(cu_seq_k[row])
        assert int(cu_seq_q[row + 1] - cu_seq_q[row]) == 1 and start + used <= len(key)
        first = 0 if window_size[0] < 0 else max(0, used - 1 - window_size[0])
        keys, values = (
            each[start + first : start + used]
            .transpose(0, 1)
            .repeat_interleave(query.shape[1] // key.shape[1], 0)
            for each in (key, value)
        )
        scores = (query[row, :, None] @ keys.mT) * (scale or query.shape[-1] ** -0.5)
        found.append((scores.softmax(-1) @ values)[:, 0])
    return torch.stack(found)


@pytest.fixture
def varlen(monkeypatch):
    """Steps attend by the stand-in, in float32 and on the CPU."""
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return varlen_attn(*args, **options)

    monkeypatch.setattr(slot_attention, "variable_length", lambda: counted)
    monkeypatch.setattr(slot_attention, "fits", lambda *_: True)
    return calls


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_steps_equal_those_of_single_prompts(name, recorded, tmp_path, monkeypatch, varlen):
    adapter, prompts = loaded(name, tmp_path)
    options = {"max_new_tokens": STEPS, "stop": False, "keep_logits": True}
    alone = [generate(adapter, [prompt], **options)[0][0] for prompt in prompts]
    assert not varlen, "the plain loop is the oracle"
    if recorded:
        monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
        monkeypatch.setattr(Recording, "_try", _without_waiting)
        monkeypatch.setattr("trimtok_cli.generation.cuda_graphs.PAYS", 1)
    done = run_all(continuous(adapter, batch_limit=3, **options), prompts)
    assert len(varlen) % adapter.num_layers == 0 and len(varlen) >= STEPS * adapter.num_layers
    for number, want in enumerate(alone):
        assert done[number].error is None and done[number].generated.ids == want.ids
        assert (done[number].generated.logits - want.logits).abs().max() < 1e-4
    assert adapter.config._attn_implementation == "sdpa"


def _without_waiting(self, step, shape):
    """A recording that may wait: the stand-in reads numbers, which the kernel does not."""

    class Graph:
        def __init__(self):
            self.logits = step(*shape)

        def replay(self):
            self.logits.copy_(step(*shape))

    graph = Graph()
    self.recorded[shape] = graph, graph.logits


@torch.inference_mode()
def test_places_that_are_not_in_use_are_not_read(tmp_path, varlen):
    adapter, prompts = loaded("llava", tmp_path)
    steps = slot_steps.SlotSteps(adapter)
    steps.reserve(5, 200, prompts[0].positions)
    steps.prefill(0, prompts)
    steps.take(0, torch.tensor([5, 6, 7, 8]))
    seen = [199] * 4  # more than the slots have in use
    clean = steps.decode(seen)
    for kept in steps.slots.store:
        for row, prompt in enumerate(prompts):
            kept[row, len(prompt) + 1 :] = torch.nan
        kept[4] = torch.nan
    assert torch.equal(steps.decode(seen), clean)


def test_the_config_is_put_back_if_a_step_breaks(tmp_path):
    adapter, _ = loaded("llava", tmp_path)
    with pytest.raises(RuntimeError, match="broken"), slot_attention.attending(adapter.config):
        assert adapter.config._attn_implementation == slot_attention.NAME
        raise RuntimeError("broken")
    assert adapter.config._attn_implementation == "sdpa"


def test_the_stand_in_takes_what_torch_takes():
    found = slot_attention.variable_length()
    if found is None:
        pytest.skip("this torch reads whole sequences only")
    theirs, ours = (inspect.signature(each).parameters for each in (found, varlen_attn))
    assert [(p.name, p.kind, p.default) for p in theirs.values()][:7] == [
        (p.name, p.kind, p.default) for p in ours.values()
    ][:7]
    assert set(ours) <= set(theirs)


def test_what_the_kernel_cannot_do_stays_masked(tmp_path, monkeypatch):
    adapter, _ = loaded("llava", tmp_path)
    monkeypatch.setattr(slot_attention, "variable_length", lambda: varlen_attn)
    cuda, half = torch.device("cuda"), torch.bfloat16
    assert slot_attention.fits(adapter.config, half, cuda, 128)
    assert not slot_attention.fits(adapter.config, torch.float32, cuda, 128)
    assert not slot_attention.fits(adapter.config, half, torch.device("cpu"), 128)
    assert not slot_attention.fits(adapter.config, half, cuda, 512)
    assert not slot_attention.fits(adapter.config, half, cuda, 12)
    monkeypatch.setattr(slot_attention, "variable_length", lambda: None)
    assert not slot_attention.fits(adapter.config, half, cuda, 128)
    monkeypatch.undo()
    monkeypatch.setattr(adapter.config, "_attn_implementation", "eager")
    monkeypatch.setattr(slot_attention, "variable_length", lambda: varlen_attn)
    assert not slot_attention.fits(adapter.config, half, cuda, 128)
