"""DivPrune and DivPrune* against the published code's own answers, and against the search written
out in float64.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.kernels.alignment import alignment
from trimtok_cli.pruners.methods.divprune import (
    DivPrune,
    DivPruneStar,
    divprune,
    divprune_star,
    max_min_order,
)
from trimtok_cli.tokens import Prompt, TowerSignals, VisualTokens

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("divprune_*.npz"))


def tokens(kind: str, n: int, d: int, seed: int) -> torch.Tensor:
    """Random, clustered, or with most tokens more than once and three of length zero."""
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randn(n, d, generator=g)
    centers = torch.randn(7, d, generator=g)
    visual = (
        centers[torch.randint(7, (n,), generator=g)] + 0.6 * torch.randn(n, d, generator=g) + 0.3
    )
    if kind == "duplicated":
        visual = visual[torch.randint(max(n // 2, 1), (n,), generator=g)]
        visual[n // 3 : n // 3 + 3] = 0
    return visual


def make_stage(
    visuals: list[torch.Tensor], encoder: TowerSignals | None = None, seed: int = 0
) -> Stage:
    """Text, then each image's tokens with one row of text behind it, then four rows of instruction
    and one more.
    """
    g = torch.Generator().manual_seed(1000 + seed)
    d = visuals[0].shape[1]

    def words(n):
        return torch.randn(n, d, generator=g).to(visuals[0].dtype)

    parts, at, visual = [words(3)], 3, []
    for image in visuals:
        parts += [image, words(1)]
        visual.append(torch.arange(at, at + len(image)))
        at += len(image) + 1
    embeds = torch.cat([*parts, words(5)])
    owner = torch.cat([torch.full((len(image),), number) for number, image in enumerate(visuals)])
    dense = VisualTokens(
        torch.cat(visuals), owner, torch.zeros(len(owner), 4), signals=encoder or TowerSignals()
    )
    places = torch.arange(len(embeds))
    prompt = Prompt(
        embeds, places, torch.cat(visual), torch.arange(len(owner)), torch.arange(at, at + 4)
    )
    return Stage(0, embeds, prompt, dense)


def check_invariants(pruner_of, stages: list[Stage]) -> None:
    """What every pruner owes: `pruner_of(budget)` makes it, `stages` are samples with one or more
    images.
    """
    for keep in (
        Budget(tokens=1),
        Budget(tokens=5),
        Budget(share=0.3),
        Budget(tokens=10**6),
        Budget(),
    ):
        pruner: Pruner = pruner_of(keep)
        before, state = [stage.hidden.clone() for stage in stages], dict(vars(pruner))
        together = pruner.select_many(stages)
        for stage, selection in zip(stages, together, strict=True):
            kept = selection.kept
            assert kept.dtype == torch.int64 and kept.tolist() == sorted(set(kept.tolist()))
            for rows in stage.images():
                assert torch.isin(kept, rows).sum() == keep.count(len(rows))
            assert (len(kept) == 0) or (kept[0] >= 0 and kept[-1] < len(stage.tokens))
            assert torch.equal(kept, pruner.select(stage).kept), (
                "a batch equals singles, and the second time equals the first"
            )
        assert vars(pruner) == state and all(
            torch.equal(a, s.hidden) for a, s in zip(before, stages, strict=True)
        )


def samples() -> list[list[torch.Tensor]]:
    """Prompts of one and of more images: one token, tokens alike, doubles and zeros, 16-bit."""
    one, many = tokens("clustered", 1, 16, 0), tokens("duplicated", 40, 16, 1)
    alike, mixed = torch.ones(9, 16), tokens("clustered", 40, 16, 2)
    return [
        [one],
        [many],
        [mixed, many],
        [many, alike, one],
        [torch.zeros(6, 16)],
        [mixed.bfloat16()],
        [mixed[:, :16], mixed],
    ]


def reference(visual: np.ndarray, keep: int) -> list[int]:
    """Farthest-point search, loop by loop; distances less than 1e-6 apart are a tie, which goes to
    the lowest index.
    """
    x = visual.astype(np.float64)
    size = np.linalg.norm(x, axis=1)
    n = len(x)
    d = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if size[i] == 0 or size[j] == 0:
                d[i, j] = 0.0 if size[i] == size[j] else 1.0
            else:
                d[i, j] = 1 - x[i] @ x[j] / (size[i] * size[j])
    order: list[int] = []
    while len(order) < min(keep, n):
        rest = [j for j in range(n) if j not in order]
        far = {j: min((d[i, j] for i in (order or range(n)) if i != j), default=0.0) for j in rest}
        order.append(min(j for j in rest if far[j] >= max(far.values()) - 1e-6))
    return order


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors_index_for_index(path):
    assert len(GOLDEN) == 4
    data = np.load(path)
    visual = torch.from_numpy(data["features"])
    orders = [name for name in data.files if name.startswith("order_")]
    assert len(orders) == 4
    for name in orders:
        keep = int(name.removeprefix("order_"))
        assert Budget(share=float(data[f"ratio_{keep}"])).count(len(visual)) == keep
        assert max_min_order(visual, keep).tolist() == data[name].tolist()
        assert divprune(visual, keep).tolist() == data[f"kept_{keep}"].tolist()


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize(
    ("n", "keep"), [(1, 1), (2, 1), (3, 2), (5, 5), (23, 22), (40, 33), (97, 12), (144, 16)]
)
def test_equals_the_reference_search(kind, n, keep):
    visual = tokens(kind, n, 24, seed=n + keep)
    want = reference(visual.numpy(), keep)
    assert max_min_order(visual, keep).tolist() == want
    assert divprune(visual, keep).tolist() == sorted(want)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batch_equals_singles(batch):
    kinds = ["random", "clustered", "duplicated"]
    visual = torch.stack([tokens(kinds[i % 3], 60, 16, i) for i in range(batch)])
    together = max_min_order(visual, 50)
    assert together.shape == (batch, 50) and together.dtype == torch.int64
    for i in range(batch):
        assert together[i].tolist() == max_min_order(visual[i], 50).tolist()
        assert divprune(visual, 50)[i].tolist() == divprune(visual[i], 50).tolist()


@pytest.mark.parametrize("width", [16, 4096])
def test_no_token_twice_where_the_published_code_repeats_itself(width):
    visual = tokens("random", 120, width, 7)
    visual = torch.cat(
        [visual[:60], visual[60:61].expand(24, -1), visual[60:]]
    )  # 120 different ones, one of them 25 times
    order = max_min_order(visual, 140).tolist()
    assert len(set(order)) == 140
    assert len(set(range(60, 85)) & set(order[:120])) == 1, (
        "one of the equal tokens, until every other is taken"
    )
    assert order[120:] == sorted(set(range(61, 85)))[:20], "then the lowest of them"
    assert 60 in order[:120]


def test_all_tokens_equal_or_zero():
    for visual in (torch.ones(9, 4), torch.zeros(9, 4), torch.full((9, 4), 1e-20)):
        assert max_min_order(visual, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_inside_whatever_comes_in(dtype):
    visual = tokens("clustered", 200, 32, 3).to(dtype)
    assert max_min_order(visual, 20).tolist() == max_min_order(visual.float(), 20).tolist()


def test_keep_all_and_inputs_left_alone():
    visual = tokens("duplicated", 12, 8, 0)
    before = visual.clone()
    for keep in (12, 13, 1000):
        assert divprune(visual, keep).tolist() == list(range(12))
        assert divprune_star(visual, torch.randn(3, 8), keep).tolist() == list(range(12))
    assert divprune(visual[None].expand(2, -1, -1), 99).shape == (2, 12)
    divprune(visual, 5), divprune_star(visual, torch.randn(3, 8), 5)
    assert torch.equal(visual, before)


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated"])
@pytest.mark.parametrize(
    ("n", "keep", "pool", "align"),
    [
        (1, 1, 0.8, "l2"),
        (30, 6, 0.8, "l2"),
        (30, 28, 0.8, "sq_l2"),
        (61, 9, 0.5, "cosine"),
        (61, 9, 1.0, "l2"),
    ],
)
def test_star_is_the_nearest_to_the_text_then_divprune(kind, n, keep, pool, align):
    visual, text = tokens(kind, n, 16, n), 0.5 * tokens("random", 5, 16, 99)
    alpha = alignment(visual, text, align)
    near = sorted(
        sorted(range(n), key=lambda i: (-float(alpha[i]), i))[: max(int(pool * n + 1e-9), keep)]
    )
    want = sorted(near[i] for i in reference(visual[near].numpy(), keep))
    assert divprune_star(visual, text, keep, pool=pool, align=align).tolist() == want


def test_star_with_ragged_texts_equals_singles():
    lengths = [3, 11, 1]
    visual = torch.stack([tokens("clustered", 60, 16, i) for i in range(3)])
    texts = [tokens("random", length, 16, 50 + i) for i, length in enumerate(lengths)]
    text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=100.0)
    mask = torch.arange(text.shape[1]) < torch.tensor(lengths)[:, None]
    together = divprune_star(visual, text, 9, text_mask=mask)
    for i in range(3):
        assert together[i].tolist() == divprune_star(visual[i], texts[i], 9).tolist()
        assert (
            together[i].tolist() == divprune_star(visual[i], text[i], 9, text_mask=mask[i]).tolist()
        )


@pytest.mark.parametrize(
    "change",
    [
        {"keep": 0},
        {"pool": 0.0},
        {"pool": 1.2},
        {"align": "dot"},
        {"text": torch.zeros(0, 8)},
        {"text": torch.zeros(3, 7)},
        {"text_mask": torch.ones(2, dtype=torch.bool)},
        {"visual": torch.zeros(8)},
        {"visual": torch.zeros(0, 8)},
    ],
)
def test_nonsense_is_refused_in_a_sentence(change):
    given = {"visual": torch.randn(6, 8), "text": torch.randn(3, 8), "keep": 2} | change
    with pytest.raises(ValueError, match=r"must|pool is"):
        divprune_star(**given)
    if change.keys() <= {"visual", "keep"}:
        for function in (divprune, max_min_order):
            with pytest.raises(ValueError, match="must"):
                function(given["visual"], given["keep"])


def test_no_value_leaves_the_device_in_the_loop():
    """On meta tensors nothing can be read back: a hidden .item() or a data-dependent shape would
    raise.
    """
    visual, text = torch.empty(2, 50, 8, device="meta"), torch.empty(2, 4, 8, device="meta")
    for out in (divprune(visual, 10), divprune_star(visual, text, 10)):
        assert out.shape == (2, 10) and out.device.type == "meta"


@pytest.mark.parametrize("kind", [DivPrune, DivPruneStar])
def test_the_pruners_keep_what_every_pruner_owes(kind):
    check_invariants(kind, [make_stage(images, seed=i) for i, images in enumerate(samples())])
    for budget in ("tokens", "diversity"):
        stage = make_stage([tokens("random", 40, 16, 1), tokens("clustered", 20, 16, 2)])
        assert len(kind(Budget(tokens=8), budget).select(stage).kept) == 16


def test_the_pruners_are_the_functions_image_by_image():
    a, b = tokens("clustered", 40, 16, 1), tokens("random", 25, 16, 2)
    stage = make_stage([a, b])
    want = divprune(a, 6).tolist() + [40 + i for i in divprune(b, 6).tolist()]
    assert DivPrune(Budget(tokens=6)).select(stage).kept.tolist() == want
    for text in ("instruction", "prompt"):
        words = stage.text(text)
        want = [
            *divprune_star(a, words, 6, pool=0.5).tolist(),
            *(40 + divprune_star(b, words, 6, pool=0.5)).tolist(),
        ]
        assert (
            DivPruneStar(Budget(tokens=6), pool=0.5, text=text).select(stage).kept.tolist() == want
        )


def test_parameters_are_refused_in_a_sentence():
    for wrong in ({"pool": 0}, {"pool": 2}, {"align": "dot"}, {"text": "clip"}):
        with pytest.raises(ValueError, match=r"must be one of|pool is"):
            DivPruneStar(**wrong)
