"""The summary of a comparison and its headline: counts, intervals, and what may be said of them."""

import math

import pytest

from tests.support.comparisons import DENSE, FAST, make
from trimtok_cli.commands.run import closing_line
from trimtok_cli.data import Comparison, Kept, Result, Sample, Seconds, Setting, TokenCounts
from trimtok_cli.evaluation.headline import explain
from trimtok_cli.evaluation.proportion import wilson
from trimtok_cli.evaluation.summary import figures, groups, summarize
from trimtok_cli.evaluation.words import agreement, diff
from trimtok_cli.outputs.manifest import RunSummary
from trimtok_cli.units import duration, pace


def test_summarize_counts():
    three = Seconds(encode=0.05, prefill=0.04, decode=0.05)
    comparisons = [
        make("A red cat.", "A red cat.", "a dog"),
        make("A red cat", " A red cat", "a red CAT. ", fast=three, generated=(4, 6)),
        make("blue", "a red cat", None, sample=Sample("two")),
        make(None, "yes", "yes"),
    ]
    dense, first, second = summarize(comparisons)
    assert (dense.label, first.label, second.label) == (
        "dense",
        "trimtokenator@2",
        "trimtokenator@2",
    )
    assert [row.samples for row in (dense, first, second)] == [3, 3, 2]
    assert [row.failed for row in (dense, first, second)] == [1, 1, 2]
    assert [row.same for row in (dense, first, second)] == [3, 2, 0]
    assert [(row.matched, row.referenced) for row in (dense, first, second)] == [
        (2, 2),
        (2, 2),
        (1, 2),
    ]
    assert first.agreement == pytest.approx(2 / 3) and dense.agreement == 1
    assert [(row.lost, row.gained) for row in (dense, first, second)] == [(0, 0), (0, 0), (1, 0)]
    assert (first.median.visual, first.median.kept, first.median.generated) == (16, 2, 4)
    assert first.median.seconds.prefill == 0.02 and first.median.total == pytest.approx(0.145)
    assert (
        first.dense.seconds == DENSE
        and first.prefill_speedup == pytest.approx(4)
        and dense.total_speedup == 1
    )
    assert second.median.seconds.prefill == pytest.approx(0.03) and second.median.generated == 5


def test_settings_are_told_apart_by_their_place():
    rows = summarize(
        [make("a", "a", "a", kept=((1, 2, 3), (4,))), make("a", "a", "a", kept=((1,), (4,)))]
    )
    assert [row.label for row in rows] == ["dense", "trimtokenator@3", "trimtokenator@1"]


def test_all_failed_has_rows_without_numbers():
    rows = summarize([make(None, None)])
    assert [(row.label, row.samples, row.failed) for row in rows] == [
        ("dense", 0, 1),
        ("trimtokenator@2", 0, 1),
    ]
    assert rows[1].prefill_speedup is None and rows[1].total_speedup is None
    assert explain(rows).startswith("No sample was answered")


HEAD = "With 2 of 16 visual tokens "
TAIL = " trimtokenator@2 gives the answer of dense on 1 of 1 sample (95 % interval: 21 to 100 %)."


@pytest.mark.parametrize(
    ("fast", "sentence"),
    [
        (
            FAST,
            "prefill is 4.0× faster, the whole sample 1.4× faster: "
            "the vision tower (34 %) and decode (34 %) take as long as before.",
        ),
        (
            Seconds(encode=0.01, prefill=0.01, decode=0.05),
            "prefill is 8.0× faster, the whole sample 2.9× faster: "
            "decode is 71 % of what is left, so shorter answers would gain more.",
        ),
        (
            Seconds(encode=0.05, prefill=0.08, decode=0.05, prune=0.1),
            "prefill is as fast as dense, the whole sample 1.4× slower: pruning takes 100 ms "
            "and prefill saves nothing.",
        ),
        (
            Seconds(load=0.01, prepare=0.01, encode=0.05, prefill=0.04, decode=0.05, prune=0.04),
            "prefill is 2.0× faster, the whole sample as fast as dense: pruning takes 40.0 "
            "ms and prefill saves 40.0 ms.",
        ),
        (
            Seconds(encode=0.05, prefill=0.04, decode=0.2),
            "prefill is 2.0× faster, the whole sample 1.5× slower: "
            "decode takes 200 ms instead of 50.0 ms, for 8 tokens instead of 4.",
        ),
        (
            DENSE,
            "prefill and the whole sample are as fast as dense: prefill is 40 % of what is left.",
        ),
        (
            Seconds(encode=0.05),
            "the whole sample is 4.0× faster: the vision tower (100 %) takes as long as before.",
        ),
        (Seconds(), "the time was not measured."),
    ],
)
def test_explain(fast, sentence):
    said = explain(summarize([make("a", "a", fast=fast, generated=(4, 8))]))
    assert said == HEAD + sentence + TAIL


def test_explain_takes_the_setting_that_keeps_fewest_and_dense_alone():
    many = make("a", "a", "a", kept=((1, 2, 3), (4,)))
    assert explain(summarize([many])).startswith("With 1 of 16 visual tokens")
    assert (
        explain(summarize([make("a")]))
        == "Only dense answered: 200 ms a sample, 40 % of it prefill."
    )
    assert explain(summarize([make("a", dense=Seconds())])).startswith(
        "No sample was answered both"
    )


def test_durations_and_paces():
    assert [duration(s) for s in (0, 0.0016, 0.09996, 0.4567, 0.9996, 9.99, 61.26)] == [
        "0.0 ms",
        "1.6 ms",
        "100 ms",
        "457 ms",
        "1.00 s",
        "9.99 s",
        "61.3 s",
    ]
    assert [pace(r) for r in (None, 1.04, 2.0, 0.5)] == [
        "",
        "as fast as dense",
        "2.0× faster",
        "2.0× slower",
    ]


@pytest.mark.parametrize(
    ("finishes", "said"),
    [("stop", ""), ("length", "1 answer was"), ("length length stop", "2 answers were")],
)
def test_what_was_cut_off_is_counted_with_both_of_its_causes(finishes, said):
    summary = RunSummary(Setting())
    for finish in finishes.split():
        summary.add(Result(Sample("a"), "?", answer="red", finish=finish))
    line = closing_line(summary, "images")
    assert ("cut off" in line) == bool(said)
    assert not said or line.endswith(
        f"; {said} cut off at --max-new-tokens or where the model's positions end"
    )


def inside(setting, kept, mean, answer="a") -> Result:
    """A result of a method that prunes within the decoder."""
    return Result(
        Sample("one", question="?"),
        "?",
        answer,
        setting,
        TokenCounts(9, 16, kept, mean, 4, ((2, 8), (5, kept))),
        FAST,
        kept=(Kept(2, tuple(range(8))), Kept(5, tuple(range(kept)))),
    )


def beside(*results: Result) -> Comparison:
    dense = make("a", sample=results[0].sample).results[0]
    return Comparison(results[0].sample, (dense, *results))


def test_the_headline_passes_over_what_keeps_nothing_and_says_the_layer_mean():
    nothing, some = inside(Setting("vtw", "2"), 0, 7.5), inside(Setting("fastv", "2"), 2, 8.0)
    said = explain(summarize([beside(nothing, some)]))
    assert (
        said.startswith("With a layer mean of 8 of 16 visual tokens prefill") and "fastv@2" in said
    )
    alone = explain(summarize([beside(nothing)]))
    assert alone.startswith("Every setting drops all visual tokens") and " 0 of" not in alone


def test_the_headline_takes_the_least_layer_mean_and_not_the_fewest_at_the_end():
    fastv, early = inside(Setting("fastv", "2"), 2, 9.0), make("a", "b", kept=((1, 2, 3),))
    said = explain(summarize([beside(fastv, early.results[1])]))
    assert said.startswith("With 3 of 16") and "on 0 of 1 sample (95 % interval: 0 to 79 %)" in said


def test_stages_and_layer_means_are_in_the_rows_and_the_figures():
    row = summarize([beside(inside(Setting("fastv", "2"), 2, 9.0))])[1]
    assert row.median.layer_mean == 9.0 and row.median.stages == ((2, 8), (5, 2))
    found = figures(row)
    assert (found["layer_mean"], found["stages"]) == (9.0, [[2, 8], [5, 2]])
    assert (found["same"], found["same_share"]) == (1, 1.0) and found["same_low"] < 0.25
    assert found["prefill_ms"] == 20.0 and "matched" not in found


def test_figures_of_a_setting_without_samples_hold_no_numbers_of_them():
    row = summarize([make("a", None)])[1]
    assert figures(row) == {
        "setting": "trimtokenator@2",
        "method": "trimtokenator",
        "keep": "2",
        "changes": "",
        "samples": 0,
        "failed": 1,
    }


@pytest.mark.parametrize(
    ("share", "samples"), [(0.0, 10), (1.0, 10), (0.85, 40), (0.5, 1), (0.3, 1000)]
)
def test_wilsons_interval_is_where_the_score_test_accepts(share, samples):
    """Its ends are the p with (share - p)^2 = z^2 p (1 - p) / n, found here by bisection."""

    def accepts(p: float) -> bool:
        return (share - p) ** 2 <= 1.959964**2 * p * (1 - p) / samples

    def end(outer: float) -> float:
        inner = share if 0 < share < 1 else abs(share - 1e-9)
        if accepts(outer):
            return outer
        for _ in range(100):
            middle = (inner + outer) / 2
            inner, outer = (middle, outer) if accepts(middle) else (inner, middle)
        return inner

    found = wilson(share, samples)
    assert found.low == pytest.approx(end(0.0) if share else 0.0, abs=1e-6)
    assert found.high == pytest.approx(end(1.0) if share < 1 else 1.0, abs=1e-6)
    assert 0 <= found.low <= share <= found.high <= 1 and found.high - found.low > 0


def test_no_samples_say_nothing():
    assert (wilson(0.0, 0).low, wilson(0.0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("dense", "pruned", "share"),
    [
        ("A red ring.", "a red ring", 1.0),
        ("a ring, a cross", "a ring a cross", 1.0),
        ("a red ring", "a blue ring", 2 / 3),
        ("", "", 1.0),
        ("yes", "", 0.0),
        ("!", "?", 0.0),
    ],
)
def test_words_agree_but_for_case_and_signs_around_them(dense, pruned, share):
    assert agreement(dense, pruned) == pytest.approx(share)


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [
        ("a red cat", "a blue cat"),
        ("a red cat", "a cat"),
        ("a cat", " a cat\nsits \n\n down"),
        ("", "yes"),
        ("yes", ""),
        ("A ring, red.", "a ring red"),
        ("  ", "\t"),
    ],
)
def test_the_pieces_of_a_diff_are_the_two_answers(dense, pruned):
    pieces = diff(dense, pruned)
    assert "".join(piece.pruned for piece in pieces) == (pruned if pruned.split() else "")
    assert " ".join("".join(piece.dense for piece in pieces).split()) == " ".join(dense.split())
    assert any(not piece.same for piece in pieces) == (agreement(dense, pruned) < 1)


def test_a_diff_shows_denses_words_where_others_stand():
    (first, second, third) = diff("a red cat", "a blue cat")
    assert (first.same, second.same, third.same) == (True, False, True)
    assert (second.dense.strip(), second.pruned.strip()) == ("red", "blue")


def test_groups_are_of_columns_that_tell_samples_apart():
    def one(task, number):
        sample = Sample(
            number, question="?", answers=("a",), extra={"task": task, "n": number, "answer": "a"}
        )
        return make("a", "a" if task == "x" else "b", sample=sample)

    found = groups([one("x", 1), one("y", 2), one("x", 3)])
    assert list(found) == ["task"] and list(found["task"]) == ["x", "y"]
    assert [found["task"][value][1].matched for value in "xy"] == [2, 0]
    assert [found["task"][value][1].samples for value in "xy"] == [2, 1]
    assert math.isclose(found["task"]["x"][1].matched_share.value, 1.0)


def test_loops_are_counted_at_the_end_and_in_the_counts():
    summary = RunSummary(Setting())
    for answer in ("red", "red and " * 40, "blue and " * 40):
        summary.add(Result(Sample("a"), "?", answer=answer, finish="length"))
    summary.add(Result(Sample("a"), "?", error="bad", answer="red and " * 40))
    assert closing_line(summary, "images").endswith("; 2 answers end in a loop")
    counts = summary.counts()["counts"]
    assert counts["cut_off"] == 3 and counts["loops"] == 2
