"""The methods' published settings can be asked for exactly: each table, by the parameters that say
it.
"""

from dataclasses import replace

import pytest
import torch

from tests.conftest import picture
from tests.pruners.test_fastv import advanced, stage_of
from tests.pruners.test_prumerge import stage_with_last
from tests.pruners.test_visionzip import stage_of as tower_stage
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.errors import UsageError
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.pyramiddrop import ratio_counts
from trimtok_cli.pruners.methods.tome import parse_r
from trimtok_cli.pruners.methods.vispruner import published_share, vispruner
from trimtok_cli.pruners.registry import build_pruner


def left_behind(method, params, *, sizes=(576,), num_layers=32) -> dict[int, list[int]]:
    """Visual tokens of each image behind every stage of a decoder."""
    pruner, found = build_pruner(method, params), {}
    layers = pruner.stages(num_layers)
    stage = stage_of(sizes, layer=layers[0])
    for place, layer in enumerate(layers):
        stage = Stage(layer, stage.hidden, stage.prompt, stage.tokens, stage.attention, num_layers)
        selection = pruner.select(stage)
        following = layers[place + 1] if place + 1 < len(layers) else num_layers
        stage = advanced(stage, selection, following)
        added = 0 if selection.extra is None else len(selection.extra)
        found[layer] = (
            [len(rows) for rows in stage.images()] if not added else [len(selection.kept), added]
        )
    return found


def test_divprune():
    for ratio, count in (("9.8%", 56), ("33.33%", 192), ("22.22%", 128), ("11.11%", 64)):
        assert build_pruner("divprune", {"keep": ratio}).keep.count(576) == count
    for ratio, count in (("22.22%", 640), ("11.11%", 320), ("5.56%", 160)):
        assert build_pruner("divprune", {"keep": ratio}).keep.count(2880) == count


@pytest.mark.parametrize(
    ("keep", "dominant", "contextual"),
    [(192, 162, 30), (128, 108, 20), (64, 54, 10), (32, 27, 5), (221, 191, 30)],
)
def test_visionzip_splits_a_budget_as_published(keep, dominant, contextual):
    assert build_pruner("visionzip", {"keep": keep, "contextual": contextual}).split(keep) == (
        dominant,
        contextual,
    )
    assert keep == 221 or build_pruner("visionzip", {"keep": keep}).split(keep) == (
        dominant,
        contextual,
    )


@pytest.mark.parametrize(
    ("layer", "keep", "kept"),
    [(2, "50%", 288), (3, "50%", 288), (3, "25%", 144), (2, 72, 72), (2, 432, 432)],
)
def test_fastv_k_and_r(layer, keep, kept):
    assert left_behind("fastv", {"keep": keep, "layer": layer}) == {layer: [kept]}


@pytest.mark.parametrize(("mean", "kept"), [(192, 166), (128, 98), (64, 30)])
def test_fastv_by_the_mean_over_layers(mean, kept):
    assert left_behind("fastv", {"keep": mean, "counts": "layer-mean"}) == {2: [kept]}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (192, ([300, 9], [200, 4], [110, 3])),
        (128, ([303, 9], [110, 7], [36, 3])),
        (96, ([238, 11], [48, 7], [26, 1])),
        (64, ([66, 16], [30, 2], [17, 1])),
    ],
)
@pytest.mark.parametrize("layers", [None, [3, 7, 16]])
def test_sparsevlm_lists(keep, kept, layers):
    found = left_behind("sparsevlm", {"keep": keep, "counts": "layer-mean", "layers": layers})
    assert found == dict(zip((3, 7, 16), kept, strict=True))


def test_sparsevlm_at_its_own_layers_whatever_the_depth():
    assert build_pruner("sparsevlm", {"keep": 64, "layers": [3, 7, 16]}).stages(40) == (3, 7, 16)
    with pytest.raises(
        UsageError,
        match=r"sparsevlm: layers=\[3, 7, 16\] is behind the model's last layer, it has 16",
    ):
        build_pruner("sparsevlm", {"keep": 64, "layers": [3, 7, 16]}).stages(16)


@pytest.mark.parametrize("layers", [None, [8, 16, 24]])
def test_pyramiddrop_ranks(layers):
    params = {"keep": 1, "ratios": [0.5, 0.25, 0.125], "layers": layers}
    assert left_behind("pyramiddrop", params) == {8: [288], 16: [144], 24: [72]}
    assert left_behind("pyramiddrop", params, sizes=(577, 30, 1)) == {
        8: [288, 15, 1],
        16: [144, 7, 1],
        24: [72, 3, 1],
    }


def test_pyramiddrop_by_the_authors_lambda():
    powers = [0.19, 0.19**2, 0.19**3]
    assert left_behind("pyramiddrop", {"keep": 1, "ratios": powers, "layers": [2, 8, 16]}) == {
        2: [109],
        8: [20],
        16: [3],
    }
    assert left_behind("pyramiddrop", {"keep": 64, "counts": "layer-mean"}) == {
        2: [109],
        8: [20],
        16: [3],
    }
    assert ratio_counts(100, [0.29, 0.07]) == (29, 7), (
        "although the float products are a hair below"
    )


def test_pyramiddrop_at_other_depths_and_with_layers_alone():
    assert build_pruner("pyramiddrop", {"keep": 1, "ratios": [0.5, 0.25, 0.125]}).stages(40) == (
        10,
        20,
        30,
    )
    assert left_behind("pyramiddrop", {"keep": 1, "ratios": [0.5, 0.25, 0.125]}, num_layers=3) == {
        1: [144],
        2: [72],
    }
    assert left_behind("pyramiddrop", {"keep": 144, "layers": [4, 9]}) == {4: [288], 9: [144]}
    with pytest.raises(UsageError, match=r"layers=\[8, 16, 24\] is behind"):
        build_pruner("pyramiddrop", {"keep": 9, "layers": [8, 16, 24]}).stages(24)
    for wrong, says in (
        ({"layers": [3]}, "as many as layers"),
        ({"counts": "layer-mean"}, "give one of the two"),
    ):
        with pytest.raises(UsageError, match=says):
            build_pruner("pyramiddrop", {"keep": 9, "ratios": [0.5, 0.25, 0.125], **wrong})


def test_vtw_layer():
    assert build_pruner("vtw", {"keep": 1, "layer": 16}).stages(32) == (16,)
    assert build_pruner("vtw", {"keep": 1}).stages(32) == (15,)


def test_vispruner_takes_the_published_share_by_attention():
    shares = {keep: published_share(keep, 576, tiled=False) for keep in (192, 128, 64)}
    assert shares == {192: 0.5, 128: 0.5, 64: 0.75}
    assert [published_share(keep, 576, tiled=True) for keep in (128, 64, 32)] == [0.5, 0.5, 0.5]
    stage = tower_stage([576])
    saliency, features = stage.tokens.signals.saliency, stage.tokens.signals.features
    for keep, share in shares.items():
        got = build_pruner("vispruner", {"keep": keep}).select(stage).kept
        assert got.tolist() == vispruner(saliency, features, keep, important=share).tolist()
    asked = build_pruner("vispruner", {"keep": 64, "important": 0.5}).select(stage).kept
    assert asked.tolist() == vispruner(saliency, features, 64, important=0.5).tolist()


@torch.inference_mode()
def test_tome_r_in_every_layer(tmp_path):
    """LightCompress's 16 in 23 layers leaves 208 of 576, as a budget of 208 does; a list and a
    slope are the library's `parse_r`.
    """
    from trimtok_cli.pruners.methods.tome import r_schedule

    assert parse_r(23, 16) == r_schedule(576, 208, 23)
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    inputs = adapter.prepare([picture(3)], "?")
    tokens = adapter.encode_many([inputs])[0]
    stage = Stage(0, (prompt := adapter.embed(inputs, tokens)).embeds, prompt, tokens)
    as_budget = build_pruner("tome", {"keep": 20}).select(stage)  # two layers: 36 patches, 8 and 8
    for r, left in ((8, 20), ([8, 8], 20), ([5], 31), ([3, 4, 99], 29), (0, 36)):
        found = build_pruner("tome", {"keep": 1, "r": r}).select(stage)
        assert len(found.kept) == left
        if left == 20:
            assert torch.equal(found.kept, as_budget.kept) and torch.equal(
                found.embeds, as_budget.embeds
            )
    for inflect, rs in ((1, [0, 8]), (-1, [8, 0]), (0.5, [2, 6])):
        found = build_pruner("tome", {"keep": 1, "r": 4, "inflect": inflect}).select(stage)
        assert parse_r(2, (4, inflect)) == rs and len(found.kept) == 36 - sum(rs)


@torch.inference_mode()
def test_prumerge_as_many_as_there_are_outliers(tmp_path):
    from trimtok_cli.pruners.methods.prumerge import adaptive_indices

    stage = stage_with_last([144])
    for plus in (True, False):
        found = build_pruner("prumerge", {"keep": "99%", "adaptive": True, "plus": plus}).select(
            stage
        )
        want = adaptive_indices(stage.tokens.signals.last_saliency, plus=plus)
        assert found.kept.tolist() == sorted(want.tolist()) and len(found.extra) == 1


@torch.inference_mode()
@pytest.mark.parametrize("text", ["clip", "llm"])
def test_cdpruner_gives_each_tile_its_share_and_scales_relevance_over_all_of_them(tmp_path, text):
    from trimtok_cli.pruners.methods.cdpruner import cdpruner, scaled_relevance, text_similarity

    adapter = load_model(str(FAMILIES["llava_next"](tmp_path / "m")), device="cpu")
    pruner = build_pruner("cdpruner", {"keep": 30, "text": text, "tiles": True})
    inputs = adapter.prepare([picture(4, 300, 300)], "What?")
    tokens = adapter.encode_many([inputs], signals=pruner.reads_tower)[0]
    similarity = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1))
    tokens = replace(tokens, signals=tokens.signals.offering(relevance=lambda: similarity))
    stage = Stage(0, (prompt := adapter.embed(inputs, tokens)).embeds, prompt, tokens)
    tile = tokens.signals.tile
    shown, number = (tile >= 0).nonzero()[:, 0], tile.unique()[1:]
    assert len(number) == 5 and (tile < 0).any(), "a base tile, four others, and newlines"
    if text == "llm":
        similarity = text_similarity(stage.visual_embeds[None], stage.text()[None])[0]
    relevance = torch.zeros(len(tokens))
    relevance[shown] = scaled_relevance(similarity[None, shown], negate=text == "clip")[0]
    want = []
    for each in number.tolist():
        rows = (tile == each).nonzero()[:, 0]
        assert len(rows) == 16
        want += rows[cdpruner(stage.visual_embeds[rows], relevance[rows], 6)].tolist()
    assert pruner.select(stage).kept.tolist() == sorted(want)
    whole = build_pruner("cdpruner", {"keep": 30, "text": text}).select(stage).kept
    assert len(whole) == 30 and whole.tolist() != sorted(want)


def test_cdpruner_reads_the_question_without_how_to_answer_it():
    """The published evaluation's rule, on what CLIP's tokenizer is given."""
    from types import SimpleNamespace

    from trimtok_cli.models.vision.clip_text import SHORT_ANSWER, ClipText

    seen = []

    def tokenizer(words, **_):
        seen.append(words)
        return SimpleNamespace(input_ids=[1, 2, 3])

    class Clip(torch.nn.Module):
        visual_projection = torch.nn.Identity()
        vision_model = SimpleNamespace(post_layernorm=torch.nn.Identity())

        def get_text_features(self, segments):
            return torch.ones(len(segments), 4)

    reader = ClipText.__new__(ClipText)
    reader.clip, reader.tokenizer, reader.width = Clip(), tokenizer, 4
    for words in (
        f"What is it?\n{SHORT_ANSWER}",
        f"What is it? {SHORT_ANSWER} \n",
        "What is it?",
        SHORT_ANSWER,
        f"{SHORT_ANSWER} Why?",
    ):
        reader.relevance(torch.ones(5, 4), words)
    assert seen == [
        "What is it?",
        "What is it?",
        "What is it?",
        SHORT_ANSWER,
        f"{SHORT_ANSWER} Why?",
    ]


@pytest.mark.parametrize(
    ("method", "params"),
    [("pyramiddrop", {"ratios": [0.5, 0.25, 0.125]}), ("tome", {"r": 16}), ("vtw", {"layer": 15})],
)
def test_settings_that_leave_keep_no_say_hold_also_where_keep_is_all(method, params):
    assert build_pruner(method, {"keep": "all"}) is None
    assert build_pruner(method, {"keep": "all", **params}) is not None


def test_bad_parameters_are_refused_also_where_keep_is_all():
    with pytest.raises(UsageError, match="pool is a share"):
        build_pruner("trimtokenator", {"keep": "all", "pool": 7})


def test_trimtokenator_defaults_are_the_papers():
    pruner = build_pruner("trimtokenator", {"keep": 64})
    assert (pruner.pool, pruner.align, pruner.diversity, pruner.order) == (
        0.8,
        "l2",
        "cosine",
        "align-first",
    )
    assert pruner.keep == Budget(tokens=64)
