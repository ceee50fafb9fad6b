"""Files of rows in the formats that others write: VQAv2, TextVQA, COCO, imagefolders, tables."""

import base64
import csv
import json
import os
from io import StringIO
from pathlib import Path

import pytest

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.questions import read_questions, recognised
from trimtok_cli.readers.reading import Reading

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(name, content):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(path, command="vqa", **options):
    source = read_questions(path, Reading(**options), command=command)
    samples = list(source.samples)
    assert source.total == len(samples)
    return samples


def refusal(path, command="vqa", **options):
    with pytest.raises(UsageError) as caught:
        read_questions(path, Reading(**options), command=command)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def questions(*rows, **more):
    return {"info": {"year": 2017}, "license": {}, **more, "questions": list(rows)}


def asked(image_id, question_id=1, **more):
    return {"image_id": image_id, "question": "What?", "question_id": question_id, **more}


# VQAv2, TextVQA


@pytest.mark.parametrize(
    ("subtype", "lies", "found"),
    [
        ("val2014", "COCO_val2014_000000000042.jpg", None),
        ("val2014", "val2014/COCO_val2014_000000000042.jpg", None),
        ("test-dev2015", "COCO_test2015_000000000042.jpg", None),
        (None, "COCO_train2014_000000000042.jpg", None),
        (None, "val2017/000000000042.jpg", None),
        ("val2014", "elsewhere.jpg", "COCO_val2014_000000000042.jpg"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_vqav2_questions_find_cocos_pictures(subtype, lies, found, indent):
    put(f"root/{lies}", PNG)
    more = {} if subtype is None else {"data_subtype": subtype}
    path = put("q.json", json.dumps(questions(asked(42, 42000), **more), indent=indent))
    (sample,) = read(path, image_root=Path("root"))
    assert sample.images == (Path("root") / (found or lies),) and sample.id == 42000
    assert sample.question == "What?" and sample.extra["image_id"] == 42 and not sample.problem


def test_many_vqav2_questions_without_pictures_stay_quick(monkeypatch):
    looked = []
    monkeypatch.setattr(os.path, "exists", lambda path: looked.append(path) or False)
    samples = read(put("q.json", questions(*(asked(i, i) for i in range(1000)))))
    assert samples[-1].names == ("COCO_val2014_000000000999.jpg",) and len(looked) < 10_000


def test_a_textvqa_file_keeps_the_answers_and_ids_that_repeat():
    put("train_images/0cb.jpg", PNG)
    rows = [
        {
            "image_id": "0cb",
            "question": q,
            "question_id": 7,
            "answers": ["nokia"],
            "flickr_original_url": "https://x/a.jpg",
        }
        for q in ("What brand?", "What year?")
    ]
    path = put("t.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": rows})
    first, second = read(path)
    assert first.images == second.images == (Path("train_images/0cb.jpg"),)
    assert (first.id, second.id) == (7, 7) and first.answers == ("nokia",)
    assert second.question == "What year?"


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("folder", ["", "images/"])
def test_gqa_questions_are_known_by_their_ids(folder, indent):
    put(f"{folder}2405722.jpg", PNG)
    asked = {"question": "Is it a dog?", "answer": "no", "fullAnswer": "No.", "types": {"a": "b"}}
    rows = {
        "201307251": {"imageId": "2405722", "semantic": [{"operation": "x"}], **asked},
        "201307252": {"imageId": 5, **asked},
        "201307253": "broken",
    }
    first, *broken = read(put("g.json", json.dumps(rows, indent=indent)))
    assert (first.id, first.question, first.answers) == ("201307251", "Is it a dog?", ("no",))
    assert first.images == (Path(f"{folder}2405722.jpg"),) and not first.problem
    assert first.extra["fullAnswer"] == "No." and "semantic" not in first.extra
    assert broken[0].problem.startswith("g.json question 2: imageId is no name")
    assert broken[1].problem.startswith("g.json question 3 is not a JSON object")


@pytest.mark.parametrize("bad", [None, "x", -1, True, 1.5, [1], {}])
def test_a_question_without_a_picture_of_cocos_fails_alone(bad):
    good, broken = read(put("q.json", questions(asked(1), asked(bad, 2), data_subtype="val2014")))
    assert not good.problem and broken.problem.startswith(
        "q.json question 2: image_id is no number"
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (questions(), "without rows"),
        ({"data": []}, "without rows"),
        (questions({"question_id": 1}), "image_id is no number"),
        ({"annotations": [{"question_id": 1, "answers": []}]}, "VQAv2 annotation file"),
        ({"images": [], "annotations": []}, "trimtok caption"),
    ],
)
def test_a_document_without_questions_is_refused(document, said):
    assert said in refusal(put("q.json", document))


def test_a_row_with_a_list_of_images_is_a_row_and_no_document():
    rows = [{"question_id": i, "images": ["a.png"], "text": "?"} for i in range(2)]
    assert [s.id for s in read(put("q.jsonl", "\n".join(map(json.dumps, rows))))] == [0, 1]
    assert [s.id for s in read(put("one.json", rows[1]))] == [1]


# COCO captions


def coco(*images, annotations=()):
    return {"info": {}, "images": list(images), "annotations": list(annotations), "licenses": []}


def test_coco_images_are_described_with_their_captions_beside_them():
    notes = [{"id": i, "image_id": 42, "caption": text} for i, text in enumerate("ab")]
    notes += [{"id": 9, "image_id": 43, "bbox": [1, 2, 3, 4]}, "odd"]
    images = [
        {"id": 42, "file_name": "a.jpg", "width": 5, "coco_url": "http://x/a.jpg"},
        {"id": 43, "file_name": "sub/b.jpg"},
        {"id": 44},
    ]
    first, second, third = read(put("c.json", coco(*images, annotations=notes)), command="caption")
    assert (first.id, first.question, first.answers) == (42, None, ("a", "b"))
    assert first.images == (Path("a.jpg"),) and first.extra["caption"] == "a"
    assert first.extra["width"] == 5 and second.images == (Path("sub/b.jpg"),)
    assert second.answers == () and "image 3: file_name is missing" in third.problem


# Imagefolders


def test_an_imagefolders_metadata_describes_its_pictures():
    rows = [
        {"file_name": "a.png", "text": "A cat.", "n": 1},
        {"file_name": "b.png", "prompt": "Which breed?"},
        {"file_name": "../c.png"},
        {"text": "no picture"},
    ]
    put("in/a.png", PNG)
    path = put("in/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    first, second, third, last = read(path, command="caption")
    assert (first.id, first.question, first.images) == ("a.png", None, (Path("in/a.png"),))
    assert first.extra["text"] == "A cat." and first.extra["n"] == 1
    assert (second.id, second.question) == (1, "Which breed?")
    assert "--allow-outside" in third.problem and "line 4" in last.problem


def test_a_question_file_is_not_captioned():
    rows = [{"question_id": 1, "image": "a.png", "text": "?"}, {"image": "a.png", "text": "?"}]
    for row in (
        *rows,
        {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "?"}]},
    ):
        assert "trimtok vqa" in refusal(put("q.jsonl", row), command="caption")
    assert "trimtok vqa" in refusal(put("v.json", questions(asked(1))), command="caption")


def test_where_both_are_meant_a_rows_question_comes_before_the_prompt():
    rows = [
        {"image": "a.png", "text": "?"},
        {"image": "b.png"},
        {"image": "b.png", "question_id": 1},
    ]
    first, second, third = read(put("q.jsonl", "\n".join(map(json.dumps, rows))), command="any")
    assert (first.question, second.question, second.id) == ("?", None, "b.png")
    assert "there is no question" in third.problem


# CSV and TSV


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("mark", "name"), [(b",", "q.csv"), (b";", "q.csv"), (b"\t", "q.tsv"), (b"\t", "q.txt")]
)
def test_a_table_of_questions(bom, end, mark, name):
    cells = [
        [b"question_id", b"image", b"question", b"answer"],
        [b"1", b"a.png", b'"Is ""it"" , ; x?"', b"yes"],
        [b"007", b"b.png", "Schön?".encode(), b""],
    ]
    first, second = read(put(name, bom + end.join(mark.join(row) for row in cells) + end))
    assert (first.id, first.question, first.images) == (1, 'Is "it" , ; x?', (Path("a.png"),))
    assert first.answers == ("yes",) and (second.id, second.question) == ("007", "Schön?")
    assert second.answers == () and second.extra == {"answer": None}


def test_a_table_of_captions():
    first, second = read(put("m.csv", "file_name,text\na.png,A cat\nb.png,\n"), command="caption")
    assert (first.id, first.question, first.extra["text"]) == ("a.png", None, "A cat")
    assert second.images == (Path("b.png"),)


def test_a_cell_over_several_lines_and_a_blank_line_keep_the_line_numbers():
    text = 'image,question\na.png,"two\nlines"\n\nb.png\nc.png,?\n'
    first, second, third = read(put("q.csv", text))
    assert first.question == "two\nlines" and third.question == "?"
    assert second.problem.startswith("q.csv line 5: it has 1 cells, and the header has 2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,question\n", "without rows"),
        (b"image,image\na,b\n", "twice"),
        (b'image,question\na.png,"never closed\nb.png,?\n', "line 2 is no row of a table"),
        (b'image,question\n"a"b,?\n', "line 2 is no row of a table"),
        (b"image;question\na.png,?\n", "it has 1 cells"),
        (b"name,question\na.png,?\n", "there is no picture"),
        ("image,question\na.png,?\n".encode("utf-16"), "UTF-16"),
        (b"image,question\na.png,sch\xf6n\n", "not UTF-8"),
        (b"index,image,question,hint,A,B\n1,/9j/,?,,x,y\n", "MMBench"),
        (b"", "no questions"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(content, said):
    assert said in refusal(put("q.csv", content))


def test_a_row_that_is_not_utf8_fails_alone():
    good, bad = read(put("q.csv", b"image,question\na.png,?\nb.png,sch\xf6n\n"))
    assert not good.problem and "line 3: it is not UTF-8" in bad.problem


def test_pictures_in_a_table_as_base64():
    picture = PNG + bytes(range(256))
    text = base64.b64encode(picture).decode()
    (sample,) = read(put("q.tsv", f"index\timage\tquestion\n3\t{text}\tWhat?\n"))
    assert sample.images[0].content == picture and len(sample.names[0]) < 100


@pytest.mark.parametrize("name", ["dev.tsv", "dev.csv"])
def test_a_table_of_mmbench_asks_with_its_hint_and_choices(name):
    picture = base64.b64encode(PNG + bytes(range(256))).decode()
    rows = [
        ["index", "image", "question", "hint", "A", "B", "C", "D", "answer", "category"],
        ["241", picture, "Which?", "Look.", "cat", "1.5", "nan", "", "B", "x"],
        ["252", picture, "Which?", "nan", "cat", "dog", "a, b", "none of them", "A", "x"],
        ["253", picture, "Which?", "", "", "", "", "", "yes", "x"],
        ["254", "241", "Which?", "", "a", "b", "", "", "A", "x"],
    ]
    text = StringIO()
    csv.writer(text, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
    first, second, third, fourth = read(put(name, text.getvalue()))
    last = "Answer with the option's letter from the given choices directly."
    assert first.question == f"Look.\nWhich?\nA. cat\nB. 1.5\n{last}"
    assert second.question == f"Which?\nA. cat\nB. dog\nC. a, b\nD. none of them\n{last}"
    assert third.question == "Which?" and "picture is that of the row 241" in fourth.problem
    assert (first.id, first.answers, first.extra["B"]) == (241, ("B",), "1.5")
    assert first.images[0].content[: len(PNG)] == PNG


def test_a_table_that_changes_while_it_is_read_ends_in_a_failed_row():
    source = read_questions(put("q.csv", "image,question\na.png,?\nb.png,?\n"))
    put("q.csv", "image,question\na.png,?\nb.png,?\nc.png,?\n")
    *_, last = source.samples
    assert "was changed while it was read" in last.problem


def test_the_format_is_known_by_content_and_may_be_said():
    assert recognised(put("rows.txt", "image,question\n")) == "csv"
    assert (
        recognised(put("rows.json", '{"a": 1}'))
        == recognised(put("rows.csv", '{"a": 1}'))
        == "json"
    )
    path = put("odd.txt", "image,what is asked\na.png,?\n")
    (sample,) = read(
        put("odd2.txt", "picture|question\n".replace("|", ",") + "a.png,?\n"), format="csv"
    )
    assert sample.question == "?" and "there is no question" in refusal(path, format="csv")
