"""A batch's prompts made, reduced and padded together, against plain code for one at a time."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from trimtok_cli.generation.padding import pad_right
from trimtok_cli.models.loading import load_model
from trimtok_cli.pruners.alike import padded, select_alike
from trimtok_cli.pruners.base import Pruner, Stage
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.tokens import Prompt, Selection, VisualTokens, reduced_together

WIDTH = 4


def prompt(length: int, visual: int, seed: int, *, mrope: bool = False, deepstack=False) -> Prompt:
    """A prompt whose visual tokens, which already left gaps in `alive`, stand somewhere in it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(length, generator=generator)
    shape = (3, length) if mrope else (length,)
    return Prompt(
        embeds=torch.randn(length, WIDTH, generator=generator),
        positions=torch.randint(0, 90, shape, generator=generator),
        visual=rows[:visual].sort().values,
        alive=torch.randperm(40, generator=generator)[:visual].sort().values,
        instruction=rows[visual : visual + (length - visual) // 2].sort().values,
        deepstack=torch.randn(2, visual, WIDTH, generator=generator) if deepstack else None,
        ids=torch.arange(length),
        seed=seed,
    )


def reduced_plainly(given: Prompt, selection: Selection, renumber: bool) -> Prompt:
    """What is left of a prompt, row by row."""
    kept = [int(given.visual[number]) for number in selection.kept]
    gone = set(given.visual.tolist()) - set(kept)
    rows = [row for row in range(len(given)) if row not in gone]
    embeds = given.embeds[rows]
    if selection.embeds is not None:
        embeds[[rows.index(row) for row in kept]] = selection.embeds
    return replace(
        given,
        embeds=embeds,
        positions=torch.arange(len(rows)) if renumber else given.positions[..., rows],
        visual=torch.tensor([rows.index(row) for row in kept], dtype=torch.long),
        alive=given.alive[selection.kept],
        instruction=torch.tensor([rows.index(row) for row in given.instruction.tolist()]).long(),
        deepstack=None if given.deepstack is None else given.deepstack[:, selection.kept],
    )


def assert_equal(found: Prompt, wanted: Prompt) -> None:
    for name, value in vars(wanted).items():
        other = getattr(found, name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, (
            name
        )


@pytest.mark.oracle
@pytest.mark.parametrize("mrope", [False, True])
@pytest.mark.parametrize("renumber", [False, True])
def test_prompts_reduced_together_are_those_reduced_one_by_one(mrope, renumber):
    if mrope and renumber:
        renumber = False
    sizes = [(12, 5), (7, 7), (9, 1), (20, 11), (6, 3)]
    prompts = [
        prompt(length, visual, seed, mrope=mrope, deepstack=seed % 2 == 1)
        for seed, (length, visual) in enumerate(sizes)
    ]
    kept = [torch.tensor(each) for each in ([0, 2, 4], [1], [0], list(range(11)), [])]
    selections = [Selection(each.long()) for each in kept]
    merged = torch.randn(3, WIDTH)
    selections[0] = replace(selections[0], embeds=merged)
    before = [prompt.embeds.clone() for prompt in prompts]
    found = reduced_together(prompts, selections, num_dense=[40] * 5, renumber=renumber)
    for one, selection, own in zip(prompts, selections, found, strict=True):
        assert_equal(own, reduced_plainly(one, selection, renumber))
        assert_equal(own, one.reduced(selection, num_dense=40, renumber=renumber))
    assert all(torch.equal(*each) for each in zip(before, (p.embeds for p in prompts), strict=True))


def test_extra_tokens_of_one_prompt_leave_the_others_alone():
    prompts = [prompt(8, 4, 1), prompt(10, 4, 2)]
    extra = Selection(torch.tensor([0, 3]), extra=torch.randn(2, WIDTH))
    none = Selection(torch.tensor([1]))
    found = reduced_together(prompts, [extra, none], num_dense=[40, 40], renumber=True)
    assert len(found[0]) == 8 and found[0].alive.tolist()[2:] == [40, 41]
    assert found[0].positions.tolist() == list(range(8))
    assert_equal(found[1], reduced_plainly(prompts[1], none, True))


@pytest.mark.oracle
@torch.inference_mode()
def test_prompts_embedded_together_are_those_embedded_one_by_one(tmp_path):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    inputs = [
        adapter.prepare([picture(i + j, 100, 80) for j in range(i % 3)], "What is it? " * (i + 1))
        for i in range(5)
    ]
    tokens = adapter.encode_many(inputs)
    for asked, visual, found in zip(
        inputs, tokens, adapter.embed_many(inputs, tokens), strict=True
    ):
        is_visual = asked.input_ids == adapter.model.config.image_token_id
        embeds = adapter.embed_ids(asked.input_ids)
        embeds[is_visual] = visual.embeds
        assert torch.equal(found.embeds, embeds) and torch.equal(found.ids, asked.input_ids)
        assert torch.equal(found.visual, is_visual.nonzero().squeeze(1))
        assert torch.equal(found.alive, torch.arange(len(visual)))
        assert torch.equal(found.instruction, asked.instruction)
        assert torch.equal(found.positions, torch.arange(len(embeds)))


@pytest.mark.parametrize("mrope", [False, True])
def test_a_padded_prompt_is_the_prompt_and_its_last_row_over_again(mrope):
    prompts = [prompt(length, 2, length, mrope=mrope) for length in (5, 9, 4)]
    embeds, positions = pad_right(prompts, 11)
    for row, each in enumerate(prompts):
        numbers = [min(place, len(each) - 1) for place in range(11)]
        assert torch.equal(embeds[row], each.embeds[numbers])
        assert torch.equal(positions[..., row, :], each.positions[..., numbers])


@pytest.mark.parametrize("lengths", [(3, 1, 2), (0, 2), (0, 0), (4,)])
def test_texts_are_filled_up_with_zeros_whatever_they_hold(lengths):
    texts = [torch.full((length, WIDTH), float("nan")) for length in lengths]
    rows, mask = padded(texts)
    assert rows.shape == (len(lengths), max(lengths), WIDTH)
    assert mask.sum(1).tolist() == list(lengths) and mask.dtype == torch.bool
    assert rows[mask].isnan().all() and (rows[~mask] == 0).all()


def test_images_of_one_size_and_budget_are_one_question():
    """Three samples: an image, two that lie in turns, and one that keeps all."""
    owners = [torch.zeros(6), torch.tensor([0, 1] * 6), torch.zeros(3)]
    stages = []
    for number, index in enumerate(owners):
        own = prompt(len(index) + 2, len(index), number)
        own = replace(own, alive=torch.arange(len(index)))
        tokens = VisualTokens(own.embeds[own.visual], index.long(), torch.zeros(len(index), 4))
        stages.append(Stage(0, own.embeds, own, tokens))
    asked = []

    def choose(images, keep):
        asked.append((len(images), keep))
        return torch.tensor([[5, 0, 2]] * len(images))  # not in order

    found = select_alike(Pruner(keep=Budget(tokens=3)), stages, choose)
    assert asked == [(3, 3)]
    assert [each.kept.tolist() for each in found] == [[0, 2, 5], [0, 1, 4, 5, 10, 11], [0, 1, 2]]
