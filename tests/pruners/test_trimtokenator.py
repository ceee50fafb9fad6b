"""The paper's pruner against its equations, the reference in float64, and against stored vectors."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.kernels.alignment import alignment
from trimtok_cli.pruners.kernels.greedy import repmax
from trimtok_cli.pruners.kernels.reference import (
    least_mean_reference,
    repmax_reference,
    trimtokenator_reference,
)
from trimtok_cli.pruners.methods.trimtokenator import (
    ORDERS,
    TrimTokenator,
    align_only,
    diversity_first,
    diversity_only,
    greedy_order,
    trimtokenator,
)
from trimtok_cli.tokens import Prompt, VisualTokens

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("trimtokenator_PAPERREF_*.npz"))


def reference(
    visual: torch.Tensor,
    text: torch.Tensor,
    keep: int,
    pool: float = 0.8,
    align: str = "l2",
    diversity: str = "cosine",
) -> list[int]:
    """The order of selection by the reference in float64; other measures take the places of its
    own.
    """
    visual, text = visual.double(), text.double()
    if (align, diversity) == ("l2", "cosine"):
        return trimtokenator_reference(visual, text, keep, pool).tolist()
    apart = (visual[:, None] - text).norm(dim=-1)
    each = {
        "l2": -apart,
        "sq_l2": -apart.square(),
        "cosine": F.cosine_similarity(visual[:, None], text, dim=-1),
    }[align]
    keep = min(keep, len(visual))
    num_pool = max(int(pool * len(visual) + 1e-9), keep)
    alpha = each.mean(dim=1)
    pooled = alpha.sort(descending=True, stable=True).indices[:num_pool].sort().values
    rows = visual[pooled]
    if diversity == "cosine":
        return pooled[repmax_reference(rows, keep)].tolist()
    return pooled[least_mean_reference(-(rows[:, None] - rows).norm(dim=-1), keep)].tolist()


def tokens(kind: str, n: int, m: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    if kind == "random":
        visual = torch.randn(n, d, generator=g)
    else:
        centers = torch.randn(7, d, generator=g)
        visual = (
            centers[torch.randint(7, (n,), generator=g)]
            + 0.6 * torch.randn(n, d, generator=g)
            + 0.3
        )
    return visual, 0.5 * torch.randn(m, d, generator=g)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_vectors_index_for_index(path):
    assert len(GOLDEN) == 4
    data = np.load(path)
    visual, text = torch.from_numpy(data["visual"]), torch.from_numpy(data["text"])
    for short, align in (("l2", "l2"), ("sq", "sq_l2")):
        assert torch.allclose(
            alignment(visual[None], text[None], align)[0].double(),
            torch.from_numpy(data[f"alpha_{short}"]),
            atol=1e-4,
        )
        for name in [n for n in data.files if n.startswith(f"order_{short}_")]:
            keep = int(name.rsplit("_", 1)[1])
            assert reference(visual, text, keep, align=align) == data[name].tolist()
            assert greedy_order(visual, text, keep, align=align).tolist() == data[name].tolist()
            assert (
                trimtokenator(visual, text, keep, align=align).tolist()
                == data[f"kept_{short}_{keep}"].tolist()
            )


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize(
    ("n", "m", "keep"),
    [(1, 1, 1), (3, 3, 1), (5, 1, 4), (23, 4, 23), (40, 9, 33), (97, 5, 12), (144, 12, 16)],
)
@pytest.mark.parametrize(
    ("align", "diversity", "pool"),
    [("l2", "cosine", 0.8), ("sq_l2", "l2", 0.7), ("cosine", "cosine", 0.9), ("l2", "cosine", 1.0)],
)
def test_equals_the_reference(kind, n, m, keep, align, diversity, pool):
    visual, text = tokens(kind, n, m, 24, seed=n + m + keep)
    want = reference(visual, text, keep, pool, align, diversity)
    assert (
        greedy_order(visual, text, keep, pool=pool, align=align, diversity=diversity).tolist()
        == want
    )
    assert trimtokenator(
        visual, text, keep, pool=pool, align=align, diversity=diversity
    ).tolist() == sorted(want)


@pytest.mark.parametrize(("n", "keep"), [(576, 64), (2880, 320)])
def test_at_the_paper_s_sizes(n, keep):
    visual, text = tokens("clustered", n, 30, 64, seed=n)
    assert greedy_order(visual, text, keep).tolist() == reference(visual, text, keep)


def test_of_two_tokens_that_are_alike_to_each_other_the_first_stays():
    """Two tokens are always as unlike each other as the other way round: a tie, whatever rounding
    says.
    """
    for seed in range(20):
        visual, text = tokens("random", 2, 3, 24, seed)
        assert greedy_order(visual, text, 2, pool=1.0).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_duplicated_tokens_lowest_index_wins(seed):
    base, text = tokens("clustered", 30, 6, 16, seed)
    g = torch.Generator().manual_seed(seed)
    visual = base[torch.randint(30, (90,), generator=g)]
    visual[50:62] = visual[50]  # a run of equal tokens, like newlines
    for pool in (0.8, 1.0):
        order = greedy_order(visual, text, 40, pool=pool).tolist()
        assert len(set(order)) == 40, "a token was kept twice"
        want = reference(visual, text, 40, pool)
        assert torch.equal(visual[order], visual[want]), "equal tokens may change places, no others"
        for place in order:
            equal = (visual == visual[place]).all(dim=1).nonzero().squeeze(1).tolist()
            taken = [other for other in order if other in equal]
            assert taken == equal[: len(taken)], "of equal tokens the lowest goes first"
    batch = greedy_order(torch.stack([visual, visual.flip(0)]), torch.stack([text, text]), 40)
    assert batch[0].tolist() == greedy_order(visual, text, 40).tolist()


def test_all_tokens_equal():
    assert greedy_order(torch.ones(9, 4), torch.zeros(2, 4), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_batch_and_ragged_text_equal_singles(batch):
    lengths = [3, 11, 1, 7, 5][:batch]
    visual = torch.stack([tokens("clustered", 60, 1, 16, i)[0] for i in range(batch)])
    texts = [tokens("random", 1, length, 16, 50 + i)[1] for i, length in enumerate(lengths)]
    text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=100.0)
    mask = torch.arange(text.shape[1]) < torch.tensor(lengths)[:, None]
    together = trimtokenator(visual, text, 9, text_mask=mask)
    assert together.shape == (batch, 9) and together.dtype == torch.int64
    for i in range(batch):
        assert together[i].tolist() == trimtokenator(visual[i], texts[i], 9).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_inside_whatever_comes_in(dtype):
    visual, text = (x.to(dtype) for x in tokens("clustered", 200, 8, 32, 3))
    assert (
        trimtokenator(visual, text, 20).tolist()
        == trimtokenator(visual.float(), text.float(), 20).tolist()
    )


def test_keep_all_zero_vectors_and_inputs_left_alone():
    visual, text = tokens("random", 12, 3, 8, 0)
    visual[4] = 0
    before = visual.clone(), text.clone()
    for keep in (12, 13, 1000):
        assert trimtokenator(visual, text, keep).tolist() == list(range(12))
    assert len(set(trimtokenator(visual, text, 5).tolist())) == 5
    assert torch.equal(visual, before[0]) and torch.equal(text, before[1])


@pytest.mark.parametrize(
    "change",
    [
        {"keep": 0},
        {"pool": 0.0},
        {"pool": 1.2},
        {"align": "dot"},
        {"diversity": "dot"},
        {"text": torch.zeros(0, 8)},
        {"text": torch.zeros(3, 7)},
        {"text_mask": torch.ones(2, dtype=torch.bool)},
    ],
)
def test_nonsense_is_refused_in_a_sentence(change):
    given = {"visual": torch.randn(6, 8), "text": torch.randn(3, 8), "keep": 2} | change
    with pytest.raises(ValueError, match=r"must|pool is"):
        trimtokenator(**given)


def test_no_value_leaves_the_device_in_the_loop():
    """On meta tensors nothing can be read back: a hidden .item() or a data-dependent shape would
    raise.
    """
    out = trimtokenator(
        torch.empty(2, 50, 8, device="meta"), torch.empty(2, 4, 8, device="meta"), 10
    )
    assert out.shape == (2, 10) and out.device.type == "meta"


@pytest.mark.parametrize(
    "order", ["align-first", "diversity-first", "align-only", "diversity-only"]
)
def test_the_order_of_the_stages_and_either_alone(order):
    """Table 6: the same two functions, one after the other in either order, or one of them."""
    torch.manual_seed(3)
    for count, keep, pool in ((20, 6, 0.8), (33, 30, 0.5), (7, 1, 0.9)):
        visual, text = torch.randn(2, count, 5), torch.randn(2, 3, 5)
        got = {
            "align-first": partial(trimtokenator, visual, text, keep, pool=pool),
            "diversity-first": partial(diversity_first, visual, text, keep, pool=pool),
            "align-only": partial(align_only, visual, text, keep),
            "diversity-only": partial(diversity_only, visual, keep),
        }[order]()
        assert got.shape == (2, keep)
        for x, t, found in zip(visual, text, got, strict=True):

            def near(rows, k, x=x, t=t):
                return rows[alignment(x[None], t[None])[0][rows].argsort(descending=True)[:k]]

            def unlike(rows, k, x=x):
                return rows[repmax(x[rows][None], k)[0]]

            first, second = (near, unlike) if order.startswith("align") else (unlike, near)
            rows = torch.arange(count)
            if order.endswith("only"):
                want = first(rows, keep)
            else:
                want = second(first(rows, max(int(pool * count), keep)).sort().values, keep)
            assert found.tolist() == want.sort().values.tolist()


def test_the_pruner_runs_the_stages_in_the_order_that_it_is_given():
    torch.manual_seed(5)
    hidden = torch.randn(24, 6)
    places = torch.arange(24)
    prompt = Prompt(hidden, places, places[2:22], places[:20], places[22:])
    dense = VisualTokens(hidden[2:22], torch.zeros(20, dtype=torch.int64), torch.zeros(20, 4))
    stage = Stage(0, hidden, prompt, dense)
    visual, text = hidden[2:22][None], hidden[22:][None]
    wanted = {
        "align-first": trimtokenator(visual, text, 5, pool=0.5),
        "diversity-first": diversity_first(visual, text, 5, pool=0.5),
        "align-only": align_only(visual, text, 5),
        "diversity-only": diversity_only(visual, 5),
    }
    assert wanted.keys() == set(ORDERS)
    assert len({tuple(kept[0].tolist()) for kept in wanted.values()}) == 4, "a test that can tell"
    for order, kept in wanted.items():
        pruner = TrimTokenator(Budget(tokens=5), pool=0.5, order=order)
        assert pruner.select(stage).kept.tolist() == kept[0].tolist()
    with pytest.raises(ValueError, match="order must be one of"):
        TrimTokenator(order="both")


def test_mutual_information_tells_what_goes_together():
    torch.manual_seed(0)
    text = torch.randn(1, 2, 400)
    unlike = torch.randn(1, 3, 400)
    visual = torch.cat([unlike, text[:, :1] * -3 + 0.1 * torch.randn(1, 1, 400), unlike], 1)
    score = alignment(visual, text, "mi")
    assert (
        score.shape == (1, 7)
        and score.argmax() == 3
        and score[0, 3] > 5 * score[0, :3].max().clamp(min=0.01)
    )
    assert 3 in trimtokenator(visual, text, 2, pool=0.3, align="mi")[0].tolist()
