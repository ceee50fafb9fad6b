"""The table of a grid: its arithmetic by hand, and the files that show it."""

import csv
import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from trimtok_cli.data import Sample, Setting
from trimtok_cli.evaluation.datasets.base import Scores
from trimtok_cli.evaluation.datasets.jsonl import JSONL
from trimtok_cli.evaluation.grid_scores import Scorer
from trimtok_cli.evaluation.grid_table import Cell, Row, document
from trimtok_cli.evaluation.statistics import mcnemar
from trimtok_cli.outputs.grid_files import comma_separated, markdown, page, write_tables

SAMPLES = [Sample(n, (Path(f"{n}.png"),), (f"{n}.png",), answers=("yes",)) for n in range(10)]


def answers(right: int, asked: int = 10, failed: int = 0) -> list[str | None]:
    """The first `right` answers are right, the next ones wrong, then failed, then not asked."""
    said = ["yes"] * right + ["no"] * (asked - right - failed) + [""] * failed
    return [*said, *[None] * (len(SAMPLES) - asked)]


def without_each(pairs) -> Scores:
    """Scores whose headline no sample has alone."""
    scores = JSONL.score(pairs)
    return Scores(scores.main, scores.values)


def row(model: str, setting: Setting, scorers: dict, texts: dict, mean: float = 0, **facts) -> Row:
    kept = 576 if setting == Setting() else int(setting.keep)
    cells = {
        name: Cell(
            samples=10,
            answered=sum(text is not None for text in texts[name]),
            failed=texts[name].count(""),
            dense=576,
            kept=kept,
            layer_mean=mean or kept,
            ms={"total": 10.0 * kept},
            device="cpu",
            score=scorers[name].score(texts[name]),
            **facts,
        )
        for name in texts
    }
    label = " ".join(
        filter(None, (setting.method, setting.changes.replace("counts=layer-mean", "")))
    )
    return Row(model, setting, label.strip(), cells)


@pytest.fixture
def table() -> dict:
    scorers = {"a": Scorer(JSONL, SAMPLES), "b": Scorer(JSONL, SAMPLES)}
    level = {"counts": "layer-mean"}
    rows = [
        row("m", Setting(), scorers, {"a": answers(10), "b": answers(8)}),
        row("m", Setting("p", "64"), scorers, {"a": answers(9), "b": answers(4)}),
        row("m", Setting("f", "64"), scorers, {"a": answers(8), "b": answers(6)}, mean=192.0),
        row("m", Setting("f", "64", params=level), scorers, {"a": answers(7), "b": answers(2)}),
        row("m", Setting("p", "128"), scorers, {"a": answers(9), "b": answers(6, asked=8)}),
    ]
    published = {"dense": {"a": 99.0}, "p@64": {"b": 41.5}}
    return {"title": "T", **document(rows, scorers, reference="f", published=published)}


def test_scores_shares_and_averages_are_those_worked_out_by_hand(table):
    dense, p, f, *_ = table["rows"]
    assert [r["cells"]["a"]["score"] for r in table["rows"]] == [100, 90, 80, 70, 90]
    assert p["cells"]["b"]["relative"] == pytest.approx(50) and dense["average"] == 100
    assert p["average"] == pytest.approx((90 + 50) / 2) and f["average"] == pytest.approx(77.5)
    assert (p["kept"], f["kept"], f["layer_mean"], p["ms"]) == (64, 64, 192, 640)
    assert dense["cells"]["a"]["published"] == 99.0 and p["cells"]["b"]["published"] == 41.5
    assert p["cells"]["a"]["published"] is None
    # All right: the exact interval of ten pictures.
    assert dense["cells"]["a"]["low"] == pytest.approx(100 * 0.025**0.1)


def test_a_part_of_the_samples_is_said_to_be_one_and_has_no_share(table):
    part = table["rows"][4]["cells"]["b"]
    assert (part["answered"], part["samples"], part["score"]) == (8, 10, 75.0)
    assert part["relative"] is None and table["rows"][4]["average"] is None
    # Dense is right on the first eight, and six of them are.
    assert part["against_dense"]["difference"] == pytest.approx(-25)
    assert (part["against_dense"]["wins"], part["against_dense"]["losses"]) == (0, 2)
    assert "(8 of 10)" in markdown(table) and "p@128 is not over (m): b." in markdown(table)


def test_rows_are_tested_against_dense_and_the_reference_of_their_block(table):
    dense, p, f, level, part = table["rows"]
    against = p["cells"]["b"]["against_dense"]
    assert against["difference"] == pytest.approx(-40) and against["test"] == "mcnemar"
    assert against["p"] == mcnemar(0, 4)
    assert p["cells"]["a"]["against_reference"]["difference"] == pytest.approx(10)
    assert p["cells"]["a"]["against_reference"]["setting"] == "f@64"
    assert f["cells"]["a"]["against_reference"] is None, "it is the reference"
    assert level["cells"]["a"]["against_reference"] is None, "so is it, in its own block"
    assert part["cells"]["a"]["against_reference"] is None, "no f with 128"
    assert dense["cells"]["a"]["against_dense"] is None


def test_blocks_are_budgets_and_the_best_of_each_is_marked(table):
    found = [(b["keep"], b["counts"], b["rows"]) for b in table["blocks"]]
    assert found == [
        ("", "final", [0]),
        ("64", "final", [1, 2]),
        ("128", "final", [4]),
        ("64", "layer-mean", [1, 3]),
    ]
    plain, last, level = (block["best"] for block in table["blocks"][1:])
    assert plain == {"a": [1], "b": [2], "average": [2]}
    assert level == {"a": [1], "b": [1], "average": [1]}
    assert last == {"a": [4], "b": [], "average": []}, "what is not over is no candidate"


def test_the_reference_is_the_method_itself_and_not_a_variant_of_it():
    scorer = {"a": Scorer(JSONL, SAMPLES)}
    rows = [
        row("m", Setting(), scorer, {"a": answers(10)}),
        row("m", Setting("p", "64", params={"order": "other"}), scorer, {"a": answers(2)}),
        row("m", Setting("p", "64"), scorer, {"a": answers(6)}),
        row("m", Setting("q", "128"), scorer, {"a": answers(5)}),
    ]
    for name, others in (
        ("p", [None, "p@64", None, None]),
        ("p@64", ["p@64", "p@64", None, "p@64"]),
    ):
        found = document(rows, scorer, reference=name)["rows"]
        against = [each["cells"]["a"]["against_reference"] for each in found]
        assert [each and each["setting"] for each in against] == others


def test_of_equal_scores_all_are_the_best():
    scorer = {"a": Scorer(JSONL, SAMPLES)}
    rows = [row("m", Setting(n, "64"), scorer, {"a": answers(6)}) for n in ("p", "q")]
    assert document(rows, scorer)["blocks"][0]["best"]["a"] == [0, 1]


def test_a_metric_of_the_whole_has_halves():
    scorers = {"a": Scorer(replace(JSONL, score=without_each), SAMPLES)}
    rows = [
        row("m", Setting(), scorers, {"a": answers(10)}),
        row("m", Setting("p", "64"), scorers, {"a": answers(5)}),
    ]
    cell = document(rows, scorers)["rows"][1]["cells"]["a"]
    assert cell["low"] < cell["score"] == 50 < cell["high"]
    assert cell["against_dense"]["test"] == "halves"
    assert cell["against_dense"]["difference"] == pytest.approx(-50)
    assert cell["against_dense"]["p"] < 0.05


def test_several_seeds_are_their_mean():
    scorer = Scorer(JSONL, SAMPLES)
    score = scorer.score(answers(4), answers(8), [*answers(6)[:-1], None])
    assert score.count == 9 and score.value == pytest.approx(100 * 18 / 27)
    assert score.each[:4].tolist() == [100.0] * 4 and score.each[8] == 0
    assert scorer.score(answers(0, asked=0)) is None


def test_another_metric_than_the_headline_may_be_the_column():
    scorer = Scorer(JSONL, SAMPLES)
    score = scorer.score(answers(5), metric="anls")
    assert score.metric == "anls" and score.each is None
    from trimtok_cli.errors import UsageError

    with pytest.raises(UsageError, match="did you mean anls"):
        scorer.score(answers(5), metric="anl")


def test_two_models_have_a_dense_each():
    scorer = {"a": Scorer(JSONL, SAMPLES)}
    rows = [
        row(model, setting, scorer, {"a": answers(right)})
        for model, right in (("m", 10), ("n", 8))
        for setting in (Setting(), Setting("p", "64"))
    ]
    found = document(rows, scorer)
    assert [each["average"] for each in found["rows"]] == [100, 100, 100, 100]
    assert [block["model"] for block in found["blocks"]] == ["m", "m", "n", "n"]


def test_markdown_has_dense_on_top_and_the_best_in_bold(table):
    lines = markdown(table).splitlines()
    assert lines[4] == "| method | tokens | layer mean | ms (CPU) | a | b | average |"
    assert lines[6].startswith("| dense | 576 | 576 | 5760.0 | 100.00 [")
    assert lines[7].startswith("| *keep 64* |")
    assert lines[8].startswith("| p | 64 | 64 | 640.0 | **90.00 [") and lines[8].endswith(
        "| 70.0 % |"
    )
    assert re.search(
        r"\| f \| 64 \| 192 \| 640\.0 \| 80\.00 .* \*\*60\.00 .*\| \*\*77\.5 %\*\* \|", lines[9]
    )
    assert lines[10].startswith("| *keep 128* |")
    assert lines[12].startswith("| *keep 64, the mean over layers* |")
    assert "Difference to f, on the same samples:" in lines
    assert len({line.count("|") for line in lines[4:14]}) == 1


def test_csv_has_a_line_for_each_cell(table):
    rows = list(csv.DictReader(StringIO(comma_separated(table))))
    assert len(rows) == 10
    b = next(each for each in rows if each["setting"] == "p@64" and each["column"] == "b")
    assert (b["score"], b["relative"], b["published"]) == ("40.0", "50.0", "41.5")
    assert float(b["against_dense_difference"]) == pytest.approx(-40)
    assert (b["total_ms"], b["device"], b["against_reference_test"]) == ("640.0", "cpu", "mcnemar")


def test_the_page_escapes_what_others_wrote(table):
    table["title"] = "<script>alert(1)</script>"
    table["rows"][1]["label"] = "<b>p</b>"
    text = page(table)
    assert "<script>" not in text and "&lt;b&gt;p&lt;/b&gt;" in text
    assert text.count('class="best"') == 7 and "keep 64, the mean over layers" in text


def test_all_four_files_are_written(table, tmp_path):
    write_tables(table, tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["blocks"] == table["blocks"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "table.csv",
        "table.html",
        "table.json",
        "table.md",
    ]


def test_a_cell_that_could_not_run_says_why_and_has_no_score():
    scorer = {"a": Scorer(JSONL, SAMPLES)}
    failed = Cell(samples=10, error="f cannot run on this model.")
    rows = [
        row("m", Setting(), scorer, {"a": answers(10)}),
        Row("m", Setting("f", "64"), "f", {"a": failed}),
    ]
    found = {"title": "T", **document(rows, scorer)}
    text = markdown(found)
    assert "| f |  |  |  | failed |  |" in text
    assert "- f@64 has no score: f cannot run on this model (m): a." in text
    assert found["blocks"][1]["best"] == {"a": [], "average": []}
