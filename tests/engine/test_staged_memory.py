"""The memory of methods that prune inside the decoder: a layer counts with the rows that it holds."""

import pytest
import torch

from tests.engine.test_stage_batches import METHODS, encoded
from tests.engine.test_staged_loop import STEPS, answers, same, singles
from tests.generation.test_back_off import Memory, counted_alone
from tests.support import tiny
from tests.support.generating import rules
from trimtok_cli.engine.answer import prune
from trimtok_cli.engine.loops import loop_for
from trimtok_cli.generation import kv_slots
from trimtok_cli.generation.capacity import slot_bytes
from trimtok_cli.generation.types import run
from trimtok_cli.models.loading import load_model


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / "llava"
    return load_model(str(tiny.llava(folder)), device="cpu")


@pytest.fixture
def fine_grain(monkeypatch):
    """Slots are as long as they must be, so that few rows make a difference."""
    monkeypatch.setattr(kv_slots, "GRAIN", 1)


def rows_by_layer(adapter, request) -> list[int]:
    """The rows of a prompt in each layer, by the tokens that every stage left."""
    text = len(request.prompt) - len(request.prompt.visual)
    ends = [stage.layer for stage in request.kept[1:]] + [adapter.num_layers]
    return [
        text + len(stage.tokens)
        for stage, end in zip(request.kept, ends, strict=True)
        for _ in range(stage.layer, end)
    ]


@torch.inference_mode()
@pytest.mark.parametrize("method", METHODS)
def test_the_rows_of_the_last_prompts_are_known_by_layer(llava, method):
    found, loop = answers(llava, METHODS[method](), stop=False)
    longest = max(len(each.request.prompt) for each in found)
    most = [
        max(rows)
        for rows in zip(*(rows_by_layer(llava, each.request) for each in found), strict=True)
    ]
    assert loop.stages.rows_held(longest) == most
    assert min(most) < longest or method == "adds"
    # What a longer prompt has more may stay everywhere, and of shorter ones none is known.
    assert loop.stages.rows_held(longest + 5) == [rows + 5 for rows in most]
    assert loop.stages.rows_held(1) == ()


@torch.inference_mode()
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "vtw"])
def test_memory_holds_more_answers_than_whole_prompts_would_leave_room_for(
    llava, method, monkeypatch, fine_grain
):
    """An open limit counts whole prompts until the first was prefilled, and then what is held."""
    pruner = METHODS[method]()
    alone = singles(llava, pruner, stop=False)
    given = prune(llava, pruner, encoded(llava))
    longest = max(len(each.prompt) for each in given)
    whole = slot_bytes(llava.config, llava.dtype, [longest + STEPS] * (llava.num_layers + 1))
    # The first prompts are shorter than the longest one, of which two would fit whole.
    free = 2 * whole + whole // 2
    counted_alone(monkeypatch, free)
    memory = Memory(monkeypatch, free)
    memory.on = True
    made = rules(llava, max_new_tokens=STEPS, stop=False)
    loop = loop_for(llava, pruner, made, batch_limit=None, keep_logits=True)
    found = sorted(run(loop, given), key=lambda each: each.request.number)
    same(alone, found)
    assert loop.sizes.longest == longest and loop.batch_limit > 2
    assert max(each.peak_batch for each in found) > 2
    assert memory.broke == 0 and memory.most <= free
