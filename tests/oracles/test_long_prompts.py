"""Prompts, answers and pictures too large for the model or the machine.

Each is a sentence in the sample's row, in bounded time.
"""

import resource
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import SampleError
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.positions import num_positions, steps_that_fit
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner

BUILDERS = FAMILIES | {"llava": tiny.llava, "pixtral": tiny.pixtral}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def family(request, tmp_path_factory):
    return load_model(
        str(BUILDERS[request.param](tmp_path_factory.mktemp("long") / request.param)), device="cpu"
    )


@pytest.fixture
def short(adapter, monkeypatch):
    """The tiny LLaVA with 64 positions: a picture takes 36 and the template 21.

    So a question of four characters fits.
    """
    monkeypatch.setattr(adapter, "num_positions", 64)
    monkeypatch.setattr(adapter.preprocessor, "num_positions", 64)
    return adapter


def asked(pictures, *questions):
    return [
        Sample(number, (pictures[0],), question=question)
        for number, question in enumerate(questions)
    ]


def test_positions_are_what_the_configuration_says_scaling_counted():
    def says(most, **rope):
        return num_positions(SimpleNamespace(max_position_embeddings=most, rope_parameters=rope))

    assert says(4096) == says(4096, rope_type="default", rope_theta=1e4) == 4096
    assert (
        says(4096, rope_type="linear", factor=4.0)
        == says(4096, rope_type="dynamic", factor=4.0)
        == 16384
    )
    assert (
        says(32768, rope_type="yarn", factor=4.0, original_max_position_embeddings=32768) == 131072
    )
    assert (
        says(163840, rope_type="yarn", factor=40.0, original_max_position_embeddings=4096) == 163840
    )
    assert (
        says(131072, rope_type="llama3", factor=8.0, original_max_position_embeddings=8192)
        == 131072
    )
    both = {
        "full_attention": {"rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_type": "default"},
    }
    assert says(131072, **both) == 131072
    assert num_positions(SimpleNamespace()) is None and says(None) is None


def test_an_answer_may_go_on_to_the_last_position():
    assert [steps_that_fit(10, used, 5) for used in (4, 6, 7, 9, 10)] == [5, 5, 4, 2, 1]
    assert steps_that_fit(None, 99, 5) == 5


@pytest.mark.parametrize("decode", ["continuous", "simple"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_prompt_that_does_not_fit_is_a_failed_row_and_the_others_are_answered(
    short, pictures, batch, decode
):
    ask, questions = Ask(max_new_tokens=1, decode=decode), ("ab", "too long a question", "cd")
    results = list(answer_all(short, None, asked(pictures, *questions), ask, batch_size=batch))
    assert [bool(result.error) for result in results] == [False, True, False]
    assert all(
        part in results[1].error
        for part in ("36 of its tokens", "the model has 64", "--keep", "--frames", "shorter")
    )
    longest = (
        len("too long a question") - len("ab") + results[0].tokens.text + results[0].tokens.visual
    )
    assert f"takes {longest} positions" in results[1].error


def test_pruned_it_fits_and_says_that_dense_would_not(short, pictures):
    few, ask = build_pruner("trimtokenator", {"keep": 8}), Ask(max_new_tokens=2)
    (result,) = answer_all(short, few, asked(pictures, "too long a question"), ask)
    assert (
        not result.error
        and "dense cannot answer it" in result.warnings[0]
        and "64" in result.warnings[0]
    )
    (other,) = answer_all(short, few, asked(pictures, "ab"), ask)
    assert other.warnings == ()
    # Inside the decoder nothing is dropped in front of the first layer.
    (inside,) = answer_all(
        short, build_pruner("fastv", {"keep": 8}), asked(pictures, "too long a question"), ask
    )
    assert "the model has 64" in inside.error


def test_compare_does_not_call_an_impossible_prompt_dense(short, pictures):
    pruners = [None, build_pruner("trimtokenator", {"keep": 8})]
    (comparison,) = compare_all(
        short, pruners, asked(pictures, "too long a question"), Ask(max_new_tokens=2)
    )
    dense, pruned = comparison.results
    assert "the model has 64" in dense.error and not pruned.error and pruned.warnings


def test_an_answer_ends_where_the_positions_end(short, pictures, monkeypatch):
    monkeypatch.setattr(type(short), "end_ids", ())
    (whole,) = answer_all(short, None, asked(pictures, "ab"), Ask(max_new_tokens=3))
    prompt = whole.tokens.text + whole.tokens.visual
    (cut,) = answer_all(short, None, asked(pictures, "ab"), Ask(max_new_tokens=40))
    assert (cut.finish, cut.tokens.generated) == (
        "length",
        64 - prompt + 1,
    ) and "64 positions end" in cut.warnings[0]
    monkeypatch.setattr(short, "num_positions", 4096)
    (free,) = answer_all(short, None, asked(pictures, "ab"), Ask(max_new_tokens=40))
    assert (
        free.tokens.generated == 40 and not free.warnings and free.answer.startswith(cut.answer[:3])
    )


def test_every_family_knows_its_positions_and_refuses_a_question_that_alone_is_longer(family):
    assert family.num_positions == family.preprocessor.num_positions == 4096
    began = time.perf_counter()
    with pytest.raises(SampleError, match=r"the question is too long: .* 4,096 positions"):
        family.prepare([picture(1, 4000, 3000)], "word and " * 22_000)
    for marks in ("</s>", "<|im_end|>", "<image", "<<<<", "[IMG]"):
        with pytest.raises(SampleError, match="too long"):
            family.prepare([], marks * (200_000 // len(marks)))
    assert time.perf_counter() - began < 20


def test_a_question_of_marks_that_just_fits_is_not_refused(adapter, monkeypatch):
    """The stand-ins that hide marks from the tokenizer are not counted."""
    question = "</s> " * 50
    rows = len(adapter.prepare([], question).input_ids)
    monkeypatch.setattr(adapter.preprocessor, "num_positions", rows)
    assert len(adapter.prepare([], question).input_ids) == rows


def test_positions_count_and_not_tokens_where_they_differ(tmp_path):
    """Under M-RoPE a picture of many tokens takes as many positions as its longer side has
    tokens.
    """
    qwen = load_model(str(FAMILIES["qwen2_vl"](tmp_path / "qwen")), device="cpu")
    picture(1, 300, 300).save(tmp_path / "p.png")
    sample = Sample(1, (tmp_path / "p.png",), question="?")
    (free,) = answer_all(qwen, None, [sample], Ask(max_new_tokens=1))
    tokens = free.tokens.text + free.tokens.visual
    qwen.num_positions = tokens - 10
    (fits,) = answer_all(qwen, None, [sample], Ask(max_new_tokens=1))
    assert free.tokens.visual > 30 and not fits.error and not fits.warnings
    qwen.num_positions = free.tokens.text
    for pruner in (None, build_pruner("random", {"keep": 4})):
        (lost,) = answer_all(qwen, pruner, [sample], Ask(max_new_tokens=1))
        assert f"the model has {free.tokens.text}" in lost.error


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2000, 1), (3, 603)])
def test_a_long_thin_picture_is_refused_before_the_processor_sees_it(family, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SampleError, match=f"{size[0]} x {size[1]} pixels .* crop it"):
        family.prepare([picture(1), Image.new("RGB", size)], "Why?")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("size", [(2, 400), (400, 2), (1, 1), (1, 150), (5, 900)])
def test_what_is_not_refused_is_answered_or_fails_alone(family, size, tmp_path):
    """No picture's shape may end a run."""
    paths = [tmp_path / name for name in ("thin.png", "fine.png")]
    for path, image in zip(paths, (Image.new("RGB", size, "red"), picture(1)), strict=True):
        image.save(path)
    samples = [Sample(number, (path,), question="?") for number, path in enumerate(paths)]
    thin, fine = answer_all(family, None, samples, Ask(max_new_tokens=1), batch_size=2)
    assert not fine.error
    assert not thin.error or len(thin.error) < 300
