"""Our path against slow and obvious ones, by logits and not by text.

They are transformers' `generate`, prompts built by hand, and singles in place of batches.
"""

from functools import partial

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.generating import finish, generate, generated_by_library
from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import answer, encode, prune
from trimtok_cli.engine.order import numbered
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

STEPS = 6
QUESTION = "What is to the left of it?"


def dense_logits(adapter, inputs) -> torch.Tensor:
    """(steps, V) of the library itself."""
    tensors = inputs.tensors | (adapter.tower_inputs([inputs]) if inputs.visuals else {})
    return generated_by_library(adapter.model, STEPS, **tensors)[1][0]


def our_logits(adapter, inputs, pruner=None) -> torch.Tensor:
    tokens = adapter.encode_many([inputs])
    prompts, _ = reduce_prompts(
        pruner, [adapter.embed(inputs, tokens[0])], tokens, num_layers=4, renumber=True
    )
    return generate(adapter, prompts, max_new_tokens=STEPS, stop=False, keep_logits=True)[0][
        0
    ].logits


KINDS = {
    "default": tiny.llava,
    "full": partial(tiny.llava, strategy="full"),
    "last-layer": partial(tiny.llava, layer=-1),
    "two-layers": partial(tiny.llava, layer=[-3, -1]),
    "tied": partial(tiny.llava, kv_heads=4, tied=True),
    "small-uncropped": partial(tiny.llava, grid=3, kv_heads=1, crop=False),
    "siglip": tiny.siglip,
    "pixtral": tiny.pixtral,
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return load_model(
        str(KINDS[request.param](tmp_path_factory.mktemp("kinds") / request.param)), device="cpu"
    )


@pytest.mark.parametrize("images", [0, 1, 2])
def test_dense_equals_generate(kind, images):
    adapter = kind
    inputs = adapter.prepare([picture(i, 90 + 40 * i, 70) for i in range(images)], QUESTION)
    want = dense_logits(adapter, inputs)
    assert want.std() > 0.3
    assert (our_logits(adapter, inputs) - want).abs().max() < 1e-4
    tokens = adapter.encode_many([inputs])[0]
    assert (
        len(tokens)
        == len(tokens.box)
        == len(tokens.visual_index)
        == int(torch.isin(inputs.input_ids, torch.tensor(adapter.placeholder_ids)).sum())
    )


def test_keep_all_is_dense(adapter):
    inputs = adapter.prepare([picture(1)], QUESTION)
    from trimtok_cli.pruners.budget import Budget
    from trimtok_cli.pruners.methods.trimtokenator import TrimTokenator

    for keep in (Budget(), Budget(tokens=36), Budget(tokens=999), Budget(share=0.999)):
        assert torch.equal(
            our_logits(adapter, inputs, TrimTokenator(keep=keep)), our_logits(adapter, inputs)
        )
    assert (
        build_pruner("trimtokenator", {"keep": "all"}) is None
        and build_pruner("dense", {"keep": 3}) is None
    )


def test_pruned_equals_a_prompt_built_without_the_dropped_rows(adapter):
    """Renumbered positions: the model never learns that there were more tokens."""
    inputs = adapter.prepare([picture(2)], QUESTION)
    pruner = build_pruner("trimtokenator", {"keep": 5})
    tokens = adapter.encode_many([inputs])
    dense = adapter.embed(inputs, tokens[0])
    (prompt,), ((kept,),) = reduce_prompts(pruner, [dense], tokens, num_layers=4, renumber=True)
    assert len(kept.tokens) == 5 and prompt.alive.tolist() == list(kept.tokens)
    rows = [
        r
        for r in range(len(dense))
        if r not in set(dense.visual.tolist()) - set(dense.visual[list(kept.tokens)].tolist())
    ]
    by_hand = dense.embeds[rows]
    assert torch.equal(prompt.embeds, by_hand) and prompt.positions.tolist() == list(
        range(len(rows))
    )
    mask = torch.ones(1, len(rows))
    _, want = generated_by_library(
        adapter.model, STEPS, inputs_embeds=by_hand[None], attention_mask=mask
    )
    ours = our_logits(adapter, inputs, pruner)
    assert (want[0] - ours).abs().max() < 1e-4
    assert (ours - our_logits(adapter, inputs)).abs().max() > 0.05, (
        "pruning changed nothing: the test could not fail"
    )


def test_pruner_reads_the_instruction_and_each_image_has_its_budget(adapter):
    inputs = adapter.prepare([picture(1), picture(2)], QUESTION)
    tokens = adapter.encode_many([inputs])
    prompt = adapter.embed(inputs, tokens[0])
    assert adapter.processor.tokenizer.decode(inputs.input_ids[prompt.instruction]) == QUESTION
    from trimtok_cli.pruners.methods.trimtokenator import trimtokenator

    (_,), ((kept,),) = reduce_prompts(
        build_pruner("trimtokenator", {"keep": 7}), [prompt], tokens, num_layers=4, renumber=True
    )
    words = prompt.embeds[prompt.instruction]
    first = trimtokenator(tokens[0].embeds[:36], words, 7).tolist()
    second = (trimtokenator(tokens[0].embeds[36:], words, 7) + 36).tolist()
    assert list(kept.tokens) == first + second


def test_batch_equals_singles(adapter, pictures):
    """Seven pictures, prompts of unequal length, one without an image: batches of 8 and of 3
    against one by one.
    """
    samples = [Sample(i, (path,), question="Why?" * (i + 1)) for i, path in enumerate(pictures)] + [
        Sample(9, (), question="Who are you?")
    ]
    ask, pruner = Ask(max_new_tokens=STEPS), build_pruner("trimtokenator", {"keep": "20%"})
    for way in (None, pruner):
        prepared = [prepare(adapter.preprocessor, sample, ask) for sample in samples]
        prompts = [each.prompt for each in prune(adapter, way, encode(adapter, prepared))]
        together, _ = generate(adapter, prompts, max_new_tokens=STEPS, stop=False, keep_logits=True)
        for each, got in zip(prepared, together, strict=True):
            assert (our_logits(adapter, each.inputs, way) - got.logits).abs().max() < 1e-4
        runs = [
            [
                (r.answer, r.tokens, r.kept, r.finish)
                for r in answer_all(adapter, way, samples, ask, batch_size=size)
            ]
            for size in (1, 3, 8)
        ]
        assert runs[0] == runs[1] == runs[2]


def test_stops_at_the_end_token_alone_and_in_a_batch(tmp_path, pictures):
    adapter = load_model(str(tiny.llava(tmp_path / "m", end=None)), device="cpu")
    samples = [Sample(i, (path,), question="?" * (i + 1)) for i, path in enumerate(pictures)]
    ask = Ask(max_new_tokens=12)
    prepared = numbered((prepare(adapter.preprocessor, s, ask) for s in samples), ask)
    free = finish(adapter, None, encode(adapter, list(prepared)), ask)
    inputs = [prepare(adapter.preprocessor, s, ask).inputs for s in samples]
    ids = [
        generate(
            adapter, [adapter.embed(i, adapter.encode_many([i])[0])], max_new_tokens=12, stop=False
        )[0][0].ids
        for i in inputs
    ]
    end = ids[0][2]
    adapter.model.generation_config.eos_token_id = [end, 100]
    ended = answer(adapter, None, samples, ask)
    for row, got in zip(ids, ended, strict=True):
        steps = row.index(end) + 1 if end in row else 12
        assert (got.tokens.generated, got.finish) == (steps, "stop" if end in row else "length")
        assert got.answer == adapter.decode(row[: steps - (end in row)])
    assert {r.finish for r in ended} == {"stop", "length"}, (
        "both ways to stop must occur for this test to mean something"
    )
    assert all(r.tokens.generated == 12 for r in free)


def test_one_bad_sample_does_not_touch_its_batch(adapter, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"<html>no</html>")
    good = [Sample(p.name, (p,)) for p in pictures[:3]]
    mixed = [
        good[0],
        Sample("x", (broken,)),
        good[1],
        Sample("y", problem="line 4 is not JSON"),
        good[2],
    ]
    ask = Ask("What?", max_new_tokens=3)
    results = list(answer_all(adapter, None, mixed, ask, batch_size=4))
    assert [r.sample.id for r in results] == [s.id for s in mixed]
    assert [bool(r.error) for r in results] == [False, True, False, True, False]
    alone = [answer(adapter, None, [s], ask)[0].answer for s in good]
    assert [r.answer for r in results if not r.error] == alone


def test_a_sample_that_breaks_behind_the_tower_does_not_take_its_batch_along(
    adapter, pictures, monkeypatch
):
    samples = [
        Sample(i, (path,), question="What?" if i != 2 else "Break")
        for i, path in enumerate(pictures[:4])
    ]
    ask = Ask(max_new_tokens=3)
    alone = {s.id: answer(adapter, None, [s], ask)[0].answer for s in samples if s.id != 2}
    real = type(adapter).embed_many

    def embed_many(self, batch, tokens):
        if any("Break" in inputs.text for inputs in batch):
            raise RuntimeError("out of luck")
        return real(self, batch, tokens)

    monkeypatch.setattr(type(adapter), "embed_many", embed_many)
    results = list(answer_all(adapter, None, samples, ask, batch_size=4))
    assert [r.error for r in results] == ["", "", "RuntimeError: out of luck", ""]
    assert {r.sample.id: r.answer for r in results if not r.error} == alone


def test_a_processor_that_does_not_fit_the_model_ends_the_run_with_a_sentence(
    adapter, pictures, monkeypatch
):
    monkeypatch.setattr(adapter.processor, "num_additional_image_tokens", 0)
    with pytest.raises(ModelError, match="wrote 35 placeholders for 36 visual tokens"):
        list(answer_all(adapter, None, [Sample(1, (pictures[0],), question="?")], Ask()))


def test_sampling_is_seeded_and_does_not_depend_on_the_batch(adapter, pictures):
    samples = [Sample(i, (path,)) for i, path in enumerate(pictures)]

    def say(seed, size):
        return [
            r.answer
            for r in answer_all(
                adapter,
                None,
                samples,
                Ask("What?", max_new_tokens=8, sampling=Sampling(1.5, 0.95, seed)),
                batch_size=size,
            )
        ]

    assert say(1, 1) == say(1, 4) != say(2, 4)
    assert say(1, 1) != [
        r.answer for r in answer_all(adapter, None, samples, Ask("What?", max_new_tokens=8))
    ]


def test_compare_runs_the_tower_once_and_leaves_dense_as_it_was(adapter, pictures, monkeypatch):
    ask, pruners = (
        Ask("What?", max_new_tokens=4),
        [None, *(build_pruner("trimtokenator", {"keep": k}) for k in (3, 9))],
    )
    samples = [Sample(p.name, (p,)) for p in pictures[:3]]
    list(compare_all(adapter, pruners, samples[:1], ask))
    calls = []
    monkeypatch.setattr(
        type(adapter),
        "encode_many",
        lambda self, batch, real=type(adapter).encode_many, **how: (
            calls.append(len(batch)) or real(self, batch, **how)
        ),
    )
    comparisons = list(compare_all(adapter, pruners, samples, ask))
    assert len(calls) == len(samples) + 2  # two more for the warm-up on the first sample
    for comparison in comparisons:
        dense, small, large = comparison.results
        assert dense.answer == answer(adapter, None, [comparison.sample], ask)[0].answer
        assert (dense.tokens.kept, small.tokens.kept, large.tokens.kept) == (36, 3, 9)
        assert len(comparison.boxes) == 36 and set(comparison.visual_index) == {0}


def test_boxes_lie_where_the_pixels_came_from(adapter):
    """Painting one spot moves the features of the tokens whose boxes hold it most, also behind the
    center crop.
    """
    for width, height in ((84, 84), (84, 168), (200, 84)):
        plain = picture(5, width, height)
        base = adapter.encode_many([adapter.prepare([plain], "?")])[0]
        for x, y in ((0.5, 0.5), (0.45, 0.4), (0.6, 0.62)):
            spot = plain.copy()
            cx, cy = int(x * width), int(y * height)
            side = min(width, height) // 18
            spot.paste((255, 0, 255), (cx - side, cy - side, cx + side, cy + side))
            moved = (
                adapter.encode_many([adapter.prepare([spot], "?")])[0].embeds - base.embeds
            ).norm(dim=-1)
            x0, y0, x1, y1 = base.box[moved.argmax()].tolist()
            slack = 0.08
            assert (
                x0 - slack <= cx / width <= x1 + slack and y0 - slack <= cy / height <= y1 + slack
            )


@pytest.mark.parametrize("decode", ["continuous", "simple"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_stream_is_answered_as_its_samples_alone_by_both_loops(
    adapter, pictures, decode, batch_size
):
    samples = [
        Sample(i, (path,), question="Why?" * (i % 3 + 1)) for i, path in enumerate(pictures * 2)
    ]
    ask, pruner = (
        Ask(max_new_tokens=STEPS, decode=decode),
        build_pruner("trimtokenator", {"keep": 5}),
    )
    alone = [answer(adapter, pruner, [sample], ask)[0] for sample in samples]
    together = list(answer_all(adapter, pruner, samples, ask, batch_size=batch_size))
    assert [(r.sample.id, r.answer, r.kept, r.tokens) for r in together] == [
        (r.sample.id, r.answer, r.kept, r.tokens) for r in alone
    ]
    assert max(r.batch_size for r in together) == (batch_size or 8)


@pytest.mark.parametrize("method", ["trimtokenator", "fastv"])
def test_a_broken_input_is_told_before_anything_further_is_read(
    adapter, pictures, tmp_path, method
):
    read = []

    def samples():
        for name in ("gone.png", "gone too.png", pictures[0], "and gone.png"):
            read.append(name)
            yield Sample(str(name), (tmp_path / name,))

    results = answer_all(
        adapter, build_pruner(method, {"keep": 5}), samples(), Ask("What?", max_new_tokens=2)
    )
    assert "does not exist" in next(results).error and len(read) == 1
    assert "does not exist" in next(results).error and len(read) == 2
    assert [bool(result.error) for result in results] == [False, True]
