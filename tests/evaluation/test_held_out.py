"""The demo model's held-out questions: as many of every task as asked, and grids read them."""

import json
from pathlib import Path

import scenes
from PIL import Image

from trimtok_cli.evaluation.datasets.jsonl import JSONL


def rows(folder: Path) -> dict[str, list[dict]]:
    files = {path.stem: path.read_text().splitlines() for path in folder.glob("*.jsonl")}
    return {task: [json.loads(line) for line in lines] for task, lines in files.items()}


def test_every_task_has_as_many_questions_one_a_scene():
    scenes.held_out(Path("few"), 2, 7)
    scenes.held_out(Path("more"), 3, 7)
    few, more = rows(Path("few")), rows(Path("more"))
    assert {*few} == {*scenes.TASKS} and {len(found) for found in few.values()} == {2}
    assert all(found == more[task][:2] for task, found in few.items())
    for task, found in more.items():
        assert len({row["image"] for row in found}) == 3
        for row in found:
            assert row["task"] == task and row["answers"] and row["text"]
            assert Image.open(Path("more", row["image"])).size == (336, 336)
    scenes.held_out(Path("other"), 2, 8)
    assert rows(Path("other")) != few


def test_a_grid_reads_them_and_their_own_answers_are_right():
    scenes.held_out(Path("few"), 2, 7)
    read = {task: list(JSONL.samples(Path("few", f"{task}.jsonl"))) for task in scenes.TASKS}
    assert {len(samples) for samples in read.values()} == {2}
    assert all(path.is_file() for samples in read.values() for s in samples for path in s.images)
    scores = [JSONL.score([(s, s.answers[0]) for s in samples]) for samples in read.values()]
    assert {score.headline for score in scores} == {100}
