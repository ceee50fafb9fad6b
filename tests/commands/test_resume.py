"""Going on with a run: what is asked again, what is refused, and what a complete run costs.

The engine is a stand-in that answers at once; all else is the program itself.
"""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

import trimtok_cli
from tests.commands.test_cli import rows
from tests.outputs.test_survives import line, repair
from tests.support import stub_engine
from tests.support.stub_engine import call, contents
from trimtok_cli.bounds import facts_of, flag, kinds_of
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import ModelError
from trimtok_cli.outputs.fingerprint import MAY_CHANGE

ROOT = Path(__file__).parents[2]

SETTINGS = {field.name: field for field in dataclasses.fields(RunConfig) if field.init}


@pytest.fixture
def begun(loaded, bare_model, inputs) -> list[object]:
    """The command of a run that is over, with two failed items."""
    arguments = line("caption", inputs, bare_model)
    assert call(*arguments).exit_code == 3
    loaded.clear()
    return arguments


def words(name: str) -> list[str]:
    """A setting as options, with a value that is not its default."""
    field = SETTINGS[name]
    option, kinds, facts = flag(field), kinds_of(field.type), facts_of(field)
    if dict in kinds:
        return [option, "a=1"]
    if bool in kinds:
        return [option]
    if facts.choices:
        return [option, next(each for each in facts.choices if each != field.default)]
    if int in kinds or float in kinds:
        return [option, "0.5" if name in ("top_p", "temperature") else "7"]
    return [option, "7"]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in MAY_CHANGE])
def test_every_setting_that_may_change_an_answer_is_held_against_the_run(
    name,
    begun,
    loaded,
    bare_model,
    inputs,
    tmp_path,
):
    before = contents(Path("o"))
    changed = words(name)
    if name in ("model", "clip_text"):
        shutil.copytree(bare_model, tmp_path / "other")
        changed = [flag(SETTINGS[name]), "./other"]
    done = call(*begun, *changed)
    assert done.exit_code == 2 and f"{flag(SETTINGS[name])} was" in done.stderr, done.stderr
    assert "--existing overwrite" in done.stderr and len(done.stderr.splitlines()) == 1
    assert contents(Path("o")) == before and not loaded
    if name not in ("model", "clip_text"):
        assert call(*begun, *changed, "--existing", "overwrite").exit_code == 3


@pytest.fixture
def any_engine(monkeypatch):
    """Engines need not be installed: nothing is left to answer."""
    monkeypatch.setattr("trimtok_cli.commands.run.check_engine", lambda config: None)


@pytest.mark.parametrize("name", sorted(MAY_CHANGE - {"limit"}))
def test_what_changes_the_speed_alone_may_change(name, begun, loaded, any_engine):
    assert name in SETTINGS
    done = call(*begun, *words(name), "--keep-failed")
    assert done.exit_code == 3 and not loaded and "error" not in done.stderr


def test_another_engine_may_go_on_with_greedy_answers_and_not_with_sampled_ones(
    begun, loaded, any_engine
):
    assert call(*begun, "--engine", "vllm", "--keep-failed").exit_code == 3
    manifest = json.loads(Path("o/run.json").read_text())
    assert manifest["engine"] == {"name": "local", "version": trimtok_cli.__version__}
    manifest["generation"]["do_sample"] = {"value": True, "from": "flag"}
    Path("o/run.json").write_text(json.dumps(manifest) + "\n")
    before = contents(Path("o"))
    done = call(*begun, "--engine", "vllm", "--keep-failed")
    assert done.exit_code == 2 and "--engine was local and is vllm, and answers" in done.stderr
    assert contents(Path("o")) == before and not loaded


def test_every_difference_is_named_with_both_values(begun):
    done = call(*begun, "--keep", 9, "--prompt", "Why?")
    assert "--keep was 11.1% and is 9; --prompt was Describe the image" in done.stderr
    assert "and is Why?" in done.stderr


@pytest.mark.parametrize("change", ["a weight", "a setting", "one file more"])
def test_a_model_folder_that_was_changed_is_another_model(change, begun, bare_model):
    if change == "a weight":
        (bare_model / "model.safetensors").write_bytes(bytes(range(255, -1, -1)))
    elif change == "a setting":
        (bare_model / "config.json").write_text('{"a": 1}')
    else:
        (bare_model / "generation_config.json").write_text("{}")
    done = call(*begun)
    assert done.exit_code == 2 and "the files of --model are not the same" in done.stderr


def test_what_the_library_never_reads_makes_no_other_model(begun, bare_model):
    (bare_model / "README.md").write_text("mine")
    os.utime(bare_model / "model.safetensors", (1, 1))
    assert call(*begun).exit_code == 3


@pytest.mark.parametrize("fact", ["commit", "dtype"])
def test_a_model_that_is_another_one_when_it_is_loaded_is_refused(fact, begun, monkeypatch):
    from trimtok_cli.commands import run

    before = contents(Path("o"))
    now = {"name": "m", "commit": "local", "dtype": "float32"} | {fact: "other"}
    monkeypatch.setattr(run, "describe", lambda _: now)
    done = call(*begun)
    assert done.exit_code == 2 and "and is other" in done.stderr and contents(Path("o")) == before


def test_a_new_version_of_a_library_is_told_and_not_refused(begun):
    manifest = json.loads(Path("o/run.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    Path("o/run.json").write_text(json.dumps(manifest))
    done = call(*[each for each in begun if each != "-q"])
    assert done.exit_code == 3 and "since the run began, torch was 1.0" in done.stderr


def test_failed_items_are_tried_again_and_success_takes_their_place(
    begun,
    loaded,
    inputs,
):
    failed = rows(Path("o/errors.jsonl"))
    assert [row["image"] for row in failed] == ["p2.png", "p5.png"]
    assert failed[0]["error_class"] == "MediaError" and failed[0]["error"] == "p2.png is empty"
    (inputs / "p5.png").write_text("now")
    before = rows(Path("o/answers.jsonl"))
    assert call(*begun).exit_code == 3
    found = rows(Path("o/answers.jsonl"))
    assert [row["image"] for row in found] == [f"p{number}.png" for number in range(1, 7)]
    assert [row["metadata"]["status"] for row in found] == ["ok", "error", *["ok"] * 4]
    del found[4], before[4]
    assert found == before
    assert [row["image"] for row in rows(Path("o/errors.jsonl"))] == ["p2.png"]
    counts = json.loads(Path("o/run.json").read_text())["counts"]
    assert (counts["done"], counts["failed"]) == (5, 1)
    repair(inputs)
    assert call(*begun).exit_code == 0
    assert not Path("o/errors.jsonl").exists() and len(loaded) == 2
    assert len({row["answer_id"] for row in rows(Path("o/answers.jsonl"))}) == 6


def test_what_failed_is_left_alone_where_that_is_asked_for(begun, loaded, inputs):
    before = contents(Path("o"))
    repair(inputs)
    done = call(*[each for each in begun if each != "-q"], "--keep-failed")
    assert done.exit_code == 3 and not loaded and contents(Path("o")) == before
    assert "nothing to do: 6 images are in o/answers.jsonl, 2 of them failed" in done.stderr


def test_only_what_failed_is_tried_again_where_that_is_asked_for(
    begun,
    loaded,
    inputs,
):
    repair(inputs)
    (inputs / "p3b.png").write_text("new")
    assert call(*begun, "--only-failed").exit_code == 0
    assert [row["image"] for row in rows(Path("o/answers.jsonl"))] == [
        f"p{number}.png" for number in range(1, 7)
    ]
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is True, "one is not answered"
    assert call(*begun, "--only-failed").exit_code == 0 and len(loaded) == 1
    assert call(*begun).exit_code == 0
    assert [row["image"] for row in rows(Path("o/answers.jsonl"))][2:4] == ["p3.png", "p3b.png"]
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is False


CONTRADICTIONS = {
    "--existing nothing": "--existing must be one of resume, overwrite, fail",
    "--existing resum": "did you mean resume?",
    "--existing fail --overwrite": "contradict",
    "--keep-failed --only-failed": "contradict",
    "--only-failed --overwrite": "without --overwrite",
    "--only-failed -o new": "no answers of an earlier run",
    "--only-failed -o -": "no answers of an earlier run",
    "--existing fail": "o/answers.jsonl is already there",
}


@pytest.mark.parametrize("given", CONTRADICTIONS)
def test_options_that_cannot_be_meant_are_refused(given, begun, loaded):
    before = contents(Path("o"))
    done = call(*begun, *given.split())
    assert done.exit_code == 2 and CONTRADICTIONS[given] in done.stderr and not loaded
    assert contents(Path("o")) == before and not Path("new").exists()


@pytest.mark.parametrize("how", [["--overwrite"], ["--existing", "overwrite"]])
def test_overwriting_begins_anew(how, begun):
    name = json.loads(Path("o/run.json").read_text())["run"]
    assert call(*begun, *how).exit_code == 3
    assert {row["metadata"]["run"] for row in rows(Path("o/answers.jsonl"))} != {name}


def test_a_source_may_grow_anywhere_and_the_order_is_the_inputs(
    begun,
    loaded,
    inputs,
):
    for name in ("p0.png", "p3b.png", "p9.png"):
        (inputs / name).write_text(name)
    assert call(*begun).exit_code == 3
    grown = contents(Path("o"))
    shutil.rmtree("o")
    assert call(*begun).exit_code == 3 and contents(Path("o")) == grown
    names = [row["image"] for row in rows(Path("o/answers.jsonl"))]
    assert names == ["p0.png", "p1.png", "p2.png", "p3.png", "p3b.png", *names[5:]]
    assert names[5:] == ["p4.png", "p5.png", "p6.png", "p9.png"]


def test_a_limit_is_a_source_that_grows(loaded, bare_model, inputs):
    arguments = line("questions", inputs, bare_model)
    assert call(*arguments).exit_code == 3
    whole = contents(Path("o"))
    shutil.rmtree("o")
    assert call(*arguments, "--limit", 2).exit_code == 0
    assert call(*arguments, "--limit", 3).exit_code == 3
    assert call(*arguments).exit_code == 3
    manifest = json.loads(whole.pop("run.json"))
    found = contents(Path("o"))
    assert json.loads(found.pop("run.json"))["counts"] == manifest["counts"] and found == whole


def test_a_source_in_another_order_gives_the_answers_in_that_order(
    loaded,
    bare_model,
    inputs,
):
    lines = (inputs / "q.jsonl").read_text().splitlines(keepends=True)
    arguments = line("questions", inputs, bare_model)
    call(*arguments)
    (inputs / "q.jsonl").write_text("".join(lines[3:] + lines[:3]))
    assert call(*arguments).exit_code == 3
    found = [row["category"] for row in rows(Path("o/answers.jsonl"))]
    assert found == [3, 1, 5, 1, 1, 2], "the category is a column of the input"


OTHER_SOURCES = {
    "a file less": lambda folder: (folder / "p3.png").unlink(),
    "another folder of the same names": lambda folder: None,
    "a column changed": lambda folder: None,
}


@pytest.mark.parametrize("change", OTHER_SOURCES)
def test_answers_to_what_is_not_asked_now_are_never_taken_for_others(
    change,
    loaded,
    bare_model,
    inputs,
    tmp_path,
):
    """Two folders may hold files of the same names, and an answer must not change its picture."""
    arguments = line("questions" if "column" in change else "caption", inputs, bare_model)
    call(*arguments)
    loaded.clear()
    if "folder" in change:
        shutil.copytree(inputs, tmp_path / "other")
        arguments[1] = tmp_path / "other"
    elif "column" in change:
        text = (inputs / "q.jsonl").read_text()
        (inputs / "q.jsonl").write_text(text.replace('"category": 3', '"category": 8'))
    else:
        OTHER_SOURCES[change](inputs)
    before = contents(Path("o"))
    done = call(*arguments)
    assert done.exit_code == 2 and "to what is not asked now" in done.stderr, done.stderr
    assert contents(Path("o")) == before and not loaded


def test_failures_of_what_is_not_asked_now_go(begun, inputs):
    (inputs / "p5.png").unlink()
    assert call(*begun).exit_code == 3
    assert [row["image"] for row in rows(Path("o/errors.jsonl"))] == ["p2.png"]
    assert len(rows(Path("o/answers.jsonl"))) == 5


def test_paths_on_standard_input_are_gone_on_with_as_well(loaded, bare_model, inputs):
    arguments = ["caption", "-", "-m", bare_model, "-q", "-o", "o"]
    names = [f"{inputs}/p{number}.png\n" for number in (6, 4, 3, 1)]
    assert call(*arguments, stdin="".join(names)).exit_code == 0
    whole = contents(Path("o"))
    shutil.rmtree("o")
    assert call(*arguments, stdin="".join(names[1:3])).exit_code == 0
    assert call(*arguments, stdin="".join(names)).exit_code == 0 and len(loaded) == 3
    assert contents(Path("o")) == whole
    assert call(*arguments, stdin="".join(names)).exit_code == 0 and len(loaded) == 3
    assert call(*arguments, stdin=names[0]).exit_code == 0
    assert contents(Path("o")) == whole, "a stream does not tell in advance what is missing in it"


FOREIGN = {
    "no run.json": "has no run.json of a run beside it",
    "another run": "its line 1 is not of the run that the run.json beside it tells of",
    "another file": "its line 1 is not of the run that the run.json beside it tells of",
    "an old run.json": "has no run.json of a run beside it",
    "a broken run.json": "has no run.json of a run beside it",
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_is_no_journal_of_this_run_is_left_alone(case, begun, loaded):
    manifest, answers = Path("o/run.json"), Path("o/answers.jsonl")
    if case == "no run.json":
        manifest.unlink()
    elif case == "another run":
        run = json.loads(manifest.read_text())["run"]
        manifest.write_text(manifest.read_text().replace(run, "0" * 12))
    elif case == "another file":
        answers.write_text('{"mine": 1}\n' * 3)
    else:
        manifest.write_text('{"interrupted": false}' if "old" in case else "{")
    before = answers.read_bytes()
    done = call(*begun)
    assert done.exit_code == 2 and FOREIGN[case] in done.stderr and "overwrite" in done.stderr
    assert answers.read_bytes() == before and not loaded


# Modules of the package that a complete run may import: each takes a millisecond of its second.
OWN_MODULES = 130

NO_TORCH = """
import sys
from trimtok_cli import __main__
try:
    __main__.main()
finally:
    heavy = {"torch", "transformers", "numpy", "jinja2", "matplotlib", "pyarrow", "av"}
    print(heavy & set(sys.modules), len([name for name in sys.modules if "trimtok_cli" in name]))
"""


def test_a_complete_run_says_so_without_loading_anything(begun):
    before = contents(Path("o"))
    arguments = [str(each) for each in begun if each != "-q"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *arguments, "--keep-failed"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 3 and "nothing to do" in done.stderr
    heavy, _, own = done.stdout.rstrip().rpartition(" ")
    assert heavy == "set()" and contents(Path("o")) == before
    assert int(own) <= OWN_MODULES, "what a complete run imports is what it takes"


def test_a_sample_that_comes_twice_draws_the_same_lots_when_the_run_is_gone_on_with(
    loaded,
    bare_model,
    inputs,
):
    """Seeds depend on how often the same was asked before, and the first may be answered already."""
    arguments = line("questions", inputs, bare_model)
    call(*arguments)
    whole = contents(Path("o"))
    answers = Path("o/answers.jsonl")
    first = answers.read_bytes().splitlines(keepends=True)[0]
    answers.write_bytes(first)
    assert call(*arguments).exit_code == 3 and contents(Path("o")) == whole
    assert len({row["text"] for row in rows(answers) if row["image"] == "p1.png"}) == 3


def test_the_order_of_a_run_gives_a_sample_the_seed_of_its_turn():
    from trimtok_cli.generation.seeds import SampleSeeds

    counted, told = SampleSeeds(), SampleSeeds()
    seeds = [counted.number(("a",), "What?") for _ in range(3)]
    assert [told.number(("a",), "What?", turn) for turn in (3, 1, 2)] == [
        seeds[2],
        seeds[0],
        seeds[1],
    ]


ENDS = {
    "a signal": (KeyboardInterrupt(), 130, "interrupted"),
    "a model that is no use": (ModelError("the model is no use."), 1, "the model is no use."),
    "no memory": (MemoryError(), 1, "MemoryError: no message (run again with --debug"),
    "a device that is lost": (
        RuntimeError("CUDA error\nand more"),
        1,
        "RuntimeError: CUDA error (",
    ),
    "a disk that fails": (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
}


@pytest.mark.parametrize(("error", "code", "says"), ENDS.values(), ids=ENDS.keys())
def test_whatever_ends_a_run_what_is_written_stays_and_the_same_command_goes_on(
    error, code, says, monkeypatch, bare_model, inputs
):
    def ending(*given, **options):
        yield from islice(stub_engine.answer_all(*given, **options), 3)
        raise error

    arguments = line("caption", inputs, bare_model)
    stub_engine.install(monkeypatch)
    assert call(*arguments).exit_code == 3
    expected = contents(Path("o"))
    shutil.rmtree("o")
    stub_engine.install(monkeypatch, ending)
    done = call(*arguments)
    said = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert done.exit_code == code and len(said) == 1 and says in said[0], done.stderr
    first = Path("o/answers.jsonl").read_bytes().splitlines()
    assert len(first) == 3 and len(rows(Path("o/errors.jsonl"))) == 1
    assert json.loads(Path("o/run.json").read_text())["interrupted"] is True
    stub_engine.install(monkeypatch)
    assert call(*arguments).exit_code == 3 and contents(Path("o")) == expected
    found = Path("o/answers.jsonl").read_bytes().splitlines()
    assert [found[0], found[2]] == [first[0], first[2]], "what was answered is not asked again"


def test_a_source_that_vanishes_between_listing_and_reading_fails_and_is_gone_on_with(
    monkeypatch, loaded, bare_model, inputs, tmp_path
):
    """A picture, then the question file itself, is away for one run."""
    from trimtok_cli.commands import run

    arguments = line("questions", inputs, bare_model)
    assert call(*arguments).exit_code == 3
    expected = contents(Path("o"))
    shutil.rmtree("o")
    load = run.load
    for name, done in (("p3.png", 6), ("q.jsonl", 6)):
        away = inputs / name

        def vanish(*given, away=away):
            away.rename(tmp_path / "away")
            return load(*given)

        monkeypatch.setattr(run, "load", vanish)
        assert call(*arguments).exit_code == 3
        assert len(rows(Path("o/answers.jsonl"))) == done
        monkeypatch.setattr(run, "load", load)
        (tmp_path / "away").rename(away)
        assert call(*arguments).exit_code == 3 and contents(Path("o")) == expected
