"""The decoder's modules in their faster forms: the same numbers, fewer calls, and gone afterwards."""

import platform
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.generation.test_right_padding import NAMES, loaded, prefill
from tests.support.interpreter import interpreted
from trimtok_cli.models import faster, onednn

BY_INTEL = onednn.by_intel.__wrapped__


@pytest.fixture(autouse=True)
def _cpu_of_another_maker(monkeypatch) -> None:
    """Products are shared out as on a CPU that is not Intel's, whichever CPU the tests run on."""
    monkeypatch.setattr(onednn, "by_intel", lambda: False)


class Calls(TorchDispatchMode):
    """Counts operations of a library that compute, by name."""

    def __init__(self, library="aten"):
        super().__init__()
        self.library, self.names = library, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.namespace == self.library:
            self.names.append(func.name().partition("::")[2].split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_every_norm_of_a_decoder_is_fused_and_computes_the_same(name, tmp_path):
    adapter, prompts = loaded(name, tmp_path)
    decoder = adapter.model.get_decoder()
    norms = [module for module in decoder.modules() if type(module).__name__.endswith("RMSNorm")]
    forms = [faster.Form(module.__dict__, "forward", faster.fused_norm(module)) for module in norms]
    assert norms and all(each.form for each in forms)
    wanted = prefill(adapter, prompts)[0]
    with faster.replaced(forms):
        assert (prefill(adapter, prompts)[0] - wanted).abs().max() < 1e-5
        assert all("forward" in vars(module) for module in norms)
    assert not any("forward" in vars(module) for module in decoder.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_fused_norm_differs_in_the_last_bit_at_most(tmp_path, dtype):
    generator = torch.Generator().manual_seed(3)
    for name in ("llava", "gemma3"):
        adapter, _ = loaded(name, tmp_path / name)
        norm = adapter.model.get_decoder().norm.to(dtype)
        norm.weight.data = torch.randn(norm.weight.shape, generator=generator).to(dtype)
        rows = torch.randn(5, len(norm.weight), generator=generator).to(dtype) * 3
        wanted, found = norm(rows), faster.fused_norm(norm)(rows)
        assert found.dtype == dtype
        bits = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, wanted, rtol=max(bits, 1e-6), atol=1e-6)


def test_what_is_no_such_norm_is_left_alone():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, rows):
            return self.weight * (rows - rows.mean(-1, keepdim=True))

    assert faster.fused_norm(Mean()) is None
    assert faster.fused_norm(nn.LayerNorm(8)) is None
    assert faster.fused_norm(nn.Linear(8, 8)) is None
    assert faster.faster_forms([nn.Linear(8, 8).bfloat16()], torch.device("cpu")) == []


@pytest.mark.parametrize("size", [48, 512])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relaid", [False, True])
@pytest.mark.parametrize("suits", [False, True])
@pytest.mark.parametrize("intel", [False, True])
@torch.no_grad()
def test_a_product_by_onednn_or_of_what_was_laid_out_is_the_layer_s(
    monkeypatch, suits, relaid, bias, size, intel
):
    monkeypatch.setattr(onednn, "by_intel", lambda: intel)
    monkeypatch.setattr(onednn, "suits", lambda *_, **__: suits)
    layer = nn.Linear(64, size, bias=bias)
    before = layer.weight.clone()
    given = [torch.randn(rows, 3, 64) for rows in (0, 1, 2, 8, 40)]
    given += [torch.randn(64), torch.randn(4, 2, 64)[:, -1], torch.randn(64, 5).t()]
    wanted = [layer(rows) for rows in given]
    form = onednn.product_of(layer, relaid=relaid)
    assert torch.equal(layer.weight, before) and layer.weight.shape == before.shape
    assert layer.weight.is_contiguous() == (intel or not relaid)
    for rows, result in zip(given, wanted, strict=True):
        with Calls("mkldnn") as calls:
            found = form(rows)
        assert calls.names == ["_linear_pointwise"] * suits
        assert found.is_contiguous() and found.shape == result.shape
        torch.testing.assert_close(found, result, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer(rows), result, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("registers", "wide"), [("AVX2", False), ("AVX512_VNNI", True)])
@torch.no_grad()
def test_onednn_multiplies_what_is_large_and_many_rows_by_wide_registers_alone(
    monkeypatch, registers, wide
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: registers)
    for width, rows, by_onednn in (
        (1024, 1, True),
        (1024, onednn.FEW, True),
        (1024, onednn.FEW + 1, wide),
        (64, onednn.FEW, False),
        (64, onednn.LEAST // 64**2, wide),
    ):
        product = onednn.product_of(nn.Linear(width, width), relaid=True)
        with Calls("mkldnn") as calls:
            product(torch.zeros(1, rows, width))
        assert len(calls.names) == by_onednn, (width, rows)


@torch.no_grad()
def test_on_an_intel_cpu_onednn_multiplies_small_batches_alone(monkeypatch):
    monkeypatch.setattr(onednn, "by_intel", lambda: True)
    for width, rows, by_onednn in (
        (1024, 1, False),
        (1024, 3, False),
        (1024, 4, True),
        (1024, 15, True),
        (1024, 16, False),
        (1024, 600, False),
        (512, 8, False),
    ):
        product = onednn.product_of(nn.Linear(width, width), relaid=True)
        with Calls("mkldnn") as calls:
            product(torch.zeros(1, rows, width))
        assert len(calls.names) == by_onednn, (width, rows)


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("maker", ["GenuineIntel", "AuthenticAMD"])
def test_the_cpu_s_maker_is_told_by_the_system(monkeypatch, tmp_path, file, maker):
    monkeypatch.setattr(onednn, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: f"Intel64 Family 6, {maker}")
    if file:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nvendor_id: {maker}\n")
    assert BY_INTEL() == (maker == "GenuineIntel")


@pytest.mark.parametrize(("size", "extra"), [(512, onednn.EXTRA), (48, 0)])
@torch.no_grad()
def test_weights_are_laid_out_once_and_take_no_second_copy(size, extra):
    layer, rows = nn.Linear(64, size), torch.randn(3, 64)
    first = onednn.product_of(layer, relaid=True)
    place = layer.weight.data_ptr()
    assert layer.weight.untyped_storage().nbytes() == 64 * (size + extra) * 4
    assert layer.weight.requires_grad and isinstance(layer.weight, nn.Parameter)
    for relaid in (True, False):  # a second adapter of the same model
        again = onednn.product_of(layer, relaid=relaid)
        assert layer.weight.data_ptr() == place
        assert torch.equal(again(rows), first(rows))


@pytest.mark.parametrize("cut", [(slice(2, 10), slice(None)), (slice(None), slice(2, 10))])
@torch.no_grad()
def test_weights_that_are_a_part_of_others_are_left_alone(cut):
    layer = nn.Linear(8, 8)
    for whole in (torch.randn(16, 16), torch.randn(16, 16).t()):
        layer.weight.data = whole[cut][:8, :8]
        assert onednn.product_of(layer, relaid=True) is None


def test_a_layer_made_for_inference_alone_is_not_laid_out_anew():
    with torch.inference_mode():
        layer, rows = nn.Linear(8, 8), torch.randn(3, 8)
        wanted = layer(rows)
        (form,) = faster.faster_forms([layer], torch.device("cpu"))
        assert layer.weight.is_contiguous()
        torch.testing.assert_close(form.form(rows), wanted)
        torch.testing.assert_close(layer(rows), wanted)


def test_weights_that_two_modules_share_stay_as_they_lie():
    head, words, alone = nn.Linear(8, 12), nn.Embedding(12, 8), nn.Linear(8, 8)
    head.weight = words.weight
    forms = faster.faster_forms([words, head, alone], torch.device("cpu"))
    assert len(forms) == 2 and words.weight.is_contiguous()
    assert not alone.weight.is_contiguous()


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_without_onednn_s_operation_products_are_the_library_s(monkeypatch, fault):
    stand_in = SimpleNamespace()
    if fault == "wrong":
        stand_in._linear_pointwise = lambda rows, *_: rows
    monkeypatch.setattr(onednn.torch.ops, "mkldnn", stand_in)
    onednn.operation.cache_clear()
    try:
        assert faster.faster_forms([nn.Linear(8, 8)], torch.device("cpu")) == []
    finally:
        onednn.operation.cache_clear()


def test_a_forward_function_that_somebody_set_stays():
    linear, hooked = nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.forward = own = hooked.forward
    forms = faster.faster_forms([linear, hooked], torch.device("cpu"))
    with faster.replaced(forms):
        assert "forward" in vars(linear) and hooked.forward is own
    assert "forward" not in vars(linear) and hooked.forward is own


@torch.inference_mode()
def test_a_pass_leaves_the_model_as_it_was_even_if_it_breaks(tmp_path):
    adapter, prompts = loaded("llava", tmp_path)
    assert len(adapter.faster) == 7 * adapter.num_layers + 1, "every product of the decoder"
    prefill(adapter, prompts)
    with pytest.raises(ValueError, match="exactly one"):
        adapter.forward(None, None, None, None)
    assert not any("forward" in vars(module) for module in adapter.model.modules())


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "before"), [(torch.float32, 6), (torch.bfloat16, 8)])
def test_on_cuda_a_fused_norm_is_one_launch(tmp_path, dtype, before):
    """Counted on tensors that only say that they lie on CUDA."""
    adapter, _ = loaded("llava", tmp_path)
    norm = adapter.model.get_decoder().norm
    counts = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        norm.weight = nn.Parameter(torch.empty(64, device="cuda", dtype=dtype))
        rows = torch.empty(4, 1, 64, device="cuda", dtype=dtype)
        for form in (norm, faster.scaled_norm(norm.weight, norm.variance_epsilon)):
            with Calls() as calls:
                form(rows)
            counts.append(calls.names)
    assert len(counts[0]) == before and counts[1] == ["_fused_rms_norm"]


needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="needs Triton")


@needs_triton
def test_fused_pieces_in_the_interpreter_compute_what_the_library_computes():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported.

    The interpreter cuts a bfloat16 off where a device rounds it.
    """
    code = (
        "import torch; from tests.support.kernels import check_fused; "
        "check_fused('cpu', [torch.float32, torch.float16])"
    )
    done = interpreted(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_pieces_on_a_gpu_compute_what_the_library_computes():
    from tests.support.kernels import check_fused

    check_fused("cuda", [torch.float32, torch.float16, torch.bfloat16])
    assert faster.has_triton(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_on_a_gpu_has_fused_pieces(tmp_path, name):
    from trimtok_cli.models.loading import load_model

    adapter, _ = loaded(name, tmp_path)
    on_gpu = load_model(adapter.name, device="cuda")
    names = [each.name for each in on_gpu.faster]
    assert names.count("apply_rotary_pos_emb") == 1
    gates = sum(each.form.__qualname__.startswith("fused_gate") for each in on_gpu.faster)
    assert gates == (0 if name.startswith("gemma3") else adapter.num_layers)


def test_the_library_s_rotation_is_back_behind_a_pass():
    def library(query, key, cos, sin):
        return query, key

    def form(query, key, cos, sin):
        return key, query

    names = {"rotate": library}
    forms = [faster.Form(names, "rotate", form, library)]
    with faster.replaced(forms):
        with faster.replaced(forms):
            assert names["rotate"] is form
        assert names["rotate"] is library
    assert names["rotate"] is library


@needs_triton
def test_an_unusual_rotation_is_the_library_s():
    calls = []
    rotate = faster.fused_rotary(lambda *given, **more: calls.append((given, more)))
    query = torch.randn(1, 2, 3, 8)
    rotate(query, query, query[:, 0], query[:, 0])
    rotate(query, query, query[:, 0], query[:, 0], unsqueeze_dim=2)
    assert len(calls) == 2 and calls[1][1] == {"unsqueeze_dim": 2}


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_fused_pieces_compile_for_cards_that_are_not_here(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trimtok_cli.models import fused_triton

    axes = {"query": "sample place head", "key": "sample place head", "cos": "sample place"}
    strides = [f"{name}_{axis}" for name, words in axes.items() for axis in words.split()]
    numbers = ["length", "query_heads", "key_heads", *strides]
    tensors = ("query", "key", "cos", "sin", "query_out", "key_out")
    sizes = {"HALF": 64, "BLOCK": 64, "HEADS": 8, "TYPE": fused_triton.TYPES[torch.bfloat16]}
    source = ASTSource(
        fused_triton._rotary_kernel,
        dict.fromkeys(tensors, "*bf16")
        | dict.fromkeys(numbers, "i32")
        | dict.fromkeys(sizes, "constexpr"),
        constexprs=sizes,
    )
    target = GPUTarget("cuda", capability, 32)
    assert triton.compile(source, target=target, options={"enable_fp_fusion": False}).asm["cubin"]
    sizes = {"BLOCK": 1024, "TYPE": fused_triton.TYPES[torch.bfloat16]}
    source = ASTSource(
        fused_triton._gated_kernel,
        dict.fromkeys(("gate", "up", "out"), "*bf16")
        | dict.fromkeys(("width", "gate_row", "up_row"), "i32")
        | dict.fromkeys(sizes, "constexpr"),
        constexprs=sizes,
    )
    assert triton.compile(source, target=target, options={}).asm["cubin"]
    sizes["FACTOR"] = fused_triton.QUICK
    source = ASTSource(
        fused_triton._quick_gelu_kernel,
        {"given": "*bf16", "out": "*bf16", "count": "i32"} | dict.fromkeys(sizes, "constexpr"),
        constexprs=sizes,
    )
    assert triton.compile(source, target=target, options={}).asm["cubin"]


def test_an_mlp_of_another_form_is_left_alone(monkeypatch):
    """A stand-in for the kernel shows what is taken for a gated MLP: the class's code, by values."""
    stand_in = SimpleNamespace(
        TYPES={torch.float32: None}, gated=lambda gate, up: nn.functional.silu(gate) * up
    )
    monkeypatch.setitem(sys.modules, "trimtok_cli.models.fused_triton", stand_in)
    import trimtok_cli.models as models

    monkeypatch.setattr(models, "fused_triton", stand_in, raising=False)

    class Gated(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)
            self.down_proj, self.act_fn = nn.Linear(12, 8), act

        def forward(self, hidden):
            return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))

    class Swapped(Gated):
        def forward(self, hidden):
            return self.down_proj(self.gate_proj(hidden) * self.act_fn(self.up_proj(hidden)))

    class Scaled(Gated):
        scale = 2.0

        def forward(self, hidden):
            return self.scale * super().forward(hidden)

    def fused(module, owned=1):
        weights = [each for each in module.parameters() if each.dim() == 2]
        return faster.fused_gate(module, dict.fromkeys(weights, owned))

    for owned in (1, 2):  # with gate and rise as one product, and apart
        usual, rows = Gated(nn.SiLU()), torch.randn(3, 8)
        wanted = usual(rows)
        form = fused(usual, owned)
        torch.testing.assert_close(form(rows), wanted)
        weights = [
            each.weight.untyped_storage().data_ptr() for each in (usual.gate_proj, usual.up_proj)
        ]
        assert (weights[0] == weights[1]) == (owned == 1)
    assert fused(Gated(nn.GELU())) is None
    assert fused(Swapped(nn.SiLU())) is None
    assert fused(Scaled(nn.SiLU())) is None
    assert fused(nn.Linear(8, 8)) is None


@needs_triton
def test_only_clip_s_activation_is_taken_for_it():
    from transformers.activations import ACT2FN

    assert faster.fused_activation(ACT2FN["quick_gelu"]) is not None
    others = [ACT2FN[name] for name in ("gelu", "gelu_pytorch_tanh", "silu", "relu", "gelu_10")]
    others += [nn.Identity(), nn.Dropout(), nn.Linear(4, 4), nn.Softmax(-1), nn.Flatten()]
    others += [nn.MaxPool2d(2), nn.Sequential(ACT2FN["quick_gelu"])]
    assert [faster.fused_activation(module.eval()) for module in others] == [None] * len(others)
    rows = torch.randn(3, 8)
    form = faster.fused_activation(ACT2FN["quick_gelu"])
    assert torch.equal(form(rows), ACT2FN["quick_gelu"](rows)), "no kernel off a device"
