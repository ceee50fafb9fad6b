"""The smallest budget within a loss: the arithmetic by hand, and the command on tiny models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtok_cli.cli import app
from trimtok_cli.commands.sweep import share_of
from trimtok_cli.commands.terminal.curve import bar, headline, table
from trimtok_cli.data import Comparison, Result, Sample, Seconds, Setting, TokenCounts
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation import compare
from trimtok_cli.evaluation.statistics import Interval
from trimtok_cli.evaluation.sweep import Sweep, budgets, choose

DENSE = "a red ring"


def result(sample: Sample, keep: int, answer: str, **more) -> Result:
    setting = Setting("m", str(keep)) if keep else Setting()
    kept = keep or 576
    return Result(
        sample,
        "?",
        answer,
        setting,
        TokenCounts(10, 576, kept, float(kept), 4),
        Seconds(encode=1.0, prefill=kept / 100, decode=2.0),
        finish="stop",
        **more,
    )


def swept(*answers: dict[int, str]) -> Sweep:
    """A sweep over samples, each with its answers by budget; 0 is dense, which says DENSE."""
    keeps = [0, *answers[0]]
    found = Sweep([result(Sample(0), keep, "").setting for keep in keeps], a_token=8)
    for number, said in enumerate(answers):
        sample = Sample(number)
        rows = [result(sample, keep, {0: DENSE, **said}[keep]) for keep in keeps]
        found.add(Comparison(sample, tuple(rows)))
    return found


def test_a_point_is_the_mean_over_samples():
    sweep = swept({8: "a red dot", 64: DENSE}, {8: DENSE, 64: DENSE})
    small, large, dense = sweep.points()
    assert [point.setting.keep for point in (small, large, dense)] == ["8", "64", "all"]
    # Two of three words in common are 2 * 2 / (3 + 3).
    assert small.words.value == pytest.approx((2 / 3 + 1) / 2) and small.exact.value == 0.5
    assert large.exact.value == 1.0 and large.exact.low == pytest.approx(0.025**0.5)
    assert small.loss("exact") == Interval(0.5, 0.0, 1.0)
    assert small.cache_bytes == 8 * (10 + 8) and small.total == pytest.approx(3.08)
    assert small.seconds.prefill == pytest.approx(0.08) and small.samples == 2


def test_a_sample_that_failed_counts_in_no_agreement():
    sweep = swept({8: DENSE})
    sample = Sample(9)
    broken = replace(result(sample, 8, ""), error="broken")
    sweep.add(Comparison(sample, (result(sample, 0, DENSE), broken)))
    small, dense = sweep.points()
    assert (small.samples, small.failed) == (1, 1) and (dense.samples, dense.failed) == (2, 0)


def points(losses: dict[int, tuple[float, float]]):
    """Points with these losses by words, each with the upper end of its interval."""
    made = swept({keep: DENSE for keep in losses}).points()
    return [
        replace(point, words=Interval(1 - low, 1 - high, 1.0))
        if point.setting != Setting()
        else point
        for point, (low, high) in zip(made, [*losses.values(), (0.0, 0.0)], strict=True)
    ]


def test_the_smallest_budget_is_one_of_which_no_larger_one_loses_more():
    """32 is within 1 % by luck: 64 is not."""
    found = points({32: (0.005, 0.01), 64: (0.02, 0.03), 128: (0.01, 0.02), 256: (0.0, 0.01)})
    choice = choose(found, 0.01, "words")
    names = [each and each.setting.keep for each in (choice.likely, choice.sure, choice.below)]
    assert names == ["128", "256", "64"]
    said = headline(found, choice, 0.01, "words")
    assert "--keep 128, 128 of 576 visual tokens; 1.0 % (0.0 to 2.0)" in said
    assert "--keep 64 2.0 % (0.0 to 3.0)" in said and said.endswith("1 samples, --keep 256.")


def test_where_no_budget_is_within_the_loss_it_is_said():
    found = points({32: (0.2, 0.3), 64: (0.1, 0.2)})
    choice = choose(found, 0.01, "words")
    assert (choice.likely, choice.sure) == (None, None) and choice.below.setting.keep == "64"
    assert headline(found, choice, 0.01, "words").startswith("No budget that was tried")
    within = choose(found, 0.1, "words")
    assert within.likely.setting.keep == "64" and within.sure is None
    assert "too few to be sure" in headline(found, within, 0.1, "words")


def test_budgets_begin_at_16_and_end_below_all():
    assert budgets(576) == [16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512]
    assert budgets(64) == [16, 23, 32, 45] and budgets(16) == []


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.02", 0.02), (" 5 %", 0.05), ("0", 0)]
)
def test_a_loss_is_a_share(text, share):
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["1", "100%", "-1%", "little", ""])
def test_what_is_no_loss_is_refused(text):
    with pytest.raises(UsageError, match="share below 1"):
        share_of(text)


def test_a_bar_has_eighths():
    assert (bar(1.0, 4), bar(0.5, 4), bar(0.0, 4), bar(0.53125, 4)) == ("████", "██", "", "██▏")


def sweep(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done


def test_the_command_runs_the_tower_once_a_sample_and_writes_the_curve(
    llava_folder, pictures, monkeypatch
):
    encoded, real = [], compare.encode

    def encode(adapter, prepared, **more):
        encoded.append(prepared[0].sample.names)
        return real(adapter, prepared, **more)

    monkeypatch.setattr(compare, "encode", encode)
    line = [*pictures[:3], "--model", llava_folder, "--max-new-tokens", 4, "--max-loss", "20%"]
    done = sweep(*line, "--keep", "2,9999", "--measure", "exact", "-o", "o")
    assert len(encoded) == 3 + 2, "the first sample once more for the warm-up, and once after it"
    document = json.loads(Path("o/sweep.json").read_text())
    few, whole, dense = document["points"]
    assert (few["setting"]["keep"], few["kept"], dense["kept"]) == ("2", 2, whole["kept"])
    assert whole["exact"]["value"] == whole["words"]["value"] == 1.0
    assert (
        few["samples"] == 3
        and not document["interrupted"]
        and document["said"] in " ".join(done.stderr.split())
    )
    assert Path("o/sweep.png").read_bytes().startswith(b"\x89PNG")
    sweep(*line, "--keep", 2, "-o", "o", code=2)


def test_without_keep_the_budgets_follow_the_picture(llava_folder, pictures):
    sweep(pictures[0], "--model", llava_folder, "--max-new-tokens", 2, "-o", "o")
    document = json.loads(Path("o/sweep.json").read_text())
    *pruned, dense = document["points"]
    assert [point["kept"] for point in pruned] == budgets(round(dense["kept"])) != []


REFUSED = {
    "--method dense": "no budget to try",
    "--keep all": "no budget to try",
    "--keep 0": "--keep",
    "--measure cider": "--measure must be one of words, exact",
    "--max-loss 200%": "--max-loss",
    "--method trimtokenato": "did you mean trimtokenator",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_swept_is_refused_before_a_model_is_loaded(given, bare_model, pictures):
    done = sweep(pictures[0], "--model", bare_model, "-o", "o", *given.split(), code=2)
    assert REFUSED[given] in done.stderr and not Path("o").exists()


def test_the_table_names_a_mean_over_layers_that_is_not_what_is_kept():
    from rich.console import Console

    (point, _) = swept({8: DENSE}).points()
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table([replace(point, layer_mean=192.0)], "words", on_cpu=True))
    assert "8 (layers' mean 192)" in captured.get() and "on a CPU" in captured.get()
