"""The seams that other methods and families need.

They are merged and added tokens, 3-D positions, budgets per image, and a pruner that scores.
"""

from dataclasses import dataclass

import pytest
import torch

from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.generation.padding import pad_right
from trimtok_cli.pruners.alike import padded
from trimtok_cli.pruners.base import Pruner, ScoringPruner, Stage, intra_diversity
from trimtok_cli.pruners.budget import Budget, share_out
from trimtok_cli.tokens import Prompt, Selection, TowerSignals, VisualTokens


def prompt(mrope: bool = False) -> Prompt:
    """Ten rows: text 0, 1; visual 2..4; text 5 between two images; visual 6, 7; text 8, 9."""
    positions = (
        torch.arange(10)
        if not mrope
        else torch.stack([torch.arange(10), torch.arange(10) * 2, torch.arange(10) * 3])
    )
    visual = torch.tensor([2, 3, 4, 6, 7])
    return Prompt(
        torch.arange(20.0).reshape(10, 2), positions, visual, torch.arange(5), torch.tensor([8, 9])
    )


def test_reduced_drops_only_visual_rows_and_keeps_track_of_all_of_them():
    small = prompt().reduced(Selection(torch.tensor([1, 4])), num_dense=5, renumber=True)
    assert small.embeds[:, 0].tolist() == [0, 2, 6, 10, 14, 16, 18]
    assert (small.visual.tolist(), small.alive.tolist(), small.instruction.tolist()) == (
        [2, 4],
        [1, 4],
        [5, 6],
    )
    assert small.positions.tolist() == list(range(7))
    again = small.reduced(Selection(torch.tensor([1])), num_dense=5, renumber=False)
    assert again.alive.tolist() == [4] and again.embeds[:, 0].tolist() == [0, 2, 10, 14, 16, 18]
    none = small.reduced(Selection(torch.tensor([], dtype=torch.long)), num_dense=5, renumber=True)
    assert len(none) == 5 and none.visual.tolist() == [] and none.instruction.tolist() == [3, 4]


def test_original_positions_stay_where_a_family_does_not_renumber():
    for mrope in (False, True):
        small = prompt(mrope).reduced(Selection(torch.tensor([0, 3])), num_dense=5, renumber=False)
        assert torch.equal(small.positions, prompt(mrope).positions[..., [0, 1, 2, 5, 6, 8, 9]])


def test_merged_rows_replace_and_added_rows_follow_the_last_kept_one():
    dense = prompt()
    before = dense.embeds.clone()
    selection = Selection(
        torch.tensor([0, 2]), embeds=torch.full((2, 2), -1.0), extra=torch.full((3, 2), 99.0)
    )
    small = dense.reduced(selection, num_dense=5, renumber=True)
    assert small.embeds[:, 0].tolist() == [0, 2, -1, -1, 99, 99, 99, 10, 16, 18]
    assert small.visual.tolist() == [2, 3, 4, 5, 6] and small.alive.tolist() == [0, 2, 5, 6, 7]
    assert small.embeds[small.instruction].tolist() == dense.embeds[dense.instruction].tolist()
    assert torch.equal(dense.embeds, before), (
        "the dense prompt is shared by everything that compares with it"
    )
    three = prompt(mrope=True).reduced(selection, num_dense=5, renumber=False)
    assert three.positions.shape == (3, 10) and three.positions[:, 4:7].tolist() == [
        [4] * 3,
        [8] * 3,
        [12] * 3,
    ]


def test_right_padding_repeats_the_last_row_of_each_prompt():
    short = prompt().reduced(Selection(torch.tensor([0])), num_dense=5, renumber=True)
    embeds, positions = pad_right([prompt(), short])
    assert embeds.shape == (2, 10, 2) and torch.equal(embeds[0], prompt().embeds)
    assert torch.equal(embeds[1, :6], short.embeds)
    assert torch.equal(embeds[1, 6:], short.embeds[-1:].expand(4, -1))
    assert positions[1].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
    assert pad_right([prompt(mrope=True)] * 2, 16)[1].shape == (3, 2, 16)


@dataclass(frozen=True)
class LastColumn(ScoringPruner):
    """A method of one line, as a newcomer would write it."""

    def score(self, stage: Stage) -> torch.Tensor:
        return stage.visual_embeds[:, -1]


class Later(LastColumn):
    def stages(self, num_layers: int) -> tuple[int, ...]:
        return (2,)


def tokens() -> VisualTokens:
    return VisualTokens(torch.zeros(5, 2), torch.tensor([0, 0, 0, 1, 1]), torch.zeros(5, 4))


def test_a_scoring_pruner_gives_each_image_its_budget():
    for keep, want in (
        (Budget(tokens=1), (2, 4)),
        (Budget(tokens=2), (1, 2, 3, 4)),
        (Budget(share=0.5), (1, 2, 4)),
        (Budget(), (0, 1, 2, 3, 4)),
    ):
        (small,), ((kept,),) = reduce_prompts(
            LastColumn(keep), [prompt()], [tokens()], num_layers=4, renumber=True
        )
        assert kept.tokens == want and small.alive.tolist() == list(want)


def test_images_share_a_total_by_size_or_by_diversity():
    assert share_out(8, [3, 1], [100, 100]) == [6, 2] and share_out(8, [1, 1, 1], [9, 9, 9]) == [
        3,
        3,
        2,
    ]
    assert share_out(8, [100, 1], [3, 9]) == [3, 5], (
        "what one image has no room for goes to the other"
    )
    assert share_out(3, [0.0, 0.0, 0.0], [5, 5, 5]) == [1, 1, 1] and share_out(
        99, [1, 2], [4, 3]
    ) == [4, 3]
    assert share_out(4, [0.0, 1.0], [5, 5]) == [1, 3], "every image keeps one"
    for budget, want in (("equal", (1, 4)), ("tokens", (1, 4)), ("diversity", (1, 4))):
        (_,), ((kept,),) = reduce_prompts(
            LastColumn(Budget(tokens=1), budget),
            [prompt()],
            [tokens()],
            num_layers=4,
            renumber=True,
        )
        assert (len(kept.tokens) == 2) and (budget != "equal" or kept.tokens == (2, 4)), want
    five = LastColumn(Budget(share=0.6), "tokens").image_budgets(
        Stage(0, prompt().embeds, prompt(), tokens())
    )
    assert [count for _, count in five] == [2, 1]


def test_diverse_images_get_more_under_the_diversity_budget():
    embeds = torch.zeros(10, 4)
    # The first image has three unlike tokens, the second two equal ones.
    embeds[[2, 3, 4]] = torch.eye(4)[:3]
    embeds[[6, 7]] = torch.tensor([1.0, 1, 1, 1])
    mixed = Prompt(
        embeds,
        torch.arange(10),
        torch.tensor([2, 3, 4, 6, 7]),
        torch.arange(5),
        torch.tensor([8, 9]),
    )
    stage = Stage(0, embeds, mixed, tokens())

    def counts(budget):
        return [n for _, n in LastColumn(Budget(tokens=2), budget).image_budgets(stage)]

    assert (counts("equal"), counts("diversity")) == ([2, 2], [3, 1])


def test_intra_diversity_is_the_mean_over_pairs():
    for rows in (torch.randn(7, 5), torch.randn(2, 3) * 50, torch.ones(4, 3), torch.zeros(3, 3)):
        pairs = [
            1 - torch.cosine_similarity(a, b, dim=0)
            for i, a in enumerate(rows)
            for j, b in enumerate(rows)
            if i != j
        ]
        assert abs(intra_diversity(rows) - float(sum(pairs) / len(pairs))) < 1e-5 or not rows.any()
    assert intra_diversity(torch.randn(1, 4)) == 0


def test_ties_go_to_the_lowest_index():
    flat = Prompt(
        torch.zeros(10, 2),
        torch.arange(10),
        torch.tensor([2, 3, 4, 6, 7]),
        torch.arange(5),
        torch.tensor([8, 9]),
    )
    (_,), ((kept,),) = reduce_prompts(
        LastColumn(Budget(tokens=1)), [flat], [tokens()], num_layers=4, renumber=True
    )
    assert kept.tokens == (0, 3)


def test_a_pruner_that_writes_nothing_and_one_inside_the_model_say_so():
    with pytest.raises(TypeError, match="neither select nor select_many"):
        Pruner(Budget(tokens=1)).select(Stage(0, prompt().embeds, prompt(), tokens()))
    with pytest.raises(LookupError, match="stage above 0"):
        Stage(0, prompt().embeds, prompt(), tokens()).attention(torch.tensor([0]), 0)
    (same,), ((kept,),) = reduce_prompts(
        Later(Budget(tokens=1)), [prompt()], [tokens()], num_layers=4, renumber=True
    )
    assert len(same) == 10 and kept.tokens == (0, 1, 2, 3, 4), (
        "the prompt is not what a later stage reduces"
    )


def test_text_rows_fall_back_to_the_whole_prompt():
    stage = Stage(0, prompt().embeds, prompt(), tokens())
    assert stage.text()[:, 0].tolist() == [16, 18]
    assert stage.text("prompt")[:, 0].tolist() == [0, 2, 10, 16, 18]
    bare = Prompt(
        prompt().embeds,
        torch.arange(10),
        prompt().visual,
        torch.arange(5),
        torch.tensor([], dtype=torch.long),
    )
    assert Stage(0, bare.embeds, bare, tokens()).text()[:, 0].tolist() == [0, 2, 10, 16, 18]


def test_padding_and_the_encoder_tap_are_lazy():
    rows, mask = padded([torch.ones(2, 3), torch.ones(1, 3)])
    assert rows.shape == (2, 2, 3) and mask.tolist() == [[True, True], [True, False]]
    calls = []
    tap = TowerSignals(saliency=lambda: calls.append(1) or torch.arange(3))
    assert tap.offers("saliency") and not tap.offers("keys") and not calls
    assert tap.saliency is tap.saliency and calls == [1]
