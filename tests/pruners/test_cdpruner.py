"""CDPruner against the published code's own answers, and against determinants written out
in float64.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pruners.test_divprune import check_invariants, make_stage, samples, tokens
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.cdpruner import (
    CDPruner,
    cdpruner,
    greedy_map_order,
    scaled_relevance,
    text_similarity,
)
from trimtok_cli.tokens import TowerSignals

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("cdpruner_*.npz"))


def reference(visual: np.ndarray, relevance: np.ndarray, keep: int) -> list[int]:
    """d2 by Schur complement from scratch at every step; ties and spent tokens as
    `greedy_map_order` states them.
    """
    x, r = visual.astype(np.float64), relevance.astype(np.float64)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.where(size > 0, x / np.where(size > 0, size, 1), 0)
    k = r[:, None] * (unit @ unit.T) * r[None]
    order: list[int] = []
    basis: list[int] = []
    while len(order) < min(keep, len(x)):
        rest = [j for j in range(len(x)) if j not in order]
        d2 = np.diag(k).copy()
        if basis:
            d2 -= np.einsum(
                "ij,ij->j", k[basis], np.linalg.solve(k[np.ix_(basis, basis)], k[basis])
            )
        live = [j for j in rest if d2[j] > 1e-5 * r[j] ** 2]
        if live:
            best = max(live, key=lambda j: d2[j])
            order.append(
                min(j for j in live if d2[j] >= d2[best] - 1e-6 * max(d2[best], r[best] ** 2))
            )
            basis.append(order[-1])
        else:
            order += sorted(rest, key=lambda j: (-r[j].round(6), j))
    return order[:keep]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors_index_for_index(path):
    assert len(GOLDEN) == 6
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    visual, batch = data["image_features"], len(data["image_features"])
    similarity = text_similarity(data["image_embeds"], data["text_embeds"].expand(batch, -1, -1))
    relevance = scaled_relevance(similarity, over="batch")
    assert torch.allclose(relevance, data["relevance"], atol=1e-5)
    assert batch > 1 or torch.equal(relevance, scaled_relevance(similarity)), (
        "one image is its own batch"
    )
    orders = [name for name in data if name.startswith("order_")]
    assert len(orders) == (1 if batch == 3 else 4)
    for name in orders:
        keep = int(name.removeprefix("order_"))
        assert greedy_map_order(visual, relevance, keep).tolist() == data[name].tolist()
        assert cdpruner(visual, relevance, keep).tolist() == data[f"kept_{keep}"].tolist()


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize(
    ("n", "d", "keep"),
    [
        (1, 8, 1),
        (2, 8, 1),
        (5, 8, 5),
        (23, 48, 22),
        (40, 24, 20),
        (97, 24, 12),
        (144, 32, 64),
        (60, 12, 60),
    ],
)
def test_equals_the_reference_determinants(kind, n, d, keep):
    visual = tokens(kind, n, d, seed=n + keep)
    # Of equal tokens, equal relevance: a function of the token itself. 0.2 and up: d2 stays well
    # above float32's rounding.
    relevance = (
        0.2
        + 0.8 * scaled_relevance((visual[:, :3].sum(1) + visual[:, 3:5].square().sum(1))[None])[0]
    )
    want = reference(visual.numpy(), relevance.numpy(), keep)
    assert greedy_map_order(visual, relevance, keep).tolist() == want
    assert cdpruner(visual, relevance, keep).tolist() == sorted(want)


def test_past_the_rank_never_nan_never_twice():
    """N 144, width 32, T 64: the published code keeps 43 tokens of 64 there."""
    visual, relevance = (
        tokens("clustered", 144, 32, 0),
        torch.rand(144, generator=torch.Generator().manual_seed(0)),
    )
    order = greedy_map_order(visual, relevance, 144).tolist()
    assert sorted(order) == list(range(144))
    tail = relevance[order[32:]]
    assert (tail.diff() <= 0).all(), "what is left goes by relevance"
    for flat in (torch.ones(9, 4), torch.zeros(9, 4)):
        for weight in (torch.ones(9), torch.zeros(9)):
            assert greedy_map_order(flat, weight, 5).tolist() == [0, 1, 2, 3, 4]
    assert greedy_map_order(torch.ones(4, 3), torch.tensor([0.1, 0.9, 0.5, 0.9]), 4).tolist() == [
        1,
        3,
        2,
        0,
    ]


def test_near_equal_scores_tie_to_the_lowest_index():
    for above, want in ((2e-7, [0, 1, 2]), (1e-4, [1, 0, 2])):
        assert (
            greedy_map_order(torch.eye(3), torch.tensor([1.0, 1.0 + above, 0.5]), 3).tolist()
            == want
        )


@pytest.mark.parametrize("width", [64, 4096])
def test_doubles_come_last_at_any_width(width):
    visual = tokens("random", 40, width, 5).repeat(3, 1)
    order = greedy_map_order(visual, torch.ones(120), 100).tolist()
    assert sorted(order[:40]) == list(range(40)) and order[40:] == list(range(40, 100))


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batch_equals_singles(batch):
    kinds = ["random", "clustered", "duplicated"]
    visual = torch.stack([tokens(kinds[i % 3], 60, 16, i) for i in range(batch)])
    relevance = scaled_relevance(visual[..., 0] + visual[..., 1])
    together = greedy_map_order(visual, relevance, 30)
    assert together.shape == (batch, 30) and together.dtype == torch.int64
    for i in range(batch):
        assert together[i].tolist() == greedy_map_order(visual[i], relevance[i], 30).tolist()
        assert (
            cdpruner(visual, relevance, 30)[i].tolist()
            == cdpruner(visual[i], relevance[i], 30).tolist()
        )


def test_relevance_sign_span_and_scope():
    similarity = torch.tensor([[0.1, 0.3, 0.2], [0.5, 0.5, 0.5], [0.9, 0.1, 0.9]])
    assert torch.allclose(scaled_relevance(similarity)[0], torch.tensor([1, 0, 0.5]), atol=1e-4)
    assert torch.allclose(
        scaled_relevance(similarity, negate=False)[0], torch.tensor([0, 1, 0.5]), atol=1e-4
    )
    assert scaled_relevance(similarity)[1].tolist() == [1, 1, 1], (
        "no token is more relevant than another"
    )
    assert torch.allclose(
        scaled_relevance(similarity, over="batch")[1], torch.full((3,), 0.5), atol=1e-4
    )
    assert scaled_relevance(torch.tensor([[0.3]])).tolist() == [[1.0]]
    for wrong in (
        {"over": "tile"},
        {"similarity": torch.zeros(3)},
        {"similarity": torch.zeros(2, 0)},
    ):
        with pytest.raises(ValueError, match="must be"):
            scaled_relevance(**{"similarity": similarity} | wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_inside_whatever_comes_in(dtype):
    visual, relevance = tokens("clustered", 200, 32, 3).to(dtype), torch.rand(200).to(dtype)
    assert (
        cdpruner(visual, relevance, 20).tolist()
        == cdpruner(visual.float(), relevance.float(), 20).tolist()
    )


def test_keep_all_inputs_left_alone_and_nonsense_refused():
    visual, relevance = tokens("duplicated", 12, 8, 0), torch.rand(12)
    before = visual.clone(), relevance.clone()
    for keep in (12, 13, 1000):
        assert cdpruner(visual, relevance, keep).tolist() == list(range(12))
    cdpruner(visual, relevance, 5)
    assert torch.equal(visual, before[0]) and torch.equal(relevance, before[1])
    for wrong in (
        (visual, relevance, 0),
        (visual, relevance[:5], 2),
        (visual[0], relevance, 2),
        (visual[:0], relevance[:0], 2),
    ):
        for function in (cdpruner, greedy_map_order):
            with pytest.raises(ValueError, match="must be"):
                function(*wrong)
    for wrong in ({"text": "prompt"}, {"sign": "up"}):
        with pytest.raises(ValueError, match="must be one of"):
            CDPruner(**wrong)


def test_no_value_leaves_the_device_in_the_loop():
    """On meta tensors nothing can be read back: a hidden .item() or a data-dependent shape would
    raise.
    """
    out = cdpruner(torch.empty(2, 50, 8, device="meta"), torch.empty(2, 50, device="meta"), 10)
    assert out.shape == (2, 10) and out.device.type == "meta"


def with_clip(images: list[torch.Tensor], seed: int):
    similarity = torch.rand(sum(map(len, images)), generator=torch.Generator().manual_seed(seed))
    return make_stage(images, TowerSignals(relevance=lambda: similarity), seed), similarity


def test_the_pruner_keeps_what_every_pruner_owes():
    check_invariants(
        lambda keep: CDPruner(keep), [with_clip(images, i)[0] for i, images in enumerate(samples())]
    )
    plain = [make_stage(images, seed=i) for i, images in enumerate(samples())]
    check_invariants(lambda keep: CDPruner(keep, text="llm"), plain)


def test_the_pruner_is_the_function_image_by_image():
    a, b = tokens("clustered", 40, 16, 1), tokens("random", 25, 16, 2)
    stage, similarity = with_clip([a, b], 3)
    for sign, negate in (("auto", True), ("negative", True), ("positive", False)):
        first = cdpruner(a, scaled_relevance(similarity[None, :40], negate=negate)[0], 6)
        second = 40 + cdpruner(b, scaled_relevance(similarity[None, 40:], negate=negate)[0], 6)
        want = [*first.tolist(), *second.tolist()]
        assert CDPruner(Budget(tokens=6), sign=sign).select(stage).kept.tolist() == want
    text = stage.text()
    want = []
    for at, image in ((0, a), (40, b)):
        near = torch.cosine_similarity(image[:, None], text[None], dim=-1).mean(1)
        want += (at + cdpruner(image, scaled_relevance(near[None], negate=False)[0], 6)).tolist()
    assert CDPruner(Budget(tokens=6), text="llm").select(stage).kept.tolist() == want


def test_relevance_is_found_by_the_dense_numbers():
    visual = tokens("clustered", 30, 16, 1)
    stage, similarity = with_clip([visual], 3)
    alive = torch.arange(3, 30, 2)
    later = replace(
        stage, prompt=replace(stage.prompt, visual=stage.prompt.visual[alive], alive=alive)
    )
    want = cdpruner(visual[alive], scaled_relevance(similarity[None, alive])[0], 6)
    assert CDPruner(Budget(tokens=6)).select(later).kept.tolist() == want.tolist()


def test_without_clip_s_text_tower_it_says_what_to_do():
    stage = make_stage([tokens("random", 9, 8, 0)])
    with pytest.raises(UsageError, match=r"cdpruner .* text tower, .*--param text=llm"):
        CDPruner(Budget(tokens=3)).select(stage)
    assert len(CDPruner(Budget(tokens=3), text="llm").select(stage).kept) == 3
    calls = []
    lazy = make_stage(
        [tokens("random", 9, 8, 0)],
        TowerSignals(relevance=lambda: calls.append(1) or torch.rand(9)),
    )
    CDPruner(Budget(tokens=3), text="llm").select(lazy)
    assert not calls, "CLIP's relevance costs nothing where it is not asked for"


@torch.inference_mode()
def test_relevance_by_a_clip_text_tower_and_the_flag_that_names_it(
    llava_folder, pictures, tmp_path
):
    """A tiny CLIP of the tower's width: cosine of post-normalized, projected patches with the
    question, written out; then the CLI.
    """
    from transformers import CLIPModel

    from tests.commands.test_cli import run
    from tests.conftest import picture
    from tests.support import tiny
    from trimtok_cli.errors import ModelError, UsageError
    from trimtok_cli.models.loading import load_model

    clip = CLIPModel.from_pretrained(tiny.clip(tmp_path / "clip")).eval()
    words = tiny.tokenizer()
    tiny.clip(tmp_path / "wide", width=64)
    adapter = load_model(str(llava_folder), device="cpu", clip_text=str(tmp_path / "clip"))
    for question in ("Why?", "Why? " * 40):
        tokens = adapter.encode_many([adapter.prepare([picture(1)], question)])[0]
        patches = clip.visual_projection(clip.vision_model.post_layernorm(tokens.signals.features))
        ids = words(question.strip()).input_ids
        said = []
        for at in range(0, len(ids), 77):
            part = ids[at : at + 77] + [0] * (77 - len(ids[at : at + 77]))
            found = clip.get_text_features(torch.tensor([part]))
            said.append(getattr(found, "pooler_output", found)[0])
        want = torch.stack(
            [torch.cosine_similarity(patches, each[None], dim=-1) for each in said]
        ).mean(0)
        assert (tokens.signals.relevance - want).abs().max() < 1e-5
    run(
        "caption",
        pictures[0],
        "-m",
        llava_folder,
        "--method",
        "cdpruner",
        "--clip-text",
        tmp_path / "clip",
        "--keep",
        5,
        "--max-new-tokens",
        2,
        "-o",
        "o.jsonl",
    )
    other = load_model(str(llava_folder), device="cpu", clip_text=str(tmp_path / "wide"))
    tokens = other.encode_many([other.prepare([picture(1)], "Why?")])[0]
    with pytest.raises(ModelError, match="both must be the same CLIP"):
        _ = tokens.signals.relevance
    with pytest.raises(UsageError, match="--clip-text"):
        load_model(str(llava_folder), device="cpu", clip_text="nowhere")
