"""Readers: which samples a source holds, in which order, and the message where it holds none."""

import io
import json
import os
from pathlib import Path

import pytest

from trimtok_cli.errors import UsageError
from trimtok_cli.media.images import load_image
from trimtok_cli.readers import read_any
from trimtok_cli.readers.folders import natural_key
from trimtok_cli.readers.paths import read_images
from trimtok_cli.readers.questions import read_questions
from trimtok_cli.readers.reading import Reading


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def ids(source):
    samples = list(source.samples)
    assert source.total in (None, len(samples))
    assert all(
        sample.names == (sample.id,) and len(sample.images) == 1 and not sample.problem
        for sample in samples
    )
    return [sample.id for sample in samples]


def refusal(call, *args, **options):
    with pytest.raises(UsageError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_folder_in_natural_order(here):
    touch(
        "in/img10.jpg",
        "in/img2.JPG",
        "in/IMG1.png",
        "in/a.txt",
        "in/.hidden.jpg",
        "in/.h/x.jpg",
        "in/sub/0.jpg",
    )
    source = read_images(["in"])
    assert ids(source) == ["IMG1.png", "img2.JPG", "img10.jpg"]
    assert read_images(["in/"]).samples != [] and next(
        iter(read_images(["in"]).samples)
    ).images == (Path("in/IMG1.png"),)


def test_a_folder_with_its_subfolders(here):
    touch(
        "in/z.jpg",
        "in/b10/1.jpg",
        "in/b2/2.jpg",
        "in/b2/deep/0.webp",
        "in/a.jpg",
        "in/.git/x.jpg",
        "in/b2/.x/y.jpg",
    )
    assert ids(read_images(["in"], recursive=True)) == [
        "a.jpg",
        "z.jpg",
        "b2/2.jpg",
        "b2/deep/0.webp",
        "b10/1.jpg",
    ]


def test_a_folder_named_like_an_image_and_one_named_like_questions(here):
    touch("in/album.jpg/1.png", "in/2.png", "rows.jsonl/3.png")
    assert ids(read_images(["in"], recursive=True)) == ["2.png", "album.jpg/1.png"]
    assert ids(read_images(["rows.jsonl"])) == ids(read_any(["rows.jsonl"])) == ["3.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_links_are_followed_but_not_in_circles(here):
    touch("in/a/1.jpg", "other/2.jpg")
    os.symlink(here / "in", "in/a/up")
    os.symlink(here / "in/a", "in/a/self")
    os.symlink(here / "other", "in/link")
    os.symlink("nowhere.jpg", "in/broken.jpg")
    expected = ["broken.jpg", "a/1.jpg", "link/2.jpg"]
    assert ids(read_images(["in"], recursive=True)) == expected
    assert ids(read_images(["in/**/*.jpg"])) == [f"in/{name}" for name in expected]


def test_a_folder_without_images_says_what_to_do(here):
    touch("in/a.txt", "deep/a/b/c.jpg")
    assert "-r" not in refusal(
        read_images, ["in"]
    ) and "no images in in (looked for .jpg" in refusal(read_images, ["in"])
    assert "add -r" in refusal(read_images, ["deep"])
    assert "-r" not in refusal(read_images, ["in"], recursive=True)


def test_natural_key():
    names = ["a10", "a2", "A1", "10", "9", "b", "", "a2b10", "a2b9", "٣", "a02"]
    assert sorted(names, key=natural_key) == [
        "",
        "٣",
        "9",
        "10",
        "A1",
        "a02",
        "a2",
        "a2b9",
        "a2b10",
        "a10",
        "b",
    ]


# Files and patterns


def test_files_as_given_twice_and_with_any_suffix(here):
    touch("a.jpg", "scan.dat", "ünïcode 图.png", "[red].png", "r.png")
    names = [
        "./a.jpg",
        "a.jpg",
        "a.jpg",
        "scan.dat",
        "ünïcode 图.png",
        "[red].png",
        str(here / "a.jpg"),
    ]
    assert ids(read_images(names)) == names
    assert ids(read_images(["[red].png"])) == ["[red].png"] and ids(read_images(["[rx].png"])) == [
        "r.png"
    ]


def test_patterns(here):
    touch(
        "a2.png",
        "a10.png",
        "b.jpg",
        "c.txt",
        "in/d.png",
        "in/deep/e.png",
        "in/.h/f.png",
        "[x]/g.png",
        "x/h.png",
    )
    assert ids(read_images(["*.png"])) == ["a2.png", "a10.png"]
    assert ids(read_images(["a?.png"])) == ["a2.png"]
    assert ids(read_images(["*"])) == ["a2.png", "a10.png", "b.jpg"]  # c.txt is no image
    assert ids(read_images(["in/**/*.png"])) == ["in/d.png", "in/deep/e.png"]
    assert ids(read_images(["**/*.png"])) == [
        "a2.png",
        "a10.png",
        "[x]/g.png",
        "in/d.png",
        "in/deep/e.png",
        "x/h.png",
    ]
    assert ids(read_images(["*/*.png"])) == ["[x]/g.png", "in/d.png", "x/h.png"]
    assert ids(read_images(["in/**"])) == ["in/d.png", "in/deep/e.png"]
    assert ids(read_images(["[x]/*.png"])) == ["[x]/g.png"]
    assert ids(read_images([f"{here}/in/*.png"])) == [f"{here.as_posix()}/in/d.png"]
    assert ids(read_images(["in/../a*.png"])) == ["in/../a2.png", "in/../a10.png"]
    assert "no images match *.webp" in refusal(read_images, ["*.webp"])
    assert "no images match no/*.png" in refusal(read_images, ["no/*.png"])


def test_what_is_refused(here):
    touch("q.jsonl")
    assert "does not exist" in refusal(read_images, ["no.jpg"])
    assert "trimtok vqa q.jsonl" in refusal(read_images, ["q.jsonl"])
    assert "empty name" in refusal(read_images, [""])
    assert "no images were named" in refusal(read_images, [])
    assert "cannot be read" in refusal(read_images, ["x" * 5000])


def test_the_limit(here):
    touch("in/1.jpg", "in/2.jpg", "3.jpg")
    for limit, expected in [
        (None, ["1.jpg", "2.jpg", "3.jpg"]),
        (2, ["1.jpg", "2.jpg"]),
        (9, ["1.jpg", "2.jpg", "3.jpg"]),
        (0, []),
    ]:
        assert ids(read_images(["in", "3.jpg"], limit=limit)) == expected


# Lists and stdin


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list(here, bom, end):
    touch("lists/near.jpg", "far.jpg", "lists/both.jpg", "both.jpg")
    lines = [
        "near.jpg",
        "",
        "# a note",
        "far.jpg",
        " both.jpg ",
        "图 gone.jpg",
        str(here / "far.jpg"),
        "x" * 5000,
    ]
    Path("lists/l.txt").write_bytes((bom + end.join(lines)).encode())
    source = read_images(["@lists/l.txt"])
    samples = list(source.samples)
    assert source.total == 6 and [sample.id for sample in samples[:4]] == [
        "near.jpg",
        "far.jpg",
        "both.jpg",
        "图 gone.jpg",
    ]
    expected = [
        Path("lists/near.jpg"),
        Path("far.jpg"),
        Path("lists/both.jpg"),
        Path("图 gone.jpg"),
        here / "far.jpg",
        Path("x" * 5000),
    ]
    assert [sample.images[0] for sample in samples] == expected
    with pytest.raises(Exception, match="does not exist"):
        load_image(samples[3].images[0])


def test_lists_that_are_refused(here):
    Path("empty.txt").write_text("\n# only notes\n")
    Path("utf16.txt").write_bytes("a.jpg".encode("utf-16"))
    assert "does not exist" in refusal(read_images, ["@no.txt"])
    assert "names no images" in refusal(read_images, ["@empty.txt"])
    assert "UTF-8" in refusal(read_images, ["@utf16.txt"])
    touch("@odd.png")
    assert ids(read_images(["@odd.png"])) == ["@odd.png"]


def test_stdin_is_read_one_line_at_a_time(here):
    touch("z.jpg")
    taken = []

    def lines():
        for line in ["\ufeffa.jpg\n", "\n", "# note\n", "b.jpg\r\n", "c.jpg"]:
            taken.append(line)
            yield line

    source = read_images(["z.jpg", "-"], stdin=lines())
    samples = iter(source.samples)
    assert source.total is None and taken == []
    assert [next(samples).id, next(samples).id] == ["z.jpg", "a.jpg"] and len(taken) == 1
    assert [sample.id for sample in samples] == ["b.jpg", "c.jpg"]
    limited = read_images(["-"], stdin=io.StringIO("a\nb\n"), limit=1)
    assert ids(limited) == ["a"] and limited.total is None


# Questions


def rows(path, *lines, mode="\n"):
    text = [
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(mode.join(text).encode())
    return str(path)


def read(path, **options):
    source = read_questions(path, Reading(allow_text_only=True, **options))
    samples = list(source.samples)
    assert source.total == len(samples)
    return samples


def test_llava_rows(here):
    path = rows(
        "d/q.jsonl",
        {"question_id": 7, "image": "a b.jpg", "text": " Wo?\n", "category": "x"},
        {"question_id": "7", "image": "/abs.png", "text": "b"},
    )
    first, second = read(path, allow_outside=True)
    assert (first.id, first.images, first.names, first.question) == (
        7,
        (Path("d/a b.jpg"),),
        ("a b.jpg",),
        " Wo?\n",
    )
    assert (
        first.extra == {"category": "x"}
        and first.answers == ()
        and first.video is None
        and not first.problem
    )
    assert second.id == "7" and second.images == (Path("/abs.png"),) and second.extra == {}
    assert read(path, image_root=Path("r"))[0].images == (Path("r/a b.jpg"),)
    assert len(read(path, limit=1)) == 1 and len(read(path, limit=5)) == 2


def test_images_and_videos(here):
    cases = [
        {"image": ["a", "b"]},
        {},
        {"image": None},
        {"image": ""},
        {"image": []},
        {"video": "v.mp4"},
        {"video_name": "v"},
    ]
    samples = read(rows("q.jsonl", *({"text": "t", **case} for case in cases)))
    assert [sample.names for sample in samples] == [("a", "b"), (), (), (), (), ("v.mp4",), ("v",)]
    assert [sample.video for sample in samples] == [None] * 5 + [Path("v.mp4"), Path("v")]
    assert [sample.id for sample in samples] == list(range(7)) and not any(
        sample.problem or sample.extra for sample in samples
    )


def test_the_question_column(here):
    one, both, empty = read(
        rows(
            "q.jsonl",
            {"question": "q"},
            {"text": "q ", "question": "q"},
            {"text": "", "question": "q"},
        )
    )
    assert (
        (one.question, one.extra) == ("q", {})
        and (both.question, both.extra) == ("q ", {"question": "q"})
        and empty.question == "q"
    )


@pytest.mark.parametrize(
    "columns,expected",
    [
        ({"answer": "red"}, ("red",)),
        ({"answers": ["red", "blue", 3]}, ("red", "blue", "3")),
        ({"answers": [{"answer": "red", "answer_id": 1}, {"answer": "wine"}]}, ("red", "wine")),
        ({"answers": [], "label": "yes"}, ("yes",)),
        ({"gt_answer": 0}, ("0",)),
        ({"answer": "all", "answers": ["a", "b"]}, ("a", "b")),
        ({"answer": None}, ()),
        ({"answer": [[1]]}, ()),
    ],
)
def test_references_and_they_ride_along(here, columns, expected):
    (sample,) = read(rows("q.jsonl", {"text": "t", **columns}))
    assert sample.answers == expected and sample.extra == columns


def test_a_broken_row_fails_alone(here):
    broken = [
        ("{nope", "line 2", "not valid JSON"),
        ("[1]", "line 3", "not a JSON object"),
        ({"question_id": "k"}, "k", '"text"'),
        ({"question_id": 9, "text": "  "}, 9, '"text"'),
        ({"question_id": 9, "text": ["t"]}, 9, "text is not a string"),
        ({"question_id": "k", "text": "t", "image": 5}, "k", "image is neither"),
        ({"text": "t", "image": ["a", None]}, "line 8", "image is neither"),
        ({"text": "t", "image": {"bytes": "x"}}, "line 9", "image is neither"),
        ({"text": "t", "question_id": {"a": 1}}, "line 10", "question_id is neither"),
        ({"text": "t", "question_id": True}, "line 11", "question_id is neither"),
        ({"text": "t", "video": 5}, "line 12", "video is not"),
        ("[" * 100_000, "line 13", "not valid JSON"),
        ('{"question_id": ' + "1" * 5000 + "}", "line 14", "not valid JSON"),
    ]
    samples = read(
        rows("q.jsonl", {"text": "fine"}, *(row for row, _, _ in broken), {"text": "fine too"})
    )
    assert (
        samples[0].question == "fine"
        and samples[-1].question == "fine too"
        and samples[-1].id == len(broken) + 1
    )
    for line, (sample, (_, key, said)) in enumerate(
        zip(samples[1:-1], broken, strict=True), start=2
    ):
        assert (
            sample.id == key and said in sample.problem and f"q.jsonl line {line}" in sample.problem
        )
        assert "\n" not in sample.problem and not sample.images and sample.video is None


def test_lines(here):
    separator = {"text": "one\u2028two\x85three\x0bfour"}
    path = rows("q.jsonl", "\ufeff", separator, "", "   ", {"text": "b"}, "{", mode="\r\n")
    first, second, third = read(path)
    assert first.question == separator["text"] and (first.id, second.id, third.id) == (
        0,
        1,
        "line 6",
    )
    assert "line 6" in third.problem  # blank lines count as lines of the file
    # Files joined by `cat`, each with its byte order mark.
    path = rows("q.jsonl", "\ufeff" + json.dumps({"text": "a"}), '\ufeff{"text": "b"}', "\ufeff")
    assert [sample.question for sample in read(path)] == ["a", "b"]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_a_json_array(here, indent, start):
    Path("q.json").write_text(
        start + json.dumps([{"text": "a", "image": "i.png"}, 5, {"text": "c"}], indent=indent),
        encoding="utf-8",
    )
    first, second, third = read("q.json")
    assert (first.question, first.images, third.id) == (
        "a",
        (Path("i.png"),),
        2,
    ) and "q.json row 2" in second.problem


def test_question_files_that_are_refused(here):
    Path("utf16.jsonl").write_bytes('{"text": "a"}'.encode("utf-16"))
    assert "cannot be read" in refusal(read_questions, "no.jsonl") and "cannot be read" in refusal(
        read_questions, str(here)
    )
    assert "UTF-8" in refusal(read_questions, "utf16.jsonl")
    assert "no questions" in refusal(
        read_questions, rows("e.jsonl", "", " ")
    ) and "no questions" in refusal(read_questions, rows("e.json", "[]"))
    assert "not one" in refusal(read_questions, rows("e.json", '[{"text": "a"}', '{"text": "b"}'))


def test_questions_are_lazy_and_leave_no_file_open(here):
    path = rows("q.jsonl", *({"text": str(number)} for number in range(1000)))
    samples = iter(read_questions(path, Reading(allow_text_only=True)).samples)
    assert next(samples).question == "0"
    del samples  # an open file would be a ResourceWarning, and warnings are errors
    Path(path).write_text('{"text": "new"}')
    source = read_questions(path, Reading(allow_text_only=True))
    Path(path).write_text('{"text": "newer"}')
    assert next(iter(source.samples)).question == "newer"  # rows are read when they are asked for


def test_questions_on_stdin(here, monkeypatch):
    for text in (
        '{"text": "a", "image": "i.png"}\n\n{"text": "b"}\n',
        '\n[{"text": "a", "image": "i.png"},\n {"text": "b"}]',
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + text))
        source = read_questions("-", Reading(allow_text_only=True))
        first, second = source.samples
        assert source.total is None and first.images == (Path("i.png"),) and second.id == 1


def test_either(here):
    touch("a.jpg")
    rows("q.JSONL", {"text": "t", "image": "a.jpg"})
    (question,) = read_any(["q.JSONL"], Reading(image_root=Path("r"))).samples
    assert question.question == "t" and question.images == (Path("r/a.jpg"),)
    assert ids(read_any(["a.jpg", "a.jpg"], Reading(limit=1))) == ["a.jpg"]
    assert "only source" in refusal(read_any, ["a.jpg", "q.JSONL"])
