"""The vision tower runs no layer, and keeps no state, that nothing reads.

The oracle is the library's whole tower, bit by bit.
"""

import gc
import weakref

import pytest
import torch

from tests.conftest import picture
from tests.oracles.test_families import clip_of, library_inputs, library_logits
from tests.support import tiny
from tests.support.families import FAMILIES, VIDEO_FAMILIES
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.vision.tower_batches import CROP, batch_by_shape, tower_offsets
from trimtok_cli.models.vision.tower_run import run_tower

# vision_feature_layer of a tower of three layers, and the layers that have to run for it
READ = {
    "-2": (-2, 2),
    "1": (1, 1),
    "3": (3, 3),
    "-1": (-1, 3),
    "[1, -2]": ([1, -2], 2),
    "[-2, 0, 1]": ([-2, 0, 1], 2),
    "[0, -1]": ([0, -1], 3),
}


def loaded(name: str, folder):
    if name in READ:
        tiny.llava(folder, layer=READ[name][0])
    else:
        {"siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}[name](folder)
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module", params=[*READ, "siglip", "pixtral", *FAMILIES])
def family(request, tmp_path_factory):
    return loaded(request.param, tmp_path_factory.mktemp("towers") / "m")


def asked(adapter):
    found = [
        adapter.prepare([picture(1, 150, 60)], "?"),
        adapter.prepare([picture(2, 90, 90), picture(3, 80, 100)], "Why?"),
    ]
    return found + (
        [adapter.prepare([], "What?", clip=clip_of(3))] if adapter.preprocessor.has_video else []
    )


# SmolVLM shows an image or a video, not both; LLaVA-OneVision offers no signals of a video.
LACKING = {"smolvlm", "llava_onevision"}
SIGNALS = ("saliency", "keys", "last_saliency", "last_keys", "features", "cls")


@torch.inference_mode()
def test_tokens_and_signals_are_those_of_the_whole_tower(family, monkeypatch):
    batch = asked(family)
    found = family.encode_many(batch)
    monkeypatch.setattr(type(family), "early_exit", Adapter.early_exit)
    assert len(found) == len(batch) > 1
    for one, other in zip(found, family.encode_many(batch), strict=True):
        assert torch.equal(one.embeds, other.embeds) and len(one) > 0
        assert one.deepstack is other.deepstack is None or torch.equal(
            one.deepstack, other.deepstack
        )
        for name in SIGNALS:
            assert one.signals.offers(name) == other.signals.offers(name)
            assert not one.signals.offers(name) or torch.equal(
                getattr(one.signals, name), getattr(other.signals, name)
            ), name


@torch.inference_mode()
@pytest.mark.parametrize("name", [*READ, "siglip", "llava_next"])
def test_layers_behind_run_only_for_a_signal_of_the_last_one_which_is_the_whole_towers(
    name, tmp_path
):
    adapter, depth = (
        loaded(name, tmp_path / "m"),
        READ.get(name, (0, 3 if name == "siglip" else 2))[1],
    )
    vision, inputs = (
        adapter.model.model.vision_tower,
        adapter.prepare([picture(1), picture(2, 150, 60)], "?"),
    )
    layers, ran, entered = vision.encoder.layers, [], []
    for number, layer in enumerate(layers, 1):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    vision.post_layernorm.register_forward_pre_hook(lambda *_: ran.append("norm"))
    (tokens,) = adapter.encode_many([inputs])
    _ = tokens.signals.saliency, tokens.signals.keys, tokens.signals.features, tokens.embeds
    assert ran == list(range(1, depth + 1))
    found = tokens.signals.last_saliency, tokens.signals.last_keys
    assert ran == list(range(1, len(layers) + 1))
    # The oracle: the inputs of the last layer's attention in the library's own whole forward pass.
    tower = adapter.tower()
    layers[-1].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: entered.append((args, kwargs)), with_kwargs=True
    )
    adapter.model.model(input_ids=inputs.input_ids[None], **adapter.tower_inputs([inputs]))
    ((args, kwargs),) = entered
    tower.inputs["last_"], tower.behind = [(args, kwargs)], ()
    whole = tower.signals(
        adapter.layouts(inputs),
        tower_offsets([adapter.layouts(inputs)], [[False] * 2])[0],
        adapter.project,
    )
    assert torch.equal(found[0], whole.last_saliency) and torch.equal(found[1], whole.last_keys)


@torch.inference_mode()
def test_no_hidden_state_is_alive_that_nobody_reads(tmp_path):
    """When the projector runs, only the states that it reads are alive; without signals, none later."""
    for name, states in (
        ("-2", 1),
        ("[1, -2]", 2),
        ("siglip", 1),
        ("llava_next", 1),
        ("llava_onevision", 1),
        ("pixtral", 1),
    ):
        adapter = loaded(name, tmp_path / name)
        vision, made, alive = adapter.model.model.vision_tower, [], []
        for layer in (vision.encoder if hasattr(vision, "encoder") else vision.transformer).layers:
            layer.register_forward_hook(
                lambda _, args, output, made=made: made.append(weakref.ref(output))
            )

        def count(made=made):
            return sum(each() is not None for each in made)

        projector = adapter.model.model.multi_modal_projector
        projector.register_forward_pre_hook(
            lambda *_, alive=alive, count=count: alive.append(count())
        )
        tokens = adapter.encode_many([adapter.prepare([picture(1, 150, 60)], "?")], signals=False)
        assert alive == [states], name
        gc.collect()
        assert count() == 0 and len(tokens[0]) > 0
        assert not any(
            tokens[0].signals.offers(signal) for signal in (*SIGNALS, "blocks", "project")
        )


def test_the_model_is_as_before_also_when_a_run_fails(family):
    """The library's `generate` is bit-equal before and after; no hook and no attribute stays."""
    inputs = library_inputs(family, [picture(4, 100, 80)])

    def state() -> list:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in family.model.modules()]
        return [hooks, [sorted(module.__dict__) for module in family.model.modules()]]

    want = library_logits(family, **inputs)
    before, batch = state(), asked(family)[:1]
    with torch.inference_mode():
        tokens = family.encode_many(batch)
    assert state() == before

    def broken(*_):
        raise FloatingPointError("on purpose")

    embeddings = family.model.get_input_embeddings().register_forward_pre_hook(broken)
    with pytest.raises(FloatingPointError), torch.inference_mode():
        family.encode_many(batch)
    embeddings.remove()
    for layer in family.tower().layers[:1]:
        hook = layer.register_forward_pre_hook(broken)
        with pytest.raises(FloatingPointError), torch.inference_mode():
            family.encode_many(batch)
        hook.remove()
    assert state() == before
    assert torch.equal(library_logits(family, **inputs), want)
    with torch.inference_mode():
        assert torch.equal(family.encode_many(batch)[0].embeds, tokens[0].embeds)


@torch.inference_mode()
def test_a_tower_batch_takes_no_more_crops_than_it_may(family, monkeypatch):
    from trimtok_cli.models import adapter as adapter_module

    batch = [*asked(family), family.prepare([], "?"), *asked(family)]
    want = family.encode_many(batch)
    seen: list[int] = []

    def counted(model, ids, media):
        seen.append(len(ids))
        return run_tower(model, ids, media)

    monkeypatch.setattr(adapter_module, "run_tower", counted)
    monkeypatch.setattr(family, "crops_per_batch", 0.0, raising=False)
    found = family.encode_many(batch)
    assert seen == [len(tokens) for tokens in want if len(tokens)]
    for one, other in zip(found, want, strict=True):
        assert one.embeds.shape == other.embeds.shape
        assert not len(one) or (one.embeds - other.embeds).abs().max() < 1e-4
        for name in ("saliency", "last_keys", "features", "cls"):
            if one.signals.offers(name):
                assert (
                    getattr(one.signals, name) - getattr(other.signals, name)
                ).abs().max() < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("family", sorted(VIDEO_FAMILIES - LACKING), indirect=True)
def test_signals_of_a_prompt_with_an_image_and_a_video_are_each_ones_own(family):
    """They equal those of the image and of the video alone, in any order and any batch."""
    assert family.preprocessor.has_video and family.preprocessor.mixes
    clips = [clip_of(2), clip_of(2, 50, 50)]
    for words in ("?", "<video> and then <image>"):
        batch = [
            family.prepare([picture(i, 100, 80)], words, clip=clip) for i, clip in enumerate(clips)
        ]
        together = family.encode_many(batch)
        assert len(together) == 2
        for i, tokens in enumerate(together):
            alone = [
                family.prepare([picture(i, 100, 80)], "?"),
                family.prepare([], "?", clip=clips[i]),
            ]
            image, video = family.encode_many([alone[0]])[0], family.encode_many([alone[1]])[0]
            order = (image, video) if words == "?" else (video, image)
            offered = [name for name in SIGNALS if tokens.signals.offers(name)]
            assert "saliency" in offered
            for name in offered:
                want = torch.cat([getattr(each.signals, name) for each in order if len(each)])
                assert (getattr(tokens.signals, name) - want).abs().max() < 1e-4, name


def test_samples_of_one_shape_fill_tower_batches_in_their_order():
    def sample(*shape: int, name: str = "pixel_values") -> dict[str, torch.Tensor]:
        return {name: torch.empty(shape, device="meta")}

    side = 336
    one, three, other = (
        sample(1, 3, side, side),
        sample(3, 3, side, side),
        sample(1, 3, side, 2 * side),
    )
    assert one["pixel_values"].numel() == CROP
    assert batch_by_shape([one, three, {}, one, other, one, one], 0, 4) == [[0, 1], [3, 5, 6], [4]]
    assert batch_by_shape([three, three, one], 0, 2) == [[0], [1], [2]], "a larger sample is alone"
    assert (
        batch_by_shape([one, one], 0, float("inf")) == [[0, 1]] and batch_by_shape([], 0, 4) == []
    )
    assert batch_by_shape([one | sample(1, 9, name="image_sizes"), one], 0, 4) == [[0], [1]]
    tiled = [sample(1, tiles, 3, side, side) for tiles in (2, 5, 3)]
    assert (
        batch_by_shape(tiled, 1, 64) == [[0, 1, 2]]
        and batch_by_shape(tiled, 0, 64) == [[0], [1], [2]]
        and batch_by_shape(tiled, 1, 7) == [[0, 1], [2]]
    )
