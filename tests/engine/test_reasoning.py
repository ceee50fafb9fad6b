"""Reasoning that is left out of answers, in a run and in a comparison."""

from pathlib import Path

import pytest
from PIL import Image

from trimtok_cli import Ask, Sample, answer_all
from trimtok_cli.data import Result
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.models.loading import load_model
from trimtok_cli.reasoning import answer_alone


@pytest.mark.parametrize(
    ("said", "prompt", "left"),
    [
        ("A dog.", "", "A dog."),
        ("<think>a\nb</think>\n\nA dog.", "", "A dog."),
        ("a\nb</think>\nA dog.", "USER: ASSISTANT: <think>\n", "A dog."),
        ("a <think>b</think> c</think>A dog.", "<think>", "A dog."),
        ("<think>a</think>A <think>b</think>dog.", "", "A dog."),
        ("<think></think>", "", ""),
        ("a</think>", "<think>", ""),
        ("<think>a", "", None),
        ("a, b, ", "<think>\n", None),
        ("<think>a</think>A dog. <think>b", "", None),
        ("a</think><think>b", "<think>", None),
    ],
)
def test_reasoning_is_left_out_and_must_have_an_end(said, prompt, left):
    result = answer_alone(Result(Sample("a"), "?", said, finish="stop", prompt_sent=prompt))
    if left is None:
        assert (result.answer, result.finish) == ("", "error")
        assert "--max-new-tokens" in result.error and result.error_class == "SampleError"
    else:
        assert (result.answer, result.finish, result.error) == (left, "stop", "")


def test_a_failure_stays_what_it_was():
    failed = Result(Sample("a"), "?", error="the file is empty", prompt_sent="<think>")
    assert answer_alone(failed) is failed


@pytest.mark.parametrize("strip", [True, False])
def test_runs_and_comparisons_leave_it_out_if_it_is_asked_for(
    strip, llava_folder, tmp_path, monkeypatch
):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    sample = Sample("a", images=(Path(tmp_path / "a.png"),), names=("a.png",))
    ask = Ask("What?", max_new_tokens=2, strip_reasoning=strip)
    llava = load_model(str(llava_folder), device="cpu", dtype="float32")
    monkeypatch.setattr(type(llava), "decode", lambda *_: "<think>hm</think> A dog.")
    expected = "A dog." if strip else "<think>hm</think> A dog."
    assert [each.answer for each in answer_all(llava, None, [sample], ask)] == [expected]
    (comparison,) = compare_all(llava, [None], [sample], ask)
    assert [each.answer for each in comparison.results] == [expected]
