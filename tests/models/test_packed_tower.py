"""A tower in one attention call a layer against the library's own calls, one for each segment."""

import inspect
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import varlen

from tests.conftest import picture
from tests.oracles.test_families import clip_of
from tests.support.families import FAMILIES
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.vision import packed_tower

SIZES = [(200, 150), (90, 84), (200, 150), (60, 220), (230, 130)]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def family(request, tmp_path_factory):
    build = FAMILIES[request.param]
    return load_model(str(build(tmp_path_factory.mktemp("packed") / request.param)), device="cpu")


def batch(family) -> list:
    """Images of several shapes, one alone and two in a prompt, and where there are clips, two."""
    images = [picture(i, *size) for i, size in enumerate(SIZES)]
    prompts = [family.prepare([image], "?") for image in images]
    return [*prompts, family.prepare(images[:2], "?")]


def encoded(family, inputs) -> list[torch.Tensor]:
    """Everything that a run of the tower gives: tokens, deepstack layers, signals."""
    with torch.inference_mode():
        tokens = family.encode_many(inputs)
        found = []
        for each in tokens:
            found += [each.embeds, each.signals.saliency, each.signals.keys]
            found += [] if each.deepstack is None else [each.deepstack]
        return found


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Calls of torch's attention, by the number of rows."""
    counts: Counter = Counter()
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        counts[query.shape[-2]] += 1
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return counts


def test_tokens_and_signals_are_the_librarys_to_the_last_bit(family, monkeypatch):
    inputs = batch(family)
    ours = encoded(family, inputs)
    monkeypatch.setattr(type(family), "packing", lambda self: nullcontext())
    wanted = encoded(family, inputs)
    assert len(ours) == len(wanted) and all(
        torch.equal(one, other) for one, other in zip(ours, wanted, strict=True)
    )


def test_segments_of_one_length_are_one_call_a_layer(family, calls, monkeypatch):
    """Five images and two in a prompt have at most four sizes of image, and of window."""
    inputs = batch(family)
    depth = len(family.model.model.visual.blocks)
    with torch.inference_mode():
        family.encode_many(inputs, signals=False)
        ours = calls.total()
        # A layer attends over images or over windows: a length is asked for once in each.
        assert all(count <= depth for count in calls.values())
        calls.clear()
        monkeypatch.setattr(type(family), "packing", lambda self: nullcontext())
        family.encode_many(inputs, signals=False)
    assert ours < calls.total() and ours <= 4 * depth


def test_equal_windows_of_one_image_are_one_call_in_place_of_one_each(calls, tmp_path):
    adapter = load_model(str(FAMILIES["qwen2_5_vl"](tmp_path / "m")), device="cpu")
    calls.clear()
    with torch.inference_mode():
        adapter.encode_many([adapter.prepare([picture(1, 224, 224)], "?")], signals=False)
    # Nine windows of 4 x 4 patches in two layers, 144 patches in the other two.
    assert calls == {16: 2, 144: 2}


def test_a_clip_of_frames_is_the_librarys_too(family, monkeypatch):
    inputs = [family.prepare([], "?", clip=clip_of(5)), family.prepare([picture(1)], "?")]
    ours = encoded(family, inputs)
    monkeypatch.setattr(type(family), "packing", lambda self: nullcontext())
    assert all(
        torch.equal(one, other) for one, other in zip(ours, encoded(family, inputs), strict=True)
    )


def test_the_tower_is_as_before_also_when_a_run_fails(family, monkeypatch):
    visual = family.model.model.visual
    before = visual.config._attn_implementation
    hooks = len(visual._forward_pre_hooks)

    def broken(*_, **options):
        raise ArithmeticError

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    with pytest.raises(ArithmeticError):
        family.encode_many([family.prepare([picture(1)], "?")])
    assert visual.config._attn_implementation == before == "sdpa"
    assert len(visual._forward_pre_hooks) == hooks


def stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """The arguments that `varlen_attn` has in all versions, checked and followed one by one."""
    assert query.ndim == 3 and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    lengths = cu_seq_q.diff()
    assert int(cu_seq_q[-1]) == len(query) and type(max_q) is type(max_k) is int
    assert max_q == max_k == int(lengths.max()) and query.stride(-1) == value.stride(-1) == 1
    stand_in.calls += 1
    parts = []
    for start, end in pairwise(cu_seq_q.tolist()):
        rows = [tensor[start:end].transpose(0, 1) for tensor in (query, key, value)]
        parts.append(torch.nn.functional.scaled_dot_product_attention(*rows).transpose(0, 1))
    return torch.cat(parts)


def test_the_kernel_for_segments_is_called_as_its_signature_says(family, monkeypatch):
    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names[:7] == list(inspect.signature(stand_in).parameters)
    inputs = batch(family)
    wanted = encoded(family, inputs)
    stand_in.calls = 0
    monkeypatch.setattr(packed_tower, "varlen_attn", stand_in)
    monkeypatch.setattr(packed_tower, "has_varlen", lambda *_: True)
    found = encoded(family, inputs)
    assert stand_in.calls == len(family.model.model.visual.blocks)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_another_scale_than_the_kernels_own_is_in_the_queries(monkeypatch):
    monkeypatch.setattr(packed_tower, "varlen_attn", stand_in)
    stand_in.calls = 0
    tensors = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    ends = torch.tensor([0, 4, 6], dtype=torch.int32)
    arguments = {"scaling": 0.2, "cu_seq_lens_q": ends, "max_length_q": 4}
    found, _ = packed_tower.attend_varlen(None, *tensors, **arguments)
    wanted, _ = packed_tower.attend_in_batches(None, *tensors, **arguments)
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(
    "kind, dtype, capability, wanted",
    [
        ("cuda", torch.bfloat16, (8, 0), True),
        ("cuda", torch.float16, (9, 0), True),
        ("cuda", torch.float32, (9, 0), False),
        ("cuda", torch.float16, (7, 5), False),
        ("cpu", torch.bfloat16, (9, 0), False),
    ],
)
def test_the_kernel_is_used_where_it_runs(kind, dtype, capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert packed_tower.has_varlen(torch.device(kind), dtype) is wanted
