"""`--json`: a script learns where the files of a run are, and what became of it."""

import json
from pathlib import Path

import pytest

from tests.commands.test_cli import run


def rows_of(folder: Path, command: str, pictures: list[Path]) -> Path:
    if command != "vqa":
        return pictures[0].parent
    rows = [{"question_id": 1, "image": str(path), "text": "What?"} for path in pictures]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions


@pytest.mark.parametrize("command", ["caption", "vqa", "compare"])
def test_a_run_says_on_standard_output_where_its_files_are(
    command, llava_folder, pictures, tmp_path
):
    source = rows_of(tmp_path, command, pictures)
    line = (command, source, "-m", llava_folder, "--keep", 5, "--max-new-tokens", 2, "-q")
    said = json.loads(run(*line, "--json").stdout)
    assert Path(said["answers"]).is_file() and Path(said["manifest"]).is_file()
    assert Path(said["page"]).is_file() if command == "compare" else "page" not in said
    assert said["command"] == command and said["interrupted"] is False
    written = json.loads(Path(said["manifest"]).read_text(encoding="utf-8"))
    assert {name: said[name] for name in written} == written
    # A run that is complete says the same; without the flag nothing is said.
    again = json.loads(run(*line, "--json", "-o", Path(said["answers"]).parent).stdout)
    assert (again["answers"], again["run"]) == (said["answers"], said["run"])
    assert run(*line).stdout == ""


@pytest.mark.parametrize("command", ["caption", "vqa", "compare"])
def test_answers_on_standard_output_leave_no_place_for_it(
    command, llava_folder, pictures, tmp_path
):
    source = rows_of(tmp_path, command, pictures)
    done = run(command, source, "-m", llava_folder, "-o", "-", "--json", "--keep", 5, code=2)
    assert "--json: answers are on standard output already" in done.stderr and done.stdout == ""


def test_a_run_with_failed_samples_says_how_many(llava_folder, pictures):
    (pictures[0].parent / "broken.png").write_bytes(b"no picture")
    line = ("caption", pictures[0].parent, "-m", llava_folder, "--max-new-tokens", 2, "--json")
    said = json.loads(run(*line, code=3).stdout)
    assert said["counts"]["failed"] == 1 and said["counts"]["done"] == len(pictures)


def test_of_many_answers_a_run_shows_the_first(llava_folder, pictures, monkeypatch):
    monkeypatch.setattr("trimtok_cli.commands.run.FEW", 0)
    line = ("caption", pictures[0].parent, "-m", llava_folder, "--max-new-tokens", 2)
    assert len(pictures) > 1 and run(*line).stderr.count(" generated, ") == 1
    assert run(*line, "-v").stderr.count(" generated, ") == len(pictures)


def test_a_sweep_prints_its_curve(llava_folder, pictures):
    line = ("sweep", pictures[0].parent, "-m", llava_folder, "--keep", "3,5", "--limit", 1)
    done = run(*line, "--max-new-tokens", 2, "-o", "curve", "--json")
    assert json.loads(done.stdout) == json.loads(Path("curve/sweep.json").read_text())
