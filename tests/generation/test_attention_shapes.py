"""The number of different attention calls of a run, for each of which a GPU may build a plan."""

from collections import defaultdict

import pytest
import torch

from tests.generation.test_continuous import Recording
from tests.support import tiny
from tests.support.generating import continuous, run_all
from trimtok_cli.device import no_cudnn_attention
from trimtok_cli.generation import slot_steps
from trimtok_cli.generation.padding import bucket
from trimtok_cli.models.loading import load_model
from trimtok_cli.tokens import Prompt

SAMPLES = 60


def prompt(length: int, width: int) -> Prompt:
    generator = torch.Generator().manual_seed(length)
    return Prompt(
        embeds=torch.randn(length, width, generator=generator),
        positions=torch.arange(length),
        visual=torch.arange(0),
        alive=torch.arange(0),
        instruction=torch.arange(1),
    )


@pytest.fixture
def shapes(monkeypatch):
    """Sizes, strides and mask of every attention call, by what it belongs to."""
    found, real = defaultdict(set), torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        mask = None if attn_mask is None else (attn_mask.shape, attn_mask.stride())
        kind = "step" if mask else "prefill"
        shape = *((each.shape, each.stride()) for each in (query, key, value)), mask
        found[kind].add(shape)
        return real(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return found


@pytest.mark.parametrize("like_cuda", [False, True])
def test_prompts_of_any_length_make_few_shapes(tmp_path, monkeypatch, shapes, like_cuda):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    if like_cuda:
        monkeypatch.setattr(slot_steps, "CudaGraphs", Recording)
    width = adapter.config.hidden_size
    lengths = [60 + (37 * number) % 68 for number in range(SAMPLES)]
    loop = continuous(adapter, batch_limit=1, max_new_tokens=3, stop=False)
    done = run_all(loop, [prompt(length, width) for length in lengths])
    assert not any(each.error for each in done.values())
    if like_cuda:
        assert len(shapes["prefill"]) <= 3 and len(shapes["step"]) <= 3
    else:
        assert len(shapes["prefill"]) >= len(set(lengths)), "a CPU pays for every row"


def test_buckets_are_few_and_add_little():
    assert [bucket(length) for length in (1, 32, 33, 512, 513, 2_992)] == [
        32,
        32,
        64,
        512,
        576,
        3_072,
    ]
    for least in (32, 8):
        for length in range(1, 5_000):
            padded = bucket(length, least)
            assert length <= padded < length + max(least, length * least / 256)
            assert padded % least == 0
        steps = 512 // least
        assert len({bucket(length, least) for length in range(1, 4_097)}) == steps + 3 * steps // 2


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_off_for_the_length_of_a_pass_on_cuda(before):
    backends = torch.backends.cuda
    own = backends.cudnn_sdp_enabled()
    try:
        backends.enable_cudnn_sdp(before)
        with pytest.raises(ValueError, match="broken"), no_cudnn_attention(torch.device("cuda")):
            assert not backends.cudnn_sdp_enabled()
            raise ValueError("broken")
        assert backends.cudnn_sdp_enabled() == before
        with no_cudnn_attention(torch.device("cpu")):
            assert backends.cudnn_sdp_enabled() == before
    finally:
        backends.enable_cudnn_sdp(own)
