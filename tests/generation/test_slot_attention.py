"""Decode steps that attend by variable-length attention, with a stand-in for torch's own."""

import inspect
from importlib.util import find_spec

import pytest
import torch

from tests.generation.test_continuous import Recording
from tests.generation.test_right_padding import NAMES, loaded
from tests.support.generating import continuous, generate, run_all
from tests.support.interpreter import interpreted
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
        monkeypatch.setattr("trimtok_cli.cuda_graphs.PAYS", 1)
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


needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs Triton")


@needs_triton
def test_kernels_in_the_interpreter_write_and_attend_as_the_library_does_under_a_mask():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    code = (
        "import torch; from tests.support.kernels import SMALL, check_attention, check_writes; "
        "check_attention('cpu', [torch.float32], SMALL); check_writes('cpu', [torch.float32])"
    )
    done = interpreted(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu_write_and_attend_as_the_library_does_under_a_mask():
    from tests.support.kernels import SHAPES_ATTENDED, check_attention, check_writes

    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    assert all(slot_attention.has_kernels(torch.device("cuda"), dtype) for dtype in dtypes)
    check_attention("cuda", dtypes, SHAPES_ATTENDED)
    check_writes("cuda", dtypes)


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("stretches", [1, 3])
def test_kernels_compile_for_cards_that_are_not_here(capability, stretches):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trimtok_cli.generation import slot_attention_triton as kernels

    target = GPUTarget("cuda", capability, 32)
    halves, floats = ("query", "key", "value"), ("most", "total")
    out = "*bf16" if stretches == 1 else "*fp32"
    strides = ("query_row", "query_head", "kept_row", "kept_head", "kept_place")
    numbers = ("window", "stretch", *strides)
    sizes = {"GROUP": 7, "MEMBERS": 16, "WIDTH": 128, "LANES": 128, "PLACES": 64}
    sizes |= {"STRETCHES": stretches}
    given = dict.fromkeys(halves, "*bf16") | {"used": "*i32", "out": out, "scale": "fp32"}
    given |= dict.fromkeys(floats, out) | dict.fromkeys(numbers, "i32")
    given |= dict.fromkeys(sizes, "constexpr")
    source = ASTSource(kernels._stretch_kernel, given, constexprs=sizes)
    assert triton.compile(source, target=target, options={}).asm["cubin"]
    sizes = {"WIDTH": 128, "LANES": 128, "STRETCHES": 3, "BLOCK": 4}
    given = dict.fromkeys(("parts", "most", "total"), "*fp32") | {"out": "*bf16"}
    source = ASTSource(
        kernels._join_kernel, given | dict.fromkeys(sizes, "constexpr"), constexprs=sizes
    )
    assert triton.compile(source, target=target, options={}).asm["cubin"]
