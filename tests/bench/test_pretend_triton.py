"""Our own kernels on the pretended device: one kernel a launch, with a device's values and bytes."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

import trimtok_cli
from trimtok_cli.bench.pretend_calls import outside
from trimtok_cli.bench.pretend_cuda import pretend_cuda, values_of
from trimtok_cli.bench.pretend_triton import KERNELS

pytest.importorskip("triton")

PACKAGE = Path(trimtok_cli.__file__).parent
FILES = ("models/fused_triton.py", "generation/slot_attention_triton.py")


@pytest.fixture
def tally():
    with pretend_cuda() as tally, torch.inference_mode():
        yield tally


def made(*shape: int) -> torch.Tensor:
    with outside():
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    values = values_of(found)
    with outside():
        wanted = values_of(wanted) if values_of(wanted) is not None else wanted
        return values.shape == wanted.shape and torch.allclose(values, wanted, atol=1e-6)


def test_every_kernel_of_a_decoder_has_a_stand_in():
    """A new kernel needs one in bench/pretend_triton.py, or code does without it there."""
    for name in FILES:
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        kernels = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and any("triton.jit" in ast.unparse(each) for each in node.decorator_list)
            and node.name.endswith("_kernel")
        }
        assert kernels and kernels <= set(KERNELS), kernels - set(KERNELS)


def test_pieces_of_a_layer_are_one_kernel_each_with_the_librarys_values(tally):
    from trimtok_cli.models import fused_triton

    rows, scale = made(3, 8).to("cuda"), made(8).to("cuda")
    query, key, angles = made(2, 3, 5, 16), made(2, 1, 5, 16), made(2, 5, 16)
    with outside():
        wanted = apply_rotary_pos_emb(query, key, angles, angles)
    given = [each.to("cuda") for each in (query, key, angles, angles)]
    tally.take()
    gated = fused_triton.gated(rows, rows)
    assert tally.take().bytes == 3 * rows.nbytes
    assert near(gated, nn.functional.silu(rows) * rows)
    tally.take()
    bent = fused_triton.quick_gelu(rows)
    work = tally.take()
    assert work.kernels == {"_quick_gelu_kernel": 1} and work.bytes == 2 * rows.nbytes
    assert near(bent, rows * torch.sigmoid(fused_triton.QUICK * rows))
    tally.take()
    normed = fused_triton.norm(rows, scale, 1e-5)
    work = tally.take()
    assert work.kernels == {"_norm_kernel": 1} and work.bytes == 2 * rows.nbytes + scale.nbytes
    assert near(normed, nn.functional.rms_norm(rows, (8,), scale, 1e-5))
    tally.take()
    rotated = fused_triton.rotary(*given)
    assert tally.take().kernels == {"_rotary_kernel": 1}
    assert all(map(near, rotated, wanted))


def test_a_decoder_on_the_device_takes_its_own_kernels(tally):
    """The forms are tried as on a device before they are taken."""
    from types import SimpleNamespace

    from trimtok_cli.models.faster import faster_forms, replaced

    config = SimpleNamespace(
        hidden_size=8, intermediate_size=16, hidden_act="silu", mlp_bias=False, dtype=None
    )
    with torch.device("cuda"):
        modules = nn.ModuleList([LlamaRMSNorm(8), LlamaMLP(config)])
    found = faster_forms([*modules.modules()], torch.device("cuda", 0))
    assert len(found) == 2
    rows = torch.ones(2, 8, device="cuda")
    tally.take()
    with replaced(found):
        modules[1](modules[0](rows))
    assert tally.take().kernels == {"_norm_kernel": 1, "linear": 3, "_gated_kernel": 1}


@pytest.mark.parametrize("span", [9, 300], ids=["one stretch", "three stretches"])
@pytest.mark.parametrize("window", [0, 4])
def test_tokens_are_written_and_attended_to_by_own_kernels(tally, span, window):
    from trimtok_cli.generation.slot_attention_triton import attend_used, write_token

    new, store = made(2, 2, 1, 16), made(3, span, 2, 16)
    query = made(2, 4, 16)
    with outside():
        ends = torch.tensor([5, span - 1])
        kept = store.clone()
        kept[torch.arange(2), ends] = new[:, :, 0]
        places = torch.arange(span)
        seen = places <= ends[:, None]
        seen &= (places > ends[:, None] - window) if window else True
        wanted = nn.functional.scaled_dot_product_attention(
            query[:, :, None],
            kept[:2].transpose(1, 2),
            kept[:2].transpose(1, 2),
            attn_mask=seen[:, None, None],
            scale=0.5,
            enable_gqa=True,
        )[:, :, 0]
    there, keys, where = store.to("cuda"), new.to("cuda"), ends.to("cuda")
    asked, used = query.to("cuda"), (ends + 1).to(torch.int32).to("cuda")
    values = there.clone()
    tally.take()
    write_token(keys, keys, there, values, where)
    work = tally.take()
    assert work.kernels == {"_write_kernel": 1} and work.bytes == 4 * new.nbytes
    assert near(there, kept) and near(values, kept)
    seen_keys = there[:2].transpose(1, 2)
    tally.take()
    found = attend_used(asked, seen_keys, seen_keys, used, scale=0.5, window=window)
    names = ["_stretch_kernel"] + ["_join_kernel"] * (span > 128)
    assert [name for name in tally.take().kernels if name.endswith("kernel")] == names
    assert near(found, wanted)


def test_a_replay_launches_the_kernels_again(tally):
    from trimtok_cli.models import fused_triton

    rows = torch.ones(2, 8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gated = fused_triton.gated(rows, rows)
    rows.fill_(3)
    tally.take()
    graph.replay()
    assert near(gated, nn.functional.silu(rows) * rows)
    assert tally.take().kernels["_gated_kernel"] == 1
