"""Tower signals against the library's own eager attention, and by painting, in every family."""

import pytest
import torch

from tests.conftest import picture
from tests.oracles.test_families import painted
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.models.loading import load_model

OFFERS = ("saliency", "keys", "last_saliency", "last_keys", "features", "project")


@pytest.fixture(scope="module", params=["llava", "siglip", *FAMILIES])
def family(request, tmp_path_factory):
    build = {"llava": tiny.llava, "siglip": tiny.siglip, **FAMILIES}[request.param]
    return load_model(str(build(tmp_path_factory.mktemp("signals") / request.param)), device="cpu")


@torch.inference_mode()
def test_signals_have_a_row_for_every_visual_token_and_lie_where_the_pixels_came_from(family):
    size = (240, 200)
    plain = picture(5, *size)
    base = family.encode_many(
        [family.prepare([picture(1, 80, 90), plain], "?"), family.prepare([plain], "?")]
    )[1]
    count = len(base)
    assert base.signals.saliency.shape == (count,) and len(base.signals.keys) == count
    nowhere = (base.box == 0).all(-1)
    assert (
        bool((base.signals.saliency[~nowhere] > 0).all())
        and not base.signals.saliency[nowhere].any()
    )
    for x, y in ((0.2, 0.25), (0.7, 0.4), (0.45, 0.8)):
        changed = family.encode_many([family.prepare([painted(plain, x, y)], "?")])[0]
        moved = (changed.signals.keys - base.signals.keys).norm(dim=-1)
        x0, y0, x1, y1 = base.box[moved.argmax()].tolist()
        assert x0 - 0.1 <= x <= x1 + 0.1 and y0 - 0.1 <= y <= y1 + 0.1, (x, y, (x0, y0, x1, y1))


# Families whose visual tokens are one token of the tower each.
ONE_TO_ONE = ["llava", "siglip", "llava_next", "llava_next_video", "llava_onevision"]


@torch.inference_mode()
def test_a_tower_has_features_of_tokens_where_they_are_one_to_one(family, request):
    tokens = family.encode_many([family.prepare([picture(1, 150, 60)], "?")])[0]
    assert tokens.signals.offers("features") == (
        request.node.callspec.params["family"] in ONE_TO_ONE
    )


@torch.inference_mode()
@pytest.mark.parametrize("family", ONE_TO_ONE, indirect=True)
def test_features_projected_are_the_visual_tokens(family):
    tokens = family.encode_many([family.prepare([picture(1, 150, 60)], "?")])[0]
    assert tokens.signals.offers("features") and tokens.signals.offers("project")
    shown = ~(tokens.box == 0).all(-1)
    assert (
        tokens.signals.project(tokens.signals.features)[shown] - tokens.embeds[shown]
    ).abs().max() < 1e-4


@torch.inference_mode()
def test_no_signal_is_computed_before_it_is_read(family, monkeypatch):
    from trimtok_cli.models.vision import tower_signals

    calls = []
    monkeypatch.setattr(tower_signals, "queries_and_keys", lambda *a, **k: calls.append(1) or 1 / 0)
    tokens = family.encode_many([family.prepare([picture(1)], "?")])[0]
    assert not calls and tokens.signals.offers("saliency")
    with pytest.raises(ZeroDivisionError):
        _ = tokens.signals.keys


@torch.inference_mode()
@pytest.mark.parametrize(("build", "cls"), [(tiny.llava, True), (tiny.siglip, False)])
def test_saliency_equals_the_librarys_eager_attention(build, cls, tmp_path):
    adapter = load_model(str(build(tmp_path / "m")), device="cpu")
    inputs = [adapter.prepare([picture(1), picture(2)], "?"), adapter.prepare([picture(3)], "?")]
    tokens = adapter.encode_many(inputs)
    vision = adapter.model.model.vision_tower
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    pixels = adapter.tower_inputs(inputs)["pixel_values"]
    attentions = vision(pixels, output_attentions=True).attentions
    found = attentions[-2 if cls else -1].mean(1)
    want = found[:, 0, 1:] if cls else found.mean(1)
    assert (
        torch.cat([each.signals.saliency for each in tokens]) - want.flatten()
    ).abs().max() < 1e-6
    # The last layer's heads as one: PruMerge's definition, written out.
    layer = vision.encoder.layers[-1]
    normed = layer.layer_norm1(vision(pixels, output_hidden_states=True).hidden_states[-2])
    query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    found = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    want = found[:, 0, 1:] if cls else found.mean(1)
    assert (
        torch.cat([each.signals.last_saliency for each in tokens]) - want.flatten()
    ).abs().max() < 1e-6
    assert (
        torch.cat([each.signals.last_keys for each in tokens]) - key[:, cls:].flatten(0, 1)
    ).abs().max() < 1e-5


@torch.inference_mode()
def test_a_towers_layers_run_by_halves_give_its_features(tmp_path):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    tokens = adapter.encode_many(
        [adapter.prepare([picture(9)], "?"), adapter.prepare([picture(1), picture(2)], "?")]
    )[1]
    blocks = tokens.signals.blocks
    hidden = blocks.hidden
    for number in range(len(blocks.layers)):
        hidden, keys = blocks.attend(number, hidden)
        hidden = blocks.feed(number, hidden)
    assert (hidden[:, 1:].flatten(0, 1) - tokens.signals.features).abs().max() < 1e-5
    assert (keys[:, 1:].flatten(0, 1) - tokens.signals.keys).abs().max() < 1e-5
    assert (hidden[:, 0] - tokens.signals.cls).abs().max() < 1e-5


@torch.inference_mode()
def test_visionzip_with_cls_adds_it_within_the_budget(tmp_path):
    """As published: CLS is one of the 54 dominant tokens, projected like the others."""
    from trimtok_cli.pruners.base import Stage
    from trimtok_cli.pruners.registry import build_pruner

    for build in (tiny.llava, FAMILIES["llava_next"]):
        adapter = load_model(str(build(tmp_path / build.__name__)), device="cpu")
        tokens = adapter.encode_many(
            [adapter.prepare([picture(9)], "?"), adapter.prepare([picture(1), picture(2)], "?")]
        )[1]
        prompt = adapter.embed(adapter.prepare([picture(1), picture(2)], "?"), tokens)
        found = build_pruner("visionzip", {"keep": 10, "cls": True}).select(
            Stage(0, prompt.embeds, prompt, tokens)
        )
        assert len(found.kept) + len(found.extra) == 20
        if build is tiny.llava:
            assert (found.extra - adapter.project(tokens.signals.cls)).abs().max() < 1e-4


@torch.inference_mode()
def test_visionzip_and_vispruner_give_every_tile_its_share(tmp_path):
    """On LLaVA-NeXT: the method's pure function on each tile's own signals, budgets by size."""
    from trimtok_cli.pruners.base import Stage
    from trimtok_cli.pruners.budget import share_out
    from trimtok_cli.pruners.methods.visionzip import visionzip
    from trimtok_cli.pruners.methods.vispruner import vispruner
    from trimtok_cli.pruners.registry import build_pruner

    adapter = load_model(str(FAMILIES["llava_next"](tmp_path / "m")), device="cpu")
    inputs = adapter.prepare([picture(4, 300, 300)], "?")
    tokens = adapter.encode_many([inputs])[0]
    prompt, encoder = adapter.embed(inputs, tokens), tokens.signals
    shown = (tokens.box != 0).any(-1).nonzero()[:, 0]
    middle = (tokens.box[:, :2] + tokens.box[:, 2:])[shown] / 2
    quarter = torch.where(
        shown < 16, -1, (middle[:, 1] > 0.5).int() * 2 + (middle[:, 0] > 0.5).int()
    )
    groups = [shown[quarter == number] for number in range(-1, 4)]
    assert [len(group) for group in groups] == [16] * 5
    shares = share_out(30, [16] * 5, [16] * 5)
    for method, pick in (
        (
            "vispruner",
            lambda rows, n: rows[
                vispruner(encoder.saliency[rows], encoder.features[rows], n)
            ].tolist(),
        ),
        (
            "visionzip",
            lambda rows, n: [
                rows[i].tolist()
                for i in visionzip(
                    encoder.saliency[rows], encoder.keys[rows], encoder.features[rows], n - 1, 1
                )[:2]
            ],
        ),
    ):
        found = build_pruner(method, {"keep": 30}).select(Stage(0, prompt.embeds, prompt, tokens))
        want = [pick(rows, n) for rows, n in zip(groups, shares, strict=True)]
        flat = [
            place
            for each in want
            for part in each
            for place in (part if isinstance(part, list) else [part])
        ]
        assert found.kept.tolist() == sorted(flat), method
