"""The roofline against numbers worked out by hand for the real models, and against FLOPs
counted while a model runs.
"""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trimtok_cli.bench.roofline import Ceilings, Text, Vision

VICUNA_7B = Text(32, 4096, 32, 32, 128, 11008, 32064)
VICUNA_13B = Text(40, 5120, 40, 40, 128, 13824, 32064)
MISTRAL_7B = Text(32, 4096, 32, 8, 128, 14336, 32064)
QWEN2_7B = Text(28, 3584, 28, 4, 128, 18944, 152064)
H200 = Ceilings(790e12, 4.3e12)


def clip(width: int) -> Vision:
    """CLIP-L/336 read at its layer -2, in front of a language model of that width."""
    vision = SimpleNamespace(
        model_type="clip_vision_model",
        num_hidden_layers=24,
        hidden_size=1024,
        intermediate_size=4096,
        patch_size=14,
    )
    text = SimpleNamespace(hidden_size=width)
    return Vision.of(
        SimpleNamespace(
            vision_config=vision, vision_feature_layer=-2, get_text_config=lambda: text
        ),
        has_cls=True,
    )


def qwen() -> Vision:
    vision = SimpleNamespace(
        depth=32,
        embed_dim=1280,
        mlp_ratio=4,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    text = SimpleNamespace(hidden_size=3584)
    return Vision.of(
        SimpleNamespace(vision_config=vision, get_text_config=lambda: text), has_cls=False
    )


# text, tower, patches, dense and kept visual tokens; vision, dense prefill, pruned prefill in
# TFLOP; with 60 text tokens
TABLE = [
    (VICUNA_7B, clip(4096), [576], 576, 64, 0.390, 8.34, 1.61),
    (VICUNA_7B, clip(4096), [576], 576, 128, 0.390, 8.34, 2.44),
    (VICUNA_13B, clip(5120), [576], 576, 64, 0.402, 16.30, 3.15),
    (VICUNA_7B, clip(4096), [576] * 5, 2880, 288, 1.951, 40.35, 4.54),
    (VICUNA_7B, clip(4096), [576] * 5, 2880, 320, 1.951, 40.35, 4.96),
    (MISTRAL_7B, clip(4096), [576] * 5, 2880, 320, 1.951, 43.30, 5.34),
    (QWEN2_7B, qwen(), [1564], 391, 43, 2.41, 5.93, 1.35),
    (QWEN2_7B, qwen(), [5476], 1369, 152, 11.94, 19.06, 2.78),
]


@pytest.mark.parametrize(
    ("text", "tower", "patches", "dense", "kept", "vision", "prefill", "pruned"), TABLE
)
def test_flops_of_the_real_models(text, tower, patches, dense, kept, vision, prefill, pruned):
    assert tower.encode(patches) / 1e12 == pytest.approx(vision, rel=0.01)
    assert text.prefill(dense + 60) / 1e12 == pytest.approx(prefill, rel=0.01)
    assert text.prefill(kept + 60) / 1e12 == pytest.approx(pruned, rel=0.01)


def test_weights_and_cache_of_the_real_models():
    assert 2 * VICUNA_7B.weights / 1e9 == pytest.approx(13.21, rel=0.002)
    assert 2 * VICUNA_13B.weights / 1e9 == pytest.approx(25.70, rel=0.002)
    assert 2 * QWEN2_7B.weights / 1e9 == pytest.approx(14.14, rel=0.002)
    assert [2 * t.cache / 1024 for t in (VICUNA_7B, VICUNA_13B, QWEN2_7B)] == [512, 800, 56]


@pytest.mark.parametrize(
    ("text", "tower", "patches", "length", "batch", "new", "milliseconds"),
    [
        (VICUNA_7B, clip(4096), 1, 636, 1, 10, 39.4),
        (VICUNA_7B, clip(4096), 1, 124, 1, 10, 31.4),
        (VICUNA_7B, clip(4096), 1, 636, 64, 64, 19.2),
        (VICUNA_7B, clip(4096), 5, 2940, 32, 32, 67.7),
        (VICUNA_7B, clip(4096), 5, 348, 32, 32, 12.6),
        (VICUNA_13B, clip(5120), 1, 124, 8, 32, 28.5),
    ],
)
def test_seconds_of_the_real_models(text, tower, patches, length, batch, new, milliseconds):
    """A sample's roofline on a card of 790 TFLOP/s and 4.3 TB/s: whichever of arithmetic and memory
    takes longer, stage by stage.
    """
    encode = tower.encode_seconds(H200, [576] * patches * batch, 2)
    seconds = (
        encode
        + text.prefill_seconds(H200, [length] * batch, 2)
        + text.decode_seconds(H200, [length] * batch, new, 2)
    )
    assert 1000 * seconds / batch == pytest.approx(milliseconds, rel=0.02)


def test_a_memory_bound_prefill_costs_one_read_of_the_weights():
    assert VICUNA_7B.prefill_seconds(H200, [100], 2) == 2 * VICUNA_7B.weights / 4.3e12
    assert VICUNA_7B.decode_seconds(H200, [100], 1, 2) == 0


def test_a_tower_that_is_not_known_has_no_roofline():
    windowed = SimpleNamespace(depth=32, hidden_size=1280, patch_size=14)
    config = SimpleNamespace(
        vision_config=windowed, get_text_config=lambda: SimpleNamespace(hidden_size=64)
    )
    assert Vision.of(config, has_cls=False) is None


@torch.inference_mode()
def test_flops_are_those_that_a_model_computes(adapter):
    """Counted at the matrix products of the tiny LLaVA. Eager attention computes the whole square;
    the roofline its causal half.
    """
    config = adapter.model.config
    adapter.model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as prefill:
            hidden = adapter.model.get_decoder()(
                inputs_embeds=torch.randn(1, 50, 64)
            ).last_hidden_state
            adapter.model.lm_head(hidden[:, -1])
        pixels = torch.randn(2, 3, 84, 84)
        with FlopCounterMode(display=False) as encode:
            adapter.model.model.get_image_features(pixels)
    finally:
        adapter.model.set_attn_implementation("sdpa")
    text, vision = Text.of(config.text_config), Vision.of(config, has_cls=adapter.tower().has_cls)
    half = 2 * text.layers * text.heads * text.head_dim * 50**2
    assert prefill.get_total_flops() == pytest.approx(text.prefill(50) + half, rel=1e-3)
    unread = 2 * (
        2 * 37 * (4 * 32**2 + 2 * 32 * 48) + 4 * 37**2 * 32
    )  # a layer behind the one that is read, where it runs
    least, counted = vision.encode([36, 36]), encode.get_total_flops()
    assert min(abs(counted - least), abs(counted - least - unread)) < 1e-3 * least
