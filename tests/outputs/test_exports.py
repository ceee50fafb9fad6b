"""Other formats of finished answers: each file read back, at the end of a run and long after it.

What other programs make of them, test_consumers asks those programs.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.finished import answer, finished, lines_of
from tests.support.stub_engine import Died, Disk, call
from trimtok_cli.data import Media
from trimtok_cli.outputs.exports import registry
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.exports.registry import FORMS
from trimtok_cli.outputs.lock import Lock

ROOT = Path(__file__).parents[2]

MADE = "llava,txt,coco,vqav2,openai,imagefolder,jsonl"


@pytest.fixture
def answers(tmp_path) -> Path:
    """A run of three answers and two failures, with odd names, texts and columns."""
    results = [
        answer("000000000042.jpg", 'A dog,\na "cat"\u2028and more', extra={"n": 1}),
        answer("b\udcff.jpg", failed="b is empty", extra={"n": 2.5}),
        answer("7.jpg", "Zwei Äpfel\r\n", id=7, extra={"status": [1, None], "image_id": 9}),
        answer("https://x.org/8.jpg", " \n "),
        answer("c.jpg", failed="c is torn"),
    ]
    return finished(tmp_path / "run", results)


def export(run: object, names: str, *more: object, code: int = 0) -> str:
    done = call("export", run, "--format", names, *more)
    assert done.exit_code == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_llava_has_a_line_for_every_input(answers):
    said = export(answers, "llava")
    found = lines_of(answers / "answers.llava.jsonl")
    ids = [row["question_id"] for row in lines_of(answers / "answers.jsonl")]
    assert [row["question_id"] for row in found] == ids
    assert [row["text"] for row in found][1::3] == ["", ""]
    assert {tuple(row) for row in found} == {
        ("question_id", "prompt", "text", "answer_id", "model_id", "metadata")
    }
    assert "2 failed" in said and "yes" in said


def test_csv_has_one_column_for_each_fact_and_loses_no_text(answers):
    export(answers, "csv")
    with (answers / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows][:3] == [
        'A dog,\na "cat"\u2028and more',
        "",
        "Zwei Äpfel\r\n",
    ]
    assert [row["question_id"] for row in rows][:3] == ["000000000042.jpg", "b\\udcff.jpg", "7"]
    assert [row["n"] for row in rows] == ["1.0", "2.5", "", "", ""]
    assert rows[2]["input_status"] == "[1, null]" and rows[2]["status"] == "ok"
    assert rows[0]["visual_tokens_kept"] == "64" and rows[1]["error"] == "b is empty"


def test_coco_makes_up_no_id(answers):
    said = export(answers, "coco")
    found = json.loads((answers / "answers.coco.json").read_text(encoding="utf-8"))
    assert found == [
        {"image_id": 42, "caption": 'A dog, a "cat" and more'},
        {"image_id": 9, "caption": "Zwei Äpfel"},
    ]
    assert "2 failed" in said and "1 with an empty answer" in said


@pytest.mark.parametrize(
    ("command", "name", "id", "extra", "expected"),
    [
        ("caption", "x/COCO_val2014_000000391895.jpg", "x", {}, 391895),
        ("caption", "img_7.jpg", 3, {}, 3),
        ("vqa", "img_7.jpg", 3, {}, 7),
        ("vqa", "img7.jpg", 3, {}, None),
        ("vqa", "img7.jpg", 3, {"image_id": "12"}, 12),
        ("caption", "a.jpg", True, {}, None),
    ],
)
def test_coco_ids(command, name, id, extra, expected, tmp_path):
    run = finished(tmp_path / "run", [answer(name, "x", id=id, extra=extra)], command=command)
    export(run, "coco")
    found = json.loads((run / "answers.coco.json").read_text())
    assert [row["image_id"] for row in found] == ([] if expected is None else [expected])


def test_vqav2_has_all_questions_and_whole_numbers(tmp_path):
    results = [
        answer("a.jpg", "The dog's\n2 red-haired.", id=1),
        answer("a.jpg", failed="no", id="2", question="?"),
    ]
    run = finished(tmp_path / "run", [*results, answer("b.jpg", "two", id="q3")])
    said = export(run, "vqav2")
    assert json.loads((run / "answers.vqav2.json").read_text()) == [
        {"question_id": 1, "answer": "dog's 2 red haired"},
        {"question_id": 2, "answer": ""},
    ]
    assert "without a number" in said and "1 failed" in said


def test_gqa_and_seed_have_a_prediction_for_every_question(answers):
    said = export(answers, "gqa,seed")
    records = lines_of(answers / "answers.jsonl")
    found = json.loads((answers / "answers.gqa.json").read_text(encoding="utf-8"))
    assert [row["questionId"] for row in found] == [str(row["question_id"]) for row in records]
    predictions = [row["prediction"] for row in found]
    assert predictions == ['a dog, a "cat" and more', "", "zwei äpfel", "", ""]
    found = lines_of(answers / "answers.seed.jsonl")
    assert [row["question_id"] for row in found] == [row["question_id"] for row in records]
    assert [row["prediction"] for row in found][2:] == ["Zwei Äpfel", "", ""]
    assert said.count("2 failed, whose prediction is empty") == 2


def test_openai_has_a_line_for_every_request_and_errors_that_say_so(tmp_path):
    results = [
        answer("a.jpg", "Yes", id="r-1", extra={"custom_id": "r-1"}),
        answer("b.jpg", failed="b.jpg is empty", id=5),
    ]
    run = finished(tmp_path / "run", results)
    export(run, "openai")
    good, bad = lines_of(run / "answers.openai.jsonl")
    body = good["response"]["body"]
    assert (good["custom_id"], good["error"], good["response"]["status_code"]) == ("r-1", None, 200)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Yes"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 69, "completion_tokens": 7, "total_tokens": 76}
    assert body["created"] == 1795687200 and body["object"] == "chat.completion"
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("5", 400)
    assert bad["error"] == {"code": "MediaError", "message": "b.jpg is empty"}


def test_what_a_format_leaves_out_is_counted_for_every_format(answers, tmp_path):
    for name in set(FORMS) - {"parquet", "imagefolder", "kohya", "musubi"}:
        said = export(answers, name, "-o", tmp_path / name)
        assert f"{name}: " in said and " in " in said, name


# Sidecars


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.c.png", "sub/a.jpg", "empty.jpg", "bad.jpg"):
        (folder / name).write_text("picture")
    return folder


@pytest.fixture
def captioned(photos, tmp_path) -> Path:
    results = [
        answer("a.jpg", "A dog\nruns.  \u2028Fast\x85"),
        answer("sub/b.c.png", "Ünï"),
        answer("sub/a.jpg", "Two"),
        answer("empty.jpg", " \n"),
        answer("bad.jpg", failed="bad"),
    ]
    return finished(tmp_path / "run", results, photos)


def texts(folder: Path, ending: str = "txt") -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob(f"*.{ending}"))
    }


EXPECTED = {"a.txt": "A dog runs. Fast\n", "sub/a.txt": "Two\n", "sub/b.c.txt": "Ünï\n"}


def test_sidecars_are_one_line_and_never_empty(captioned, photos):
    said = export(captioned, "txt,caption")
    assert texts(photos) == EXPECTED
    assert texts(photos, "caption") == {
        name.replace(".txt", ".caption"): text for name, text in EXPECTED.items()
    }
    assert "1 with an empty answer" in said and "1 failed" in said


def test_sidecars_in_a_folder_mirror_the_tree_of_the_pictures(captioned, photos, tmp_path):
    export(captioned, "txt", "-o", tmp_path / "t")
    assert texts(tmp_path / "t") == EXPECTED and not texts(photos)
    export(captioned, "txt", "-o", tmp_path / "u", "--sidecar-names", "full")
    assert sorted(texts(tmp_path / "u")) == ["a.jpg.txt", "sub/a.jpg.txt", "sub/b.c.png.txt"]


def test_a_prefix_and_a_suffix_stand_around_every_caption(captioned, photos):
    around = ("--caption-prefix", "sks,\n ", "--caption-suffix", ", photo")
    export(captioned, "txt,imagefolder", *around)
    assert texts(photos)["sub/a.txt"] == "sks, Two, photo\n"
    assert [row["text"] for row in lines_of(photos / "metadata.jsonl")][1] == "sks, Ünï, photo"


def test_a_sidecar_of_somebody_else_is_replaced_only_if_the_user_says_so(captioned, photos):
    (photos / "sub" / "a.txt").write_text("1girl, solo")
    said = export(captioned, "txt", code=2)
    assert "sub/a.txt is there with another text" in said and "--overwrite-sidecars" in said
    assert texts(photos) == {"sub/a.txt": "1girl, solo"}, "nothing else may be written either"
    export(captioned, "txt", "--overwrite-sidecars")
    assert texts(photos) == EXPECTED
    before = (photos / "a.txt").stat().st_ino
    export(captioned, "txt")
    assert (photos / "a.txt").stat().st_ino == before, "what is right already is left alone"


def test_a_link_is_replaced_and_never_followed(captioned, photos, tmp_path):
    (tmp_path / "precious").write_text("Two\n")
    (photos / "sub" / "a.txt").symlink_to(tmp_path / "precious")
    export(captioned, "txt", code=2)
    export(captioned, "txt", "--overwrite-sidecars", "--caption-prefix", "new ")
    assert (tmp_path / "precious").read_text() == "Two\n"
    assert not (photos / "sub" / "a.txt").is_symlink()


def test_pictures_that_share_a_stem_are_refused(photos, tmp_path):
    (photos / "a.png").write_text("picture")
    run = finished(tmp_path / "run", [answer("a.jpg", "x"), answer("a.png", "x")], photos)
    said = export(run, "txt", code=2)
    assert "a.jpg and a.png" in said and "--sidecar-names full" in said and not texts(photos)
    export(run, "txt", "--sidecar-names", "full")
    assert texts(photos) == {"a.jpg.txt": "x\n", "a.png.txt": "x\n"}


@pytest.mark.parametrize("name", ["txt", "imagefolder", "coco"])
def test_a_picture_with_two_answers_is_refused_where_one_is_wanted(name, photos, tmp_path):
    pair = [answer("a.jpg", text, question=text, extra={"image_id": 1}) for text in ("x", "y")]
    said = export(finished(tmp_path / "run", pair, photos), name, code=2)
    assert "several answers" in said and not texts(photos)
    assert not (photos / "metadata.jsonl").exists()


OUTSIDE = (
    "../x.jpg",
    "sub/../../x.jpg",
    "/x.jpg",
    "..",
    "http://h/x.jpg",
    "data:image/png;base64,A",
)


@pytest.mark.parametrize("packed", [True, False])
def test_no_name_leads_out_of_the_folder(packed, photos, tmp_path):
    """As members of a tar, which anybody may have written, can be called."""
    (tmp_path / "x.jpg").write_text("picture")
    results = [answer(name, "x") for name in OUTSIDE] + [answer("sub/../a.jpg", "fine")]
    run = finished(tmp_path / "run", results, None if packed else photos)
    before = {path for path in tmp_path.rglob("*") if "tree" not in path.parts}
    said = export(run, "txt", "-o", tmp_path / "deep" / "tree")
    assert texts(tmp_path / "deep" / "tree") == {"a.txt": "fine\n"}
    assert "4 whose names lead out" in said and "2 without a picture" in said
    assert {path for path in tmp_path.rglob("*") if "tree" not in path.parts} - before == {
        tmp_path / "deep"
    }
    export(run, "txt,imagefolder", "--image-root", photos)
    assert texts(tmp_path / "photos") == {"a.txt": "fine\n"} and not (tmp_path / "x.txt").exists()
    assert [row["file_name"] for row in lines_of(photos / "metadata.jsonl")] == ["a.jpg"]


def test_pictures_without_a_folder_need_one(tmp_path):
    run = finished(tmp_path / "run", [answer("a.jpg", "x")])
    assert "--sidecar-dir" in export(run, "txt", code=2)
    assert "--image-root" in export(run, "imagefolder", code=2)


def test_a_sidecar_never_takes_a_picture_s_own_name(photos, tmp_path):
    (photos / "a.txt").write_text("picture")
    run = finished(tmp_path / "run", [answer("a.txt", "x")], photos)
    assert "own name" in export(run, "txt", "--overwrite-sidecars")
    assert (photos / "a.txt").read_text() == "picture"


def test_names_that_are_as_long_as_can_be(photos, tmp_path):
    names = ["n" * 251 + ".jpg", "m" * 240 + ".jpg"]
    for name in names:
        (photos / name).write_text("picture")
    run = finished(tmp_path / "run", [answer(name, "x") for name in names], photos)
    assert "1 whose name is too long" in export(run, "txt")
    assert len(texts(photos)) == 1


# metadata.jsonl


def test_metadata_of_somebody_else_is_replaced_only_if_the_user_says_so(captioned, photos):
    own = photos / "metadata.jsonl"
    own.write_text('{"file_name": "a.jpg", "text": "mine"}\n')
    assert "--overwrite-sidecars" in export(captioned, "imagefolder", code=2)
    assert "mine" in own.read_text()
    export(captioned, "imagefolder", "--overwrite-sidecars")
    export(captioned, "imagefolder")
    assert [row["file_name"] for row in lines_of(own)] == ["a.jpg", "sub/b.c.png", "sub/a.jpg"]
    assert {tuple(row) for row in lines_of(own)} == {
        ("file_name", "text", "visual_tokens", "visual_tokens_kept")
    }


# The command


def test_export_takes_the_answers_that_count(answers):
    """A failure that succeeded later, and a torn last line: as a run that goes on reads them."""
    path = answers / "answers.jsonl"
    whole = path.read_bytes()
    again = finished(answers.parent / "again", [answer("c.jpg", "at last")])
    path.write_bytes(whole + (again / "answers.jsonl").read_bytes() + whole[:50])
    said = export(answers, "jsonl")
    found = lines_of(answers / "answers.records.jsonl")
    assert [row["text"] for row in found][-1] == "at last" and len(found) == 5
    assert f"jsonl: 5 in {answers}" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run",), "no format was named"),
        (("run", "--format", "cocoo"), "did you mean coco?"),
        (("run", "--format", "csv,coco", "-o", "a.csv"), "name a folder"),
        (("run", "--format", "txt", "-o", "a.csv"), "name a folder"),
        (("run", "--format", "csv", "-o", "run/answers.jsonl"), "the answers themselves"),
        (("run", "--format", "txt", "--sidecar-names", "stm"), "did you mean stem?"),
        (("gone", "--format", "csv"), "name the folder of a run"),
        ((".", "--format", "csv"), "name the folder of a run"),
        (("torn", "--format", "csv"), "line 2 of"),
        (("strange", "--format", "csv"), "line 1 of"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished(Path("run"), [answer(str(n), "x") for n in range(4)])
    whole = (run / "answers.jsonl").read_bytes().splitlines(keepends=True)
    for name, content in (
        ("torn", whole[0] + whole[1][:30] + b"\n" + whole[2]),
        ("strange", b'{"question_id": 1}\n'),
    ):
        shutil.copytree(run, name)
        Path(name, "answers.jsonl").write_bytes(content)
    done = call("export", *arguments)
    assert done.exit_code == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(os.listdir()) == ["run", "strange", "torn"]
    assert (run / "answers.jsonl").read_bytes() == b"".join(whole)


def test_a_file_that_is_there_is_replaced_only_if_the_user_says_so(answers):
    (answers / "answers.csv").write_text("mine")
    assert "--overwrite" in export(answers, "csv", code=2)
    assert (answers / "answers.csv").read_text() == "mine"
    export(answers, "csv", "--overwrite")
    assert (answers / "answers.csv").read_text(encoding="utf-8").startswith("question_id,")


def test_one_format_goes_to_a_file_of_any_name(answers, tmp_path):
    export(answers / "answers.jsonl", "vqav2", "-o", tmp_path / "new" / "results.json")
    assert json.loads((tmp_path / "new" / "results.json").read_text())[0]["question_id"] == 7


# At the end of a run


def tree(folder: Path) -> dict[str, object]:
    """The formats' files of a folder, without the names that a run makes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".txt", ".json", ".jsonl") or path.name in ("run.json", "q.jsonl"):
            continue
        text = path.read_text(encoding="utf-8")
        for row in lines_of(path) if path.suffix == ".jsonl" else ():
            for name in (row.get("answer_id"), row.get("metadata", {}).get("run")):
                text = text.replace(name or "\0", "")
        found[str(path.relative_to(folder))] = text.count("\n") if "records" in path.name else text
        if "openai" in path.name:
            found[str(path.relative_to(folder))] = [row["custom_id"] for row in lines_of(path)]
        if path.name == "answers.jsonl":
            found[path.name] = [row["text"] for row in lines_of(path)]
    return found


def test_a_run_makes_the_same_files_as_export(loaded, bare_model, inputs, tmp_path):
    names = {each.name: each for each in inputs.iterdir()}
    line = ("caption", inputs, "-m", bare_model, "-o", "o", "--format", MADE)
    assert call(*line).exit_code == 3
    made = tree(Path("o")) | tree(inputs)
    assert {"answers.llava.jsonl", "answers.coco.json", "p1.txt", "metadata.jsonl"} <= set(made)
    for path in [*Path("o").glob("answers.?*.json*"), *inputs.glob("*.txt")]:
        path.unlink()
    (inputs / "metadata.jsonl").unlink()
    export("o", MADE)
    assert tree(Path("o")) | tree(inputs) == made
    assert {*names, "metadata.jsonl"} <= {each.name for each in inputs.iterdir()}


def test_a_run_that_dies_at_any_call_ends_with_all_formats(loaded, bare_model, inputs):
    line = (
        "caption",
        inputs,
        "-m",
        bare_model,
        "-o",
        "o",
        "-q",
        "--format",
        "llava,txt,imagefolder",
    )
    assert call(*line).exit_code == 3
    expected = tree(Path("o")) | tree(inputs)
    shutil.rmtree("o")
    plain = Disk()
    with plain.in_place():
        call(*line[:-2])
    number, dead = len(plain.calls) - 3, True
    while dead:
        number += 1
        shutil.rmtree("o")
        for path in (*inputs.glob("*.txt"), inputs / "metadata.jsonl"):
            path.unlink(missing_ok=True)
        with Disk(number, half=number % 2 == 0).in_place():
            try:
                call(*line)
                dead = False
            except Died:
                pass
        assert call(*line).exit_code == 3
        assert tree(Path("o")) | tree(inputs) == expected, f"call {number}"
    assert number > len(plain.calls) + 20, "the formats hardly used the disk"


def test_failures_that_succeed_later_are_in_the_formats_of_the_same_command(
    loaded, bare_model, inputs
):
    line = ("caption", inputs, "-m", bare_model, "-o", "o", "--format", "txt,imagefolder,llava")
    assert call(*line).exit_code == 3
    assert len(texts(inputs)) == 4
    for number in (2, 5):
        (inputs / f"p{number}.png").write_text("xyz")
    assert call(*line).exit_code == 0
    assert len(texts(inputs)) == len(lines_of(inputs / "metadata.jsonl")) == 6
    assert all(row["text"] for row in lines_of(Path("o/answers.llava.jsonl")))


def test_a_complete_run_makes_a_further_format_without_a_model(loaded, bare_model, inputs):
    line = ("caption", inputs, "-m", bare_model, "-o", "o", "--keep-failed")
    assert call(*line).exit_code == 3
    loaded.clear()
    (Path("o") / "answers.csv").write_text("mine")
    done = call(*line, "--format", "csv")
    assert done.exit_code == 2 and "not made by this run" in done.stderr
    (Path("o") / "answers.csv").unlink()
    assert call(*line, "--format", "csv,coco").exit_code == 3 and not loaded
    assert (Path("o") / "answers.csv").exists()


def test_standard_output_has_no_file_beside_it(loaded, bare_model, inputs):
    done = call("caption", inputs, "-m", bare_model, "-o", "-", "--format", "csv")
    assert done.exit_code == 2 and "--format" in done.stderr and not loaded


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (("in",), ["p1.txt", "p3.txt", "p4.txt", "p6.txt"]),
        (("in/p1.png", "in/p3.png"), ["p1.txt", "p3.txt"]),
        (("in/p[13].png",), ["p1.txt", "p3.txt"]),
        (("@in/list",), ["p1.txt"]),
        (("in/p1.png", "{}/in/p3.png"), ["p1.txt", "p3.txt"]),
    ],
)
def test_the_folder_of_the_pictures_is_known_for_every_source(
    sources, expected, loaded, bare_model, inputs, monkeypatch, tmp_path
):
    monkeypatch.chdir(inputs.parent)
    (inputs / "list").write_text("p1.png\n")
    given = [source.format(inputs.parent) for source in sources]
    call("caption", *given, "-m", bare_model, "-o", tmp_path / "o", "--format", "txt")
    assert sorted(texts(inputs)) == expected


def test_export_loads_neither_torch_nor_pyarrow(answers):
    code = (
        "import sys\nfrom tests.support.stub_engine import call\n"
        f"done = call('export', {str(answers)!r}, '--format', 'csv,llava')\n"
        "assert done.exit_code == 0, done.stderr\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_several_exports_at_once_make_the_files_of_one(captioned, photos):
    names = "csv,llava,txt,imagefolder"
    export(captioned, names)
    expected = tree(captioned), tree(photos)
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            code = 1
            try:
                code = call("export", captioned, "--format", names, "--overwrite").exit_code
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children] == [0] * 4
    assert (tree(captioned), tree(photos)) == expected


def test_an_export_waits_for_another_and_says_so_if_that_takes_long(answers, monkeypatch):
    lock = Lock(answers / ".trimtok-formats.lock")
    lock.take()
    monkeypatch.setattr(registry, "WAITS", 0.2)
    said = export(answers, "csv", code=1)
    assert f"process {os.getpid()} on" in said and "trimtok export" in said
    assert not (answers / "answers.csv").exists()
    monkeypatch.setattr(registry, "WAITS", 60)
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    export(answers, "csv")
    timer.join()
    assert (answers / "answers.csv").exists() and not lock.path.exists()


def test_answers_stay_those_that_were_read_while_their_run_goes_on(answers):
    path = answers / "answers.jsonl"
    with closing(Answers(path, {})) as found:
        before = list(found.records())
        lines = path.read_bytes().splitlines(keepends=True)
        new = answers / "new"
        new.write_bytes(b"".join(reversed(lines)) + lines[0])
        new.replace(path)
        assert list(found.records()) == before and len(before) > 2


def test_trainers_lists_hold_full_paths_and_one_caption_each(tmp_path):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/ü.jpg"):
        (photos / name).write_bytes(b"x")
    results = [
        answer("a.jpg", "A dog,\n\nasleep"),
        answer("sub/ü.jpg", 'a "cat"'),
        answer("sub/ü.jpg", 'a "cat"', question="Again?"),
        answer("gone.jpg", "gone"),
        answer("b.jpg", failed="b is empty"),
        answer("../out.jpg", "out"),
    ]
    run = finished(tmp_path / "run", results, photos)
    said = export(run, "kohya,musubi", "--caption-prefix", "sks, ")
    captions = {
        str(photos / "a.jpg"): "sks, A dog, asleep",
        str(photos / "sub/ü.jpg"): 'sks, a "cat"',
    }
    found = json.loads((run / "answers.kohya.json").read_text(encoding="utf-8"))
    assert found == {path: {"caption": text} for path, text in captions.items()}
    assert lines_of(run / "answers.musubi.jsonl") == [
        {"image_path": path, "caption": text} for path, text in captions.items()
    ]
    assert said.count("1 that stand there already") == said.count("1 failed") == 2
    assert said.count("2 whose picture is not there any more") == 2


@pytest.mark.parametrize("name", ["kohya", "musubi", "vizwiz", "mmvet", "coco", "imagefolder"])
def test_one_picture_with_two_answers_is_refused_by_what_has_one_for_each(name, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"x")
    results = [answer("1.jpg", text, id=1, question=text) for text in ("a", "b")]
    run = finished(tmp_path / "run", results, tmp_path)
    assert "has several answers" in export(run, name, code=2)


def test_musubi_keeps_pictures_and_videos_apart(tmp_path):
    for name in ("a.mp4", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    video = replace(answer("a.mp4", "A wave"), media=(Media(times=(0.0, 1.0), frames=2),))
    run = finished(tmp_path / "run", [video, answer("b.jpg", "b")], tmp_path)
    assert "1 of the other kind" in export(run, "musubi")
    (row,) = lines_of(run / "answers.musubi.jsonl")
    assert row == {"video_path": str(tmp_path / "a.mp4"), "caption": "A wave"}
    assert "1 that are videos" in export(run, "kohya")


@pytest.mark.parametrize("name", ["kohya", "musubi"])
def test_lists_of_paths_need_a_folder_of_the_pictures(name, tmp_path):
    run = finished(tmp_path / "run", [answer("a.jpg", "x")])
    assert "--image-root" in export(run, name, code=2)
    (tmp_path / "a.jpg").write_bytes(b"x")
    export(run, name, "--image-root", tmp_path)
    (made,) = run.glob(f"answers.{name}.*")
    assert json.dumps(str(tmp_path / "a.jpg")) in made.read_text()


def test_benchmarks_have_a_row_for_every_question(tmp_path):
    results = [
        answer("x/VizWiz_1.jpg", "The cat.", id="v1_0", question="A?"),
        answer("VizWiz_2.jpg", failed="no", id=1, question="B?"),
    ]
    run = finished(tmp_path / "run", results)
    said = export(run, "mmvet,vizwiz,pope")
    assert json.loads((run / "answers.mmvet.json").read_text()) == {"v1_0": "The cat.", "v1_1": ""}
    assert json.loads((run / "answers.vizwiz.json").read_text()) == [
        {"image": "VizWiz_1.jpg", "answer": "cat"},
        {"image": "VizWiz_2.jpg", "answer": ""},
    ]
    assert lines_of(run / "answers.pope.jsonl") == [
        {"question": "A?", "answer": "The cat."},
        {"question": "B?", "answer": ""},
    ]
    assert said.count("1 failed") == 3
