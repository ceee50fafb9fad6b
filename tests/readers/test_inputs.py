"""The readers, case by case: nothing that is named is answered wrongly in silence, nothing vanishes,
and no name ends a run.
"""

import io
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import picture
from tests.support.writing import as_written
from trimtok_cli.cli import app
from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import MediaError, UsageError, sentence
from trimtok_cli.outputs.jsonl import to_line
from trimtok_cli.readers import folders, read_any
from trimtok_cli.readers import text as text_module
from trimtok_cli.readers.paths import read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.reading import Reading

ROOT = str(Path(__file__).parents[2])

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 30
MP4 = b"\0\0\0\x18ftypisom" + b"\0" * 30


def refusal(call, *args, **options):
    with pytest.raises(UsageError) as caught:
        call(*args, **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700
    return said


def put(name, content=PNG):
    path = Path(os.fsdecode(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def questions(*rows, name="q.jsonl"):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return put(name, ("\n".join(lines) + "\n").encode())


def ids(source):
    return [sample.id for sample in source.samples]


# The picture of a row


UNDERSTOOD = [
    "image",
    "images",
    "image_path",
    "Image-Path",
    "IMAGE",
    "imageFile",
    "img",
    "imgs",
    "img_path",
    "picture",
    "photo",
    "file_name",
    "fileName",
    "filename",
    "filepath",
    "file_path",
    "path",
    "file",
    "url",
    "image_url",
    "image_id",
    "src",
]


@pytest.mark.parametrize("column", UNDERSTOOD)
def test_a_picture_under_any_clear_name_is_the_rows_picture(column):
    (sample,) = read_questions(questions({"id": 7, column: "a.png", "question": "What?"})).samples
    assert (sample.images, sample.names, sample.id, sample.problem) == (
        (Path("a.png"),),
        ("a.png",),
        7,
        "",
    )


@pytest.mark.parametrize(
    "column",
    ["video", "video_name", "video_path", "Video", "clip", "file_name", "path", "videos", "media"],
)
def test_a_video_under_any_clear_name_is_the_rows_video(column):
    value = ["v.mp4"] if column == "videos" else "v.mp4"
    (sample,) = read_questions(
        questions({column: value, "text": "What?", "question_id": 1})
    ).samples
    assert (sample.video, sample.images, sample.problem) == (Path("v.mp4"), (), "")


@pytest.mark.parametrize(
    "row",
    [
        {"foto": "a.png"},
        {"bild": "x/a.JPG"},
        {"left": "a.png", "right": "b.png"},
        {"image_1": "a.png", "image_2": "b.png"},
        {"image": "a.png", "image_2": "b.png"},
        {"media": {"path": "a.png"}},
        {"image_id": 123456},
        {"image_id": "000123"},
        {"image_bytes": "iVBORw0"},
        {"scan": "data:image/png;base64,AAAA"},
        {"image_path": "a.png", "img": "b.png"},
        {"image_url": "https://example.com/a.png"},
        {"image_url": {"url": "https://example.com/a"}},
        {"url": "http://e.com/a.png?w=1"},
        {"image": {"path": "a.png", "bytes": None}},
        {"image": "https://example.com/a"},
        {"mask": "a.tga"},
        {"frames": ["a.png", "b.png"]},
    ],
)
@pytest.mark.parametrize("text_only", [False, True])
def test_a_picture_that_is_not_understood_fails_its_row_and_the_column_is_named(row, text_only):
    path = questions({"image": "ok.png", "text": "?"}, {"text": "What?", "question_id": 5, **row})
    _, sample = read_questions(path, Reading(allow_text_only=text_only)).samples
    assert sample.problem and not sample.images and sample.video is None and sample.id == 5
    assert (
        any(column in sample.problem for column in row)
        or "nothing is fetched" in sample.problem
        or "data:" in sample.problem
    )


FURTHER = [
    {"image_2": ["b.png"]},
    {"image_2": {"path": "b.png"}},
    {"images": ["a.png", "b.png"]},
    {"image_path": "b.png"},
    {"img": "b.png"},
    {"image_b": "b.png"},
    {"image_right": "b.png"},
    {"second_image": "b.png"},
    {"reference_image": ["x/b.png"]},
    {"video_2": "b.mp4"},
]


@pytest.mark.parametrize("more", FURTHER, ids=json.dumps)
def test_a_row_that_names_one_more_picture_than_is_read_fails(more):
    _, sample = read_questions(
        questions({"image": "a.png", "text": "?"}, {"image": "a.png", "text": "Same?", **more})
    ).samples
    assert "one more picture" in sample.problem and next(iter(more)) in sample.problem


@pytest.mark.parametrize(
    "more",
    [
        {"images": ["a.png"]},
        {"image_path": "/data/a.png"},
        {"image_url": "http://e.com/b.png"},
        {"image_name": "a cat"},
        {"mask": "b.png"},
        {"image_2": None},
        {"image_2": ""},
        {"images": []},
        {"img": "http://e.com/b.png"},
    ],
)
def test_a_column_that_says_the_same_picture_again_is_none(more):
    (sample,) = read_questions(questions({"image": "a.png", "text": "Same?", **more})).samples
    assert (sample.problem, sample.images) == ("", (Path("a.png"),))


@pytest.mark.parametrize(
    "row",
    [
        '{"image": "a.png", "image": "b.png", "text": "?"}',
        '{"image": "a.png", "text": "Yes?", "text": "No?"}',
        '{"question_id": 1, "question_id": 2, "image": "a.png", "text": "?"}',
        '{"image": "a.png", "text": "Yes?", "more": {"a": 1, "a": 2}}',
    ],
)
def test_a_row_that_says_one_thing_twice_and_differently_fails(row):
    first, second = read_questions(questions({"image": "a.png", "text": "?"}, row)).samples
    assert not first.problem and "twice" in second.problem
    assert "twice" in refusal(read_questions, put("a.json", f"[{row}]".encode()))


@pytest.mark.skipif(not os.path.exists("/dev/fd/0"), reason="no /dev/fd here")
@pytest.mark.parametrize(
    "row, problem",
    [
        ({"text": "Words on a sign", "question": "What colour is it?"}, "may each be the question"),
        ({"Text": "One?", "Question": "Two?"}, "may each be the question"),
        (
            {"text": "One?", "question": "Two?", "file_name": "a.png", "question_id": 1},
            "may each be the question",
        ),
        ({"text": "A caption", "question": "Two?", "file_name": "a.png"}, ""),
        ({"text": "One?", "question": " One?"}, ""),
        ({"text": "One?", "question": {"id": 3}}, ""),
        ({"text": "One?", "question": "  "}, ""),
    ],
)
def test_a_row_of_two_questions_fails_and_none_is_taken_in_silence(row, problem):
    first, second = read_questions(
        questions({"image": "a.png", "text": "?"}, {"image": "a.png"} | row)
    ).samples
    assert not first.problem and (problem in second.problem if problem else not second.problem)


def test_pictures_of_a_file_on_standard_input_lie_in_the_current_folder():
    with open(questions({"image": "a.png", "text": "?"}, name="sub/q.jsonl"), "rb") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            (sample,) = read_questions(name).samples
            assert sample.images == (Path("a.png"),)


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_name_with_a_lines_end_is_said_whole_and_on_one_line(end):
    said = sentence(MediaError(f"a{end}b.png does not exist"))
    assert said.endswith("b.png does not exist") and len(said.splitlines()) == 1
    assert sentence(ValueError(f"bad{end}more")) == "ValueError: bad"


def test_a_row_without_a_picture_is_answered_only_where_that_is_allowed():
    path = questions(
        {"image": "a.png", "text": "?"}, {"text": "Why?", "topic": "physics", "width": 3}
    )
    assert "--allow-text-only" in list(read_questions(path).samples)[1].problem
    assert list(read_questions(path, Reading(allow_text_only=True)).samples)[1].problem == ""
    assert "--allow-text-only" in refusal(read_questions, questions({"text": "Why?"}))


def test_a_caption_is_no_question():
    said = refusal(
        read_questions,
        questions({"file_name": "a.png", "text": "A red cat."}, name="metadata.jsonl"),
    )
    assert "caption" in said and "file_name" in said
    rows = [
        {"file_name": "a.png", "text": "A cat.", "question": "Which?"},
        {"file_name": "a.png", "text": "Which?", "question_id": 1},
    ]
    assert [sample.question for sample in read_questions(questions(*rows)).samples] == [
        "Which?",
        "Which?",
    ]


@pytest.mark.parametrize("key", [1, "a", 1.0, -0.5, 10**20, "", "\ud83d"])
def test_an_id_is_kept_as_it_is(key):
    (sample,) = read_questions(
        questions({"question_id": key, "image": "a.png", "text": "?"})
    ).samples
    assert sample.id == key and type(sample.id) is type(key)


@pytest.mark.parametrize("key", [True, [1], {"a": 1}, float("nan"), float("inf")])
def test_an_id_that_is_none_fails_its_row(key):
    path = questions(
        {"question_id": 1, "image": "a.png", "text": "?"},
        {"question_id": key, "image": "a.png", "text": "?"},
    )
    _, sample = read_questions(path).samples
    assert (
        "question_id is neither a number nor a string" in sample.problem and sample.id == "line 2"
    )


def test_a_broken_row_takes_no_other_rows_id():
    sound = [{"question_id": number, "image": "a.png", "text": "?"} for number in range(4)]
    path = questions(
        sound[0],
        "{broken",
        sound[1],
        "[]",
        {"image": "a.png", "text": "?"},
        {"question_id": None, "text": "?"},
        *sound[2:],
    )
    found = ids(read_questions(path))
    assert len(set(found)) == len(found) == 8


def test_half_a_character_fails_its_row():
    _, sample = read_questions(questions(ROW, {**ROW, "text": "\ud83d?"})).samples
    assert "half a character" in sample.problem


def test_columns_ride_along_and_depth_is_bounded():
    deep = "[" * 600 + "NaN" + "]" * 600
    path = questions(
        '{"image": "a.png", "text": "?", "score": NaN, "id": 3}',
        f'{{"image": "a.png", "text": "?", "x": {deep}}}',
    )
    first, second = read_questions(path).samples
    assert set(first.extra) == {"score", "id"} and "levels deep" in second.problem


# Files of another shape


def pretty(value):
    return json.dumps(value, indent=2)


ROW = {"question_id": 1, "image": "a.png", "text": "?"}
VQAV2 = {"info": {}, "questions": [{"image_id": 1, "question": "What?", "question_id": 1}] * 3}
SHAPES = {
    "pretty.json": (pretty(ROW), "one JSON object over several lines"),
    "two-pretty.json": (pretty(ROW) + "\n" + pretty(ROW), "one JSON object over several lines"),
    "vqav2.json": (json.dumps(VQAV2), "VQAv2 question file"),
    "vqav2-pretty.json": (pretty(VQAV2), "VQAv2 question file"),
    "half-pretty.json": (
        '{"questions": [\n{"image": "a.png", "text": "?"},\n{"image": "a.png", "text": "?"}\n]}',
        "VQAv2",
    ),
    "textvqa.json": (
        json.dumps({"dataset_type": "val", "dataset_name": "textvqa", "data": [{"question": "?"}]}),
        "TextVQA",
    ),
    "coco.json": (
        json.dumps({"images": [], "annotations": [], "categories": []}),
        "COCO annotation",
    ),
    "results.json": (json.dumps([{"image_id": 1, "caption": "A cat."}] * 2), "COCO caption"),
    "batch.jsonl": (
        '{"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"messages": []}}\n',
        "only /v1/chat/completions",
    ),
    "chat.jsonl": ('{"messages": [{"role": "user", "content": "?"}]}\n' * 3, "no picture"),
    "sharegpt.jsonl": ('{"conversations": []}\n' * 3, "conversation"),
    "answers.jsonl": (
        '{"question_id": 1, "prompt": "?", "text": "yes", "answer_id": "x", "image": "a.png"}\n',
        "answers file",
    ),
    "rows.csv": ("question_id,image,question\n1,a.png,What?\n", "CSV table"),
    "rows.tsv": ("image\tquestion\na.png\tWhat?\n", "TSV table"),
    "mmbench.tsv": (
        "index\tquestion\thint\tA\tB\timage\n1\tWhat?\t\tx\ty\t/9j/4AAQ\n",
        "TSV table as MMBench's",
    ),
    "list.txt": ("a.png\nb.png\n", "plain text"),
    "page.jsonl": ("<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML page"),
    "picture.xml": ("<?xml version='1.0'?><svg/>", "XML"),
    "lfs.jsonl": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n",
        "Git LFS pointer",
    ),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), "UTF-16"),
    "utf16-bare.jsonl": ('{"text": "abcdefghijklmnopq"}'.encode("utf-16-le"), "UTF-16"),
    "rows.jsonl.gz": (b"\x1f\x8b\x08" + b"\0" * 30, "gzip"),
    "rows.parquet": (b"PAR1" + b"\x15\0" * 30, "parquet"),
    "rows.zip": (b"PK\x03\x04" + b"\0" * 30, "zip"),
    "a.png": (PNG, "a picture"),
    "v.mp4": (MP4, "a video"),
    "zeros.jsonl": (b"\0" * 5000, "UTF-8"),
    "latin1.jsonl": ('{"image": "a.png", "text": "schön"}'.encode("latin-1"), "not UTF-8"),
    "empty.jsonl": ("", "no questions"),
    "blank.jsonl": ("\n \n\n", "no questions"),
    "python.jsonl": ("{'image': 'a.png', 'text': '?'}\n", "not valid JSON"),
    "no-question.jsonl": ('{"image": "a.png"}\n' * 3, "there is no question"),
    "array-cut.json": ('[{"image": "a.png", "text": "?"}, {"im', "not one"),
}


# Formats that are read from a file, and refused where they come through a pipe.
FILES_ALONE = ("vqav2.json", "vqav2-pretty.json", "rows.csv", "rows.tsv")


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (way, name)
        for way in ("file", "stdin", "pipe")
        for name in SHAPES
        if name != "half-pretty.json" and not (way == "file" and name in FILES_ALONE)
    ],
)
def test_a_file_of_another_shape_is_one_sentence_before_anything_is_loaded(name, way, monkeypatch):
    content, said = SHAPES[name]
    content = content.encode() if isinstance(content, str) else content
    if way == "file":
        assert said in refusal(read_questions, put(name, content))
    elif way == "stdin":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert said in refusal(read_questions, "-")
    else:
        with pipe(content) as path:
            assert said in refusal(read_questions, path)


def test_of_a_stream_of_another_shape_one_line_may_be_a_row(monkeypatch):
    content = SHAPES["half-pretty.json"][0].encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    from_stdin = [bool(sample.problem) for sample in read_questions("-").samples]
    with pipe(content) as path:
        from_pipe = [bool(sample.problem) for sample in read_questions(path).samples]
    assert from_stdin == from_pipe == [True, True, False, True]


class pipe:
    """The name of an anonymous pipe that holds `content`, as a shell's <(...) gives it."""

    def __init__(self, content):
        self.content = content

    def __enter__(self):
        self.handle, write = os.pipe()
        self.thread = threading.Thread(target=self._write, args=(write,))
        self.thread.start()
        return f"/dev/fd/{self.handle}"

    def _write(self, handle):
        with os.fdopen(handle, "wb") as file:
            try:
                file.write(self.content)
                file.flush()
            except BrokenPipeError:
                pass

    def __exit__(self, *_):
        os.close(self.handle)
        self.thread.join()


def test_broken_rows_in_front_of_sound_ones_stay_rows(monkeypatch):
    lines = [
        "{broken",
        '{"question": [',
        "a,b",
        "{",
        '{"custom_id": 1, "body": {}}',
        *[json.dumps(ROW)] * 3,
    ]
    text = "\n".join(lines)
    for source in (read_questions(questions(*lines)), stream(monkeypatch, text)):
        samples = list(source.samples)
        assert [bool(sample.problem) for sample in samples] == [True] * 5 + [False] * 3


def stream(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return read_questions("-")


def test_a_large_file_of_another_shape_is_refused_in_bounded_time():
    begun = time.perf_counter()
    put(
        "big.json",
        b'{"info": 1, "questions": [\n'
        + b'{"question_id": 1, "question": "?"},\n' * 100_000
        + b"{}]}",
    )
    assert "VQAv2" in refusal(read_questions, "big.json")
    put("big.csv", b"question,image\n" + b"what;a.png\n" * 150_000)
    assert "CSV" in refusal(read_questions, "big.csv")
    assert time.perf_counter() - begun < 15


# Sources that are read once, and files that change


def test_a_pipe_is_read_once_and_its_rows_are_answered():
    content = "".join(
        json.dumps(ROW | {"question_id": number}) + "\n" for number in range(2000)
    ).encode()
    with pipe(content) as path:
        source = read_questions(path)
        samples = list(source.samples)
        assert source.total is None and [sample.id for sample in samples] == list(range(2000))
        assert samples[0].images == (Path("a.png"),)  # from the current folder
    with pipe(content) as path:
        assert len(list(read_any([path]).samples)) == 2000
    with pipe(b"a.png\nb.png\n") as path:
        assert ids(read_images(["@" + path])) == ["a.png", "b.png"]


def test_a_named_pipe_is_read_or_refused_and_never_waited_for_in_vain(monkeypatch):
    os.mkfifo("fifo")
    monkeypatch.setattr(text_module, "PATIENCE", 0.2)
    for call, name in ((read_questions, "fifo"), (read_images, ["@fifo"])):
        assert "nothing was written" in refusal(call, name)
    assert "pipe" in refusal(read_images, ["fifo"])
    monkeypatch.setattr(text_module, "PATIENCE", 10)
    writer = threading.Thread(target=lambda: Path("fifo").write_text(json.dumps(ROW) + "\n"))
    writer.start()
    assert ids(read_questions("fifo")) == [1]
    writer.join()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 200),
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, len((json.dumps(ROW) + "\n") * 7)),
        lambda path: Path(path).unlink(),
        lambda path: Path(path).write_text((json.dumps(ROW) + "\n") * 60),
        lambda path: Path(path).write_bytes(b"\0" * 60),
        lambda path: Path(path).write_text("["),
        lambda path: (Path(path).unlink(), Path(path).mkdir()),
    ],
)
def test_a_question_file_that_changes_under_the_run_is_said(change):
    path = questions(*({**ROW, "question_id": number} for number in range(60)))
    source = read_questions(path)
    change(path)
    last = list(source.samples)[-1]
    assert last.problem and path in last.problem


def test_rows_that_are_added_during_the_run_are_answered_and_nothing_is_said():
    path = questions(*({**ROW, "question_id": number} for number in range(6)), "", "")
    source = read_questions(path)
    with open(path, "a") as file:
        file.write(json.dumps(ROW | {"question_id": 6}) + "\n")
    assert ids(source) == list(range(7))


def test_nothing_on_standard_input_is_an_error(monkeypatch):
    for content in (b"", b"\n\n", b"# only a note\n", b"\0\0"):
        assert "names no images" in refusal(
            read_images, ["-"], stdin=io.TextIOWrapper(io.BytesIO(content))
        )
    monkeypatch.setattr("sys.stdin", None)
    assert "closed" in refusal(read_images, ["-"]) and "closed" in refusal(read_questions, "-")
    put("a.png")
    assert "closed" in refusal(read_images, ["a.png", "-"])
    *_, last = read_images(["a.png", "-"], stdin=io.StringIO("")).samples
    assert "names no images" in last.problem
    assert "only once" in refusal(read_images, ["-", "-"])
    assert "names no images" in refusal(read_images, ["@" + put("empty.txt", b"")])


def test_a_source_says_what_it_reads():
    put("in/a.png"), put("list", b"in/a.png\n")
    path = questions(ROW, name="stdin")
    assert read_questions(path).files == (Path("stdin"),) and ids(read_questions(path)) == [1]
    assert set(read_images(["in", "@list"]).files) == {Path("in"), Path("list"), Path("in/a.png")}
    assert read_images(["-"], stdin=io.StringIO("a.png\n"), limit=1).files == (0,)


# Which file a row is about


def test_files_of_one_name_in_several_places_are_told_apart():
    for name in ("monday/IMG_1.png", "tuesday/IMG_1.png", "IMG_1.png"):
        put(name)
    put("monday/l.txt", b"IMG_1.png\n")
    put("tuesday/l.txt", b"IMG_1.png\n")
    assert ids(read_images(["monday", "tuesday"])) == ["monday/IMG_1.png", "tuesday/IMG_1.png"]
    assert ids(read_images(["monday", "IMG_1.png"])) == ["monday/IMG_1.png", "IMG_1.png"]
    assert ids(read_images(["@monday/l.txt", "@tuesday/l.txt"])) == [
        "monday/IMG_1.png",
        "tuesday/IMG_1.png",
    ]
    assert ids(read_images(["monday", "-"], stdin=io.StringIO("IMG_1.png\n"))) == [
        "monday/IMG_1.png",
        "IMG_1.png",
    ]
    assert ids(read_images(["monday"])) == ["IMG_1.png"]
    assert ids(read_images([str(Path("monday").resolve()), "tuesday"]))[0].endswith(
        "/monday/IMG_1.png"
    )


def test_a_file_that_is_named_twice_is_answered_twice_and_that_is_said():
    put("in/a.png")
    source = read_images(["in", "in/a.png", "in"])
    assert ids(source) == ["in/a.png"] * 3 and "named more than once" in " ".join(source.notes)
    assert not read_images(["in"]).notes


# Files beside pictures


SIDECARS = {
    "a.json": b"{}",
    "a.txt": b"a cat",
    "a.xmp": b"<x/>",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    ".DS_Store": b"\0\0\0\1Bud1",
} | {
    "metadata.jsonl": b"{}\n",
    "a.png.json": b"{}",
    "captions.csv": b"a,b\n",
    "note": b"hello there",
    "empty.txt": b"",
    "song.m4a": b"\0\0\0\x18ftypM4A ",
    "b.psd": b"8BPS\0\1",
    "c.svg": b"<svg/>",
    "sound.wav": b"RIFF\0\0\0\0WAVE",
}


def test_named_files_that_are_no_pictures_are_passed_over_and_counted():
    put("photos/a.png")
    for name, content in SIDECARS.items():
        put(f"photos/{name}", content)
    os.mkfifo("photos/pipe")
    Path("photos/sub").mkdir()
    os.symlink("nowhere.png", "photos/dead.png")
    os.symlink("loop", "photos/loop")
    names = sorted(str(path) for path in Path("photos").iterdir())
    source = read_images(names)
    samples = {sample.id: sample for sample in source.samples}
    assert (
        set(samples) == {"photos/a.png", "photos/dead.png", "photos/loop"}
        and "loop" in samples["photos/loop"].problem
    )
    notes = " ".join(source.notes)
    assert (
        f"{len(SIDECARS) + 1} files passed over" in notes
        and ".txt" in notes
        and "no images in photos/sub" in notes
    )
    assert "passed over" in " ".join(read_images(["photos"]).notes)
    assert len(list(read_any(names).samples)) == 3
    assert "only source" in refusal(read_any, [*names, questions(ROW)])


def test_where_all_that_was_named_is_no_picture_that_is_an_error():
    put("a.txt", b"text"), put("b.txt", b"text"), put("c.html", b"<html>")
    assert "2 .txt" in refusal(read_images, ["a.txt", "b.txt"])
    assert "no image and no video" in refusal(read_images, ["a.txt"])
    assert "no image and no video" in refusal(read_images, ["c.html"])
    assert "/dev/null" in refusal(read_images, ["/dev/null"])
    # The content counts, not the ending.
    assert ids(read_images([put("renamed.txt", JPEG)])) == ["renamed.txt"]


def test_a_folder_as_a_downloader_leaves_it():
    pictures = {
        "a.png": PNG,
        "b.jpg_large": JPEG,
        "c.jpg?width=1200": JPEG,
        "d": PNG,
        "k.jpeg_orig": b"GIF89a" + b"\0" * 9,
    }
    videos = {
        "v.mp4": MP4,
        "w": MP4,
        "x.MTS": (b"G" + b"\0" * 187) * 4,
        "y.m2ts": (b"\0\0\0\0G" + b"\0" * 187) * 4,
    }
    others = {
        "h.pcx": b"\n\5\1\x08",
        "g.psd": b"8BPS\0\1",
        "i.svg": b"<svg/>",
        "f.jxl": b"\xff\x0a",
        "z": b"",
        "t": b"Good text" * 90,
    }
    for name, content in (pictures | videos | others).items():
        put(f"in/{name}", content)
    for recursive in (False, True):
        source = read_images(["in"], recursive=recursive)
        samples = {sample.id: sample for sample in source.samples}
        assert {name for name, sample in samples.items() if sample.images} == set(pictures)
        assert {name for name, sample in samples.items() if sample.video} == set(videos)
        (note,) = source.notes
        assert note.startswith("6 files passed over") and all(
            ending in note for ending in (".pcx", ".psd", ".svg", ".jxl", "2 without")
        )
    assert {sample.id for sample in read_images(["in/*"]).samples} == {
        f"in/{name}" for name in pictures | videos
    }


def test_known_endings_are_not_opened(monkeypatch):
    for number in range(50):
        put(f"in/{number}.jpg", b""), put(f"in/{number}.txt", b"")
    monkeypatch.setattr(folders, "media_kind", lambda path: pytest.fail(f"{path} was opened"))
    assert len(list(read_images(["in"]).samples)) == 50


# Folders without an end


def test_a_system_folder_is_passed_over_in_a_search_but_not_when_it_is_named():
    for name in (
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "__MACOSX",
        ".thumbnails",
        "lost+found",
        "ok",
    ):
        put(f"in/{name}/a.png")
    assert ids(read_images(["in"], recursive=True)) == ["ok/a.png"]
    assert ids(read_images(["in/**/*.png"])) == ["in/ok/a.png"]
    assert ids(read_images(["in/@eaDir"])) == ["a.png"]


def test_folders_that_link_to_each_other_are_visited_once():
    for level in range(25):
        put(f"in/{level}/p.png")
        for link in "ab":
            os.symlink(f"../{(level + 1) % 25}", f"in/{level}/{link}")
    os.symlink("in", "again")
    begun = time.perf_counter()
    for source in (["in"], ["in/**/*.png"], ["again"]):
        assert len(ids(read_images(source, recursive=True))) == 25
    assert time.perf_counter() - begun < 5


@pytest.fixture
def deep():
    """1,500 folders, one in the other, and a picture in the last.

    They are removed here, as pytest would recurse.
    """
    here = os.getcwd()
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    Path("a.png").write_bytes(PNG)
    os.chdir(here)
    yield "d"
    subprocess.run(["rm", "-rf", "d"], check=True)


def test_fifteen_hundred_folders_within_each_other(deep):
    (found,) = ids(read_images([deep], recursive=True))
    assert found == "d/" * 1499 + "a.png"
    assert len(ids(read_images(["d/**/*.png"]))) == 1


def test_one_bad_entry_is_said_and_ends_nothing(monkeypatch):
    put("in/a.png"), put("in/closed/b.png"), put("in/z/c.png")
    os.symlink("self", "in/self")
    os.symlink("self.png", "in/self.png")
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = read_images(["in"], recursive=True)
    samples = {sample.id: sample for sample in source.samples}
    assert {name for name, sample in samples.items() if not sample.problem} >= {"a.png", "z/c.png"}
    assert "Permission denied" in samples["closed"].problem
    assert "self" in " ".join(source.notes)
    assert set(ids(read_images(["in"]))) >= {"a.png"}


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc here")
def test_the_kernels_own_folders_are_not_searched():
    for source in (["/proc"], ["/proc/**/*.png"], ["/sys"]):
        assert "no images" in refusal(read_images, source, recursive=True)
    os.symlink("/proc", "link")
    put("in/a.png")
    os.symlink("/proc/self/root/proc", "in/all")
    assert ids(read_images(["in"], recursive=True)) == ["a.png"]


def test_a_pattern_of_many_stars_ends():
    put("/".join("abcdefghijklmnop") + "/x.jpg")
    assert "no images match" in refusal(read_images, ["a/" + "**/" * 30 + "y*.png"])
    assert len(ids(read_images(["a/" + "**/" * 30 + "*.jpg"]))) == 1


# Names


NAMES = [
    b"#001.png",
    b" blank.png",
    b"blank2.png ",
    b"two\nlines.png",
    b"caf\xe9.png",
    "图.png".encode(),
    b"%s.png",
    b"[bold].png",
    b"a" * 250 + b".png",
    b"\x1b[31m.png",
    b"-dash.png",
    "e\u0301\u202e.png".encode(),
    b"back\\slash.png",
    b"'\".png",
    b"tab\t.png",
]


def test_any_name_is_read_from_a_folder_from_the_command_line_and_between_nuls():
    for name in NAMES:
        put(b"in/" + name)
    wanted = {os.fsdecode(name) for name in NAMES}
    assert set(ids(read_images(["in"]))) == wanted
    assert set(ids(read_images([f"in/{name}" for name in wanted]))) == {
        f"in/{name}" for name in wanted
    }
    put("in/list", b"\0".join(NAMES) + b"\0")
    found = list(read_images(["@in/list"]).samples)
    assert [sample.id for sample in found] == [os.fsdecode(name) for name in NAMES] and all(
        sample.images[0].exists() for sample in found
    )
    stdin = io.TextIOWrapper(
        io.BytesIO(b"\0".join(b"in/" + name for name in NAMES)), encoding="ascii"
    )
    assert all(sample.images[0].exists() for sample in read_images(["-"], stdin=stdin).samples)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_any_name_is_read_from_a_line(end, bom):
    lines = [name for name in NAMES if b"\n" not in name]
    for name in lines:
        put(b"in/" + name)
    content = bom + end.join([*lines, b"", b"# a note", b"  ", b"  in/gone.png  "]) + end
    put("in/list.txt", content)
    expected = [os.fsdecode(name) for name in lines] + ["in/gone.png"]
    assert ids(read_images(["@in/list.txt"])) == expected
    os.chdir("in")
    assert (
        ids(read_images(["-"], stdin=io.TextIOWrapper(io.BytesIO(content), encoding="ascii")))
        == expected
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a\0b.png", ""),
        (b"x" * 100_000, ""),
        (b"caf\xe9.png", "UTF-8"),
        (b"https://e.com/a.png", "nothing is fetched"),
        (b"data:image/png;base64," + b"A" * 50_000 + b"!", "damaged"),
    ],
)
def test_a_line_that_is_no_name_fails_alone_and_floods_nothing(line, said):
    put("a.png"), put("list.txt", b"a.png\n" * 20_000 + line + b"\na.png\n")
    samples = list(read_images(["@list.txt"]).samples)
    assert len(samples) == 20_002 and samples[-1].id == "a.png"
    assert said in samples[-2].problem and len(samples[-2].problem) < 5000
    assert len("".join(samples[-2].names)) < 5000


@pytest.mark.parametrize(
    "name",
    [
        "P3 2019.png",
        "P5 #2.png",
        "GIF89a.png",
        "qoif.png",
        "BMW.png",
        "PAR1.png",
        "%PDF.png",
        "BZh9.png",
    ],
)
def test_a_name_that_begins_as_a_picture_does_is_a_name(name):
    put(name)
    Path("list.txt").write_text(f"{name}\na.png\n")
    assert ids(read_images(["@list.txt"])) == [name, "a.png"]
    assert ids(
        read_images(["-"], stdin=io.TextIOWrapper(io.BytesIO(Path("list.txt").read_bytes())))
    ) == [name, "a.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_utf16_is_refused(encoding):
    content = "photos/a.png\nphotos/b.png\n".encode(encoding)
    assert "UTF-16" in refusal(read_images, ["@" + put("list.txt", content)])
    assert "UTF-16" in refusal(read_images, ["-"], stdin=io.TextIOWrapper(io.BytesIO(content)))
    put("a.png")
    *_, last = read_images(["a.png", "-"], stdin=io.TextIOWrapper(io.BytesIO(content))).samples
    assert "UTF-16" in last.problem


def test_a_picture_that_is_given_as_a_list_is_refused():
    assert "a picture" in refusal(read_images, ["@" + put("a.bin", PNG)])


@pytest.mark.parametrize(
    "source",
    [
        "https://example.com/a.png",
        "x" * 100_000,
        "a\0b",
        "\ud83d",
    ],
)
def test_a_source_that_is_no_name_is_one_short_sentence(source):
    assert len(refusal(read_images, [source])) < 500
    assert len(refusal(read_questions, source)) < 500


BAD_NAMES = [
    "data:image/png;base64," + "A" * 100_000 + "!",
    "data:image/png;base64,",
    "data:image/png;base64",
    "http://127.0.0.1/a.png",
    "s3://bucket/a.png",
    "C:\\pictures\\a.png",
    "d:/pictures/a.png",
    "\\\\server\\a.png",
    "a\0b.png",
    "\ud83d.png",
    "ftp://x/y",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_rows_picture_that_is_no_file_name_fails_its_row(name):
    _, sample = read_questions(
        questions(ROW, {**ROW, "image": name}), Reading(allow_outside=True)
    ).samples
    assert 0 < len(sample.problem) < 300 and len("".join(sample.names)) < 200 and not sample.images


# Leaving --image-root


def test_pictures_outside_the_root_are_opened_only_where_that_is_allowed():
    put("secret/s.png"), put("data/in.png"), put("data/sub/x.png")
    os.symlink("../secret/s.png", "data/link.png")
    os.symlink("../secret", "data/folder")
    os.symlink("sub", "data/inner")
    outside = [
        "../secret/s.png",
        str(Path("secret/s.png").resolve()),
        "sub/../../secret/s.png",
        "link.png",
        "folder/s.png",
        "folder/../secret/s.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/",
        "..",
    ]
    inside = [
        "in.png",
        "./in.png",
        "sub/../in.png",
        str(Path("data/in.png").resolve()),
        "inner/x.png",
        "nowhere.png",
        "..png",
    ]
    path = questions(*({**ROW, "image": name} for name in inside + outside), name="data/q.jsonl")
    for root in (None, Path("data"), Path("data/inner/..")):
        problems = [
            sample.problem for sample in read_questions(path, Reading(image_root=root)).samples
        ]
        assert not any(problems[: len(inside)])
        assert all("--allow-outside" in problem for problem in problems[len(inside) :])
    assert not any(
        sample.problem for sample in read_questions(path, Reading(allow_outside=True)).samples
    )
    assert "--image-root" in refusal(read_questions, questions({**ROW, "video": "/v.mp4"}))


def test_a_snapshot_of_the_hub_is_a_folder_of_links():
    put("hub/blobs/abc"), put("hub/other/s.png")
    snapshot = Path("hub/snapshots/1234")
    snapshot.mkdir(parents=True)
    os.symlink("../../blobs/abc", snapshot / "a.png")
    os.symlink("../../other/s.png", snapshot / "s.png")
    first, second = read_questions(
        questions(ROW, {**ROW, "image": "s.png"}, name=snapshot / "q.jsonl")
    ).samples
    assert not first.problem and "--allow-outside" in second.problem


# From the command line to the file that is written


def run(*args, code=0, stdin=None):
    done = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
    assert done.exit_code == code, f"{done.exit_code}\n{done.stderr}\n{done.exception!r}"
    assert "Traceback" not in done.stderr
    return done


def written(path):
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]


@pytest.mark.parametrize("way", ["folder", "named", "stdin", "nul", "compare", "workers"])
def test_no_name_ends_a_run_and_each_has_its_row(way, llava_folder):
    names = [
        b"in/#1.png",
        b"in/caf\xe9.png",
        b"in/ blank .png",
        b"in/\x1b[31m.png",
        "in/图.png".encode(),
    ]
    for number, name in enumerate(names):
        put(name, b"")
        picture(number).save(os.fsdecode(name))
    put("in/broken.png", b"nothing")
    options = ["-m", llava_folder, "--max-new-tokens", 1, "--keep", 4, "-o", "out"]
    paths = [os.fsdecode(name) for name in names]
    stdin = {"stdin": b"\n".join(names), "nul": b"\0".join(names)}.get(way)
    if way == "named":
        run("caption", *paths, "in/broken.png", *options, code=3)
    elif way == "compare":
        run("compare", "in", *options, code=3)
    elif stdin:
        run("caption", "-", *options, stdin=stdin)
    else:
        run("caption", "in", *options, *(["--workers", 1] if way == "workers" else []), code=3)
    found = written("out/compare.jsonl" if way == "compare" else "out/answers.jsonl")
    assert {row["image"].rpartition("/")[2] for row in found} >= {
        path.rpartition("/")[2] for path in paths
    }
    assert len(found) == len(names) + (stdin is None)


def test_rows_are_answered_or_failed_and_all_of_them_are_written(llava_folder):
    picture(1).save("a.png")
    rows = [
        {"question_id": 1.0, "image": "a.png", "text": "?", "note": float("nan")},
        {"image_path": "a.png", "text": "?", "id": "\ud83d"},
        {"question_id": 3, "foto": "a.png", "text": "?"},
        {"question_id": 4, "text": "\ud83d", "image": "a.png"},
        "{broken",
        {"question_id": 6, "image": "data:image/png;base64," + "A" * 50_000, "text": "?"},
        {"question_id": 7, "image": "/etc/passwd", "text": "?"},
    ]
    done = run(
        "vqa", questions(*rows), "-m", llava_folder, "--max-new-tokens", 1, "-o", "o.jsonl", code=3
    )
    found = written("o.jsonl")
    assert [row["question_id"] for row in found] == [1.0, "\ud83d", 3, 4, "line 5", 6, 7]
    assert [row["metadata"]["status"] for row in found] == ["ok", "ok"] + ["error"] * 5
    assert (
        found[0]["note"] is None
        and len(done.stderr) < 10_000
        and Path("o.jsonl").stat().st_size < 50_000
    )
    assert "5 failed" in done.stderr


def test_a_file_of_another_shape_is_exit_2_and_no_model_is_looked_for():
    (
        put("metadata.jsonl", b'{"file_name": "a.png", "text": "a cat"}\n'),
        put("rows.csv", b"image,question\n"),
        put("a.txt", b"text"),
    )
    for args in (
        ["vqa", "metadata.jsonl"],
        ["vqa", "rows.csv"],
        ["compare", "metadata.jsonl"],
        ["caption", "a.txt"],
        ["vqa", "a.txt"],
    ):
        done = run(*args, "-m", "no-such-model", code=2)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for command in ("caption", "vqa"):
        assert run(command, "-", "-m", "no-such-model", code=2, stdin="").stderr.count("\n") == 1


def test_a_question_without_a_picture_is_asked_where_that_is_allowed(llava_folder):
    path = questions({"question_id": 1, "text": "Who?"})
    run("vqa", path, "-m", llava_folder, "-o", "o", code=2)
    for command in ("vqa", "compare"):
        run(
            command,
            path,
            "-m",
            llava_folder,
            "--allow-text-only",
            "--max-new-tokens",
            1,
            "--keep",
            4,
            "-o",
            f"{command}.jsonl",
        )
        assert len(written(f"{command}.jsonl")) == 1


def test_a_result_whose_columns_cannot_be_written_has_failed_and_its_row_is_written():
    deep = []
    for _ in range(5000):
        deep = [deep]
    for extra in ({"x": deep}, {"x": {1, 2}}, {("a", "b"): 1}):
        result, line = as_written(
            Result(Sample("one", extra=extra), "?", answer="yes", finish="stop"), model="m", run="r"
        )
        row = json.loads(line)
        assert (
            "cannot be written" in result.error
            and row["metadata"]["status"] == "error"
            and row["question_id"] == "one"
        )


def test_no_number_is_written_that_json_does_not_know_however_deep_it_stands():
    deep = value = []
    for _ in range(400):
        value.append([])
        value = value[0]
    value.append(float("nan"))
    line = to_line({"x": deep, "y": {"z": [float("inf"), 1.5]}})
    assert (
        "NaN" not in line and json.loads(line)["y"] == {"z": [None, 1.5]} and value[0] != value[0]
    )


def test_an_answers_id_is_the_uuid_it_was():
    result = Result(Sample("é", names=("a.png",)), "why?")
    wanted = uuid.uuid5(uuid.NAMESPACE_URL, "r/é/['a.png']/why?").hex
    assert json.loads(as_written(result, model="m", run="r")[1])["answer_id"] == wanted


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_standard_output_is_utf8_whatever_its_encoding_is_called(encoding):
    code = (
        "from trimtok_cli.outputs.whole_files import Printed\nfrom "
        "trimtok_cli.outputs.jsonl import line_of\nPrinted().append(line_of({'image': "
        "'图\\udce9.png'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": ROOT},
    )
    assert (
        json.loads(done.stdout.decode()) == {"image": "图\udce9.png"}
        and done.stdout.endswith(b"\n")
        and not done.stderr
    )
