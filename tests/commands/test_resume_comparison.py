"""A comparison that is gone on with: it ends as an undisturbed one, and answers nothing twice."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.test_cli import rows, run
from trimtok_cli.commands import compare as compare_command

TIMES = ("timing_ms", "run")


def untimed(row: dict) -> dict:
    """A line without what two runs cannot share."""
    runs = [
        {**each, "metadata": {k: v for k, v in each["metadata"].items() if k not in TIMES}}
        for each in row["runs"]
    ]
    return {**row, "runs": runs}


def asked(folder: Path, model: Path, out: str) -> list[object]:
    keep = ("--keep", "9,3", "--max-new-tokens", 2)
    return ["compare", folder, "-m", model, *keep, "-o", out]


@pytest.fixture(scope="module")
def whole(llava_folder, tmp_path_factory):
    """Five pictures, and the folder of their undisturbed comparison."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(5):
        Image.new("RGB", (40 + i, 40), (40 * i, 90, 200)).save(pictures / f"p{i}.png")
    run(*asked(pictures, llava_folder, str(folder / "out")))
    return pictures, folder / "out"


@pytest.mark.parametrize("lines", [0, 1, 3, 4])
@pytest.mark.parametrize("torn", [b"", b'{"question_id": "p'])
def test_a_comparison_that_was_killed_ends_as_an_undisturbed_one(whole, llava_folder, lines, torn):
    pictures, out = whole
    shutil.copytree(out, "out")
    content = (out / "compare.jsonl").read_bytes().splitlines(keepends=True)
    Path("out/compare.jsonl").write_bytes(b"".join(content[:lines]) + torn)
    Path("out/compare.html").unlink()
    document = json.loads(Path("out/run.json").read_text())
    Path("out/run.json").write_text(json.dumps(document | {"interrupted": True}))
    if not lines and not torn:
        Path("out/compare.jsonl").unlink()  # a run that was killed before its first answer
        Path("out/run.json").unlink()
    done = run(*asked(pictures, llava_folder, "out"), "--overlays", "overlays")
    assert (f"{lines} answered already" in done.stderr) == bool(lines or torn)
    found = Path("out/compare.jsonl").read_bytes().splitlines(keepends=True)
    assert found[:lines] == content[:lines], "what was answered is not answered again"
    assert list(map(untimed, map(json.loads, found))) == list(
        map(untimed, map(json.loads, content))
    )
    again = json.loads(Path("out/run.json").read_text())
    assert again["interrupted"] is False and again["counts"] == {"done": 5, "failed": 0}
    assert [each["visual_tokens"] for each in again["settings"]] == [
        each["visual_tokens"] for each in document["settings"]
    ]
    assert again["settings"][0]["throughput"]["samples"] == 5 - lines
    page = Path("out/compare.html").read_text()
    names = re.findall(r'<h3 id="h\d+"><a href="[^"]*">\d+</a> (\S+)</h3>', page)
    assert names == [f"p{i}.png" for i in range(5)]
    assert len(list(Path("overlays").iterdir())) == 15


def test_a_whole_comparison_has_nothing_to_do_and_loads_no_model(whole, llava_folder, monkeypatch):
    pictures, out = whole
    shutil.copytree(out, "out")
    Path("out/compare.html").unlink()
    monkeypatch.setattr(compare_command, "load", None)
    done = run(*asked(pictures, llava_folder, "out"))
    assert "nothing to do: 5 samples are in out/compare.jsonl" in done.stderr
    assert Path("out/compare.jsonl").read_bytes() == (out / "compare.jsonl").read_bytes()
    assert Path("out/compare.html").read_text().count("<article") == 5


def test_only_the_comparison_that_was_begun_is_gone_on_with(whole, llava_folder):
    pictures, out = whole
    shutil.copytree(out, "out")
    same = asked(pictures, llava_folder, "out")
    before = Path("out/compare.jsonl").read_bytes()
    done = run(*same, "--keep", 4, code=2)
    assert "--keep was 9,3 and is 4" in done.stderr
    done = run(*same, "--existing", "fail", code=2)
    assert "already there" in done.stderr
    done = run(*same, "--existing", "fail", "--overwrite", code=2)
    assert "contradict each other" in done.stderr
    done = run(*same, "-n", 2, code=2)
    assert "3 answers to what is not asked now" in done.stderr
    assert Path("out/compare.jsonl").read_bytes() == before
    run(*same, "--overwrite", "-q")
    assert rows(Path("out/compare.jsonl"))[0]["runs"][0]["metadata"]["run"] not in before.decode()


def test_what_failed_is_tried_again_and_takes_its_place(whole, llava_folder):
    shutil.copytree(whole[0], "pictures")
    good = Path("pictures/p1.png").read_bytes()
    Path("pictures/p1.png").write_bytes(b"no")
    same = asked(Path("pictures"), llava_folder, "out")
    run(*same, code=3)
    done = run(*same, code=3)
    assert "4 answered already" in done.stderr
    Path("pictures/p1.png").write_bytes(good)
    run(*same)
    found = rows(Path("out/compare.jsonl"))
    assert [row["image"] for row in found] == [f"p{i}.png" for i in range(5)]
    assert not any(each["metadata"]["error"] for row in found for each in row["runs"])
    assert json.loads(Path("out/run.json").read_text())["counts"] == {"done": 5, "failed": 0}
