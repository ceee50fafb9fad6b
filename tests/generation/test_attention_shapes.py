"""The number of different attention calls of a run, for each of which a GPU may build a plan."""

import threading
from collections import defaultdict

import pytest
import torch
from PIL import Image

from tests.generation.test_continuous import Recording
from tests.support import tiny
from tests.support.generating import continuous, run_all
from trimtok_cli.data import Sample
from trimtok_cli.device import no_cudnn_attention
from trimtok_cli.engine.answer import answer
from trimtok_cli.generation import slot_steps
from trimtok_cli.generation.padding import bucket
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
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


@pytest.fixture
def cudnn_on():
    backends = torch.backends.cuda
    own = backends.cudnn_sdp_enabled()
    backends.enable_cudnn_sdp(True)
    yield backends.cudnn_sdp_enabled
    backends.enable_cudnn_sdp(own)


@pytest.mark.parametrize("first_out", ["first", "second"])
def test_two_threads_and_nested_passes_leave_cudnn_off_until_the_last_is_out(cudnn_on, first_out):
    """The second thread enters while the first is inside, whichever of them leaves first."""
    device, inside, leave, seen = torch.device("cuda"), threading.Event(), threading.Event(), []

    def second():
        with no_cudnn_attention(device):
            inside.set()
            assert leave.wait(30)
            seen.append(cudnn_on())

    thread = threading.Thread(target=second)
    with no_cudnn_attention(device):
        thread.start()
        assert inside.wait(30)
        with no_cudnn_attention(device):
            pass
        assert not cudnn_on(), "an inner block switched it on"
        if first_out == "second":
            leave.set()
            thread.join(30)
            assert not cudnn_on(), "the first thread is still inside"
    if first_out == "first":
        assert not cudnn_on(), "the second thread is still inside"
        leave.set()
        thread.join(30)
    assert seen == [False] and cudnn_on()


def test_an_error_in_one_thread_leaves_the_others_pass_alone(cudnn_on):
    device = torch.device("cuda")
    with no_cudnn_attention(device):

        def breaks():
            with pytest.raises(ValueError, match="broken"), no_cudnn_attention(device):
                raise ValueError("broken")

        thread = threading.Thread(target=breaks)
        thread.start()
        thread.join(30)
        assert not cudnn_on()
    assert cudnn_on()


def test_the_tower_and_the_language_model_run_without_cudnn(tmp_path, monkeypatch, cudnn_on):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    monkeypatch.setattr(adapter, "kernels", lambda: no_cudnn_attention(torch.device("cuda")))
    seen, sdpa = [], torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **options):
        seen.append(cudnn_on())
        return sdpa(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    sample = Sample("a", images=(tmp_path / "a.png",), names=("a.png",))
    answer(adapter, None, [sample], Ask("What is here?", max_new_tokens=3))
    assert len(seen) > adapter.num_layers and not any(seen) and cudnn_on()
