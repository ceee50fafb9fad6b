"""Answers find their samples by what they say, in every published form, and never by line."""

import json
import random
from pathlib import Path

import pytest

from tests.evaluation.test_datasets import LAYOUTS, SHORT, write
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.answer_files import Answer, read_answers
from trimtok_cli.evaluation.datasets.registry import DATASETS
from trimtok_cli.evaluation.joining import join
from trimtok_cli.evaluation.metrics.mme import TASKS


def lines(path, rows):
    write(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def llava(sample, text, **more):
    """A line as LLaVA's scripts write it: no picture, and the prompt as it was asked."""
    row = {"question_id": sample.id, "prompt": sample.question, "text": text, "answer_id": "Xy"}
    return row | {"model_id": "llava-v1.5-13b", "metadata": {}} | more


def llava_of_mme(sample, text):
    row = llava(sample, text)
    return row | {
        "question_id": row["question_id"].replace(".png", ".jpg").replace("OCR/", "OCR/images/")
    }


def llava_of_textvqa(sample, text):
    return llava(sample, text) | {"question_id": sample.names[0].removesuffix(".jpg")}


def ours(sample, text):
    return llava(sample, text, image=sample.names[0] if len(sample.names) == 1 else [*sample.names])


FORMS = [
    ("pope", ours),
    ("pope", llava),
    ("mme", llava_of_mme),
    ("mme", ours),
    ("textvqa", llava_of_textvqa),
    ("textvqa", ours),
    ("scienceqa", llava),
    ("mmbench", llava),
    ("gqa", lambda sample, text: {"questionId": sample.id, "prediction": text}),
    ("vqav2", lambda sample, text: {"question_id": sample.id, "answer": text}),
    ("okvqa", llava),
    ("coco", lambda sample, text: {"image_id": sample.id, "caption": text}),
    (
        "coco",
        lambda sample, text: {"question_id": sample.names[0], "prompt": "Describe.", "text": text},
    ),
    ("nocaps", lambda sample, text: {"image_id": sample.id, "caption": text}),
    (
        "chartqa",
        lambda sample, text: {
            "imgname": sample.names[0],
            "query": sample.extra["question"],
            "prediction": text,
        },
    ),
    (
        "ocrbench",
        lambda sample, text: {
            "id": sample.id,
            "image_path": sample.names[0],
            "question": sample.question,
            "answers": ["x"],
            "predict": text,
        },
    ),
    ("jsonl", ours),
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_shuffled_answers_of_every_form_find_their_samples(name, form, tmp_path):
    LAYOUTS[name](tmp_path / "data")
    samples = [*DATASETS[name].samples(tmp_path / "data")]
    rows = [form(sample, f"answer {number}") for number, sample in enumerate(samples)]
    random.Random(1).shuffle(rows)
    joined = join(samples, read_answers(lines(tmp_path / "answers.jsonl", rows)))
    assert joined.pairs == tuple((s, f"answer {number}") for number, s in enumerate(samples))
    assert not joined.missing and not joined.foreign
    write(tmp_path / "array.json", rows)
    assert join(samples, read_answers(tmp_path / "array.json")) == joined
    fewer = join(samples, read_answers(lines(tmp_path / "part.jsonl", rows[1:])))
    assert (len(fewer.pairs), fewer.total) == (len(samples) - 1, len(samples))


def test_ids_with_answers_are_read_as_an_object_and_as_scienceqas_outputs(tmp_path):
    LAYOUTS["scienceqa"](tmp_path)
    samples = [*DATASETS["scienceqa"].samples(tmp_path)]
    answers = {"4": "A", "5": "C"}
    write(tmp_path / "plain.json", answers)
    write(tmp_path / "result.json", {"acc": 74.39, "results": {"4": 0}, "outputs": answers})
    expected = tuple((sample, answers[sample.id]) for sample in samples)
    assert join(samples, read_answers(tmp_path / "plain.json")).pairs == expected
    assert join(samples, read_answers(tmp_path / "result.json")).pairs == expected


def test_mmes_text_files_find_pictures_of_another_ending_in_their_own_task(tmp_path):
    """The same picture and the same words stand in two tasks."""
    LAYOUTS["mme"](tmp_path / "data")
    samples = [*DATASETS["mme"].samples(tmp_path / "data")]
    for task, said in (("OCR", "Yes"), ("code_reasoning", "No")):
        cells = [
            ("0001.txt", "Is it a dog? Please answer yes or no.", "No", f"{said}, 2"),
            ("0001.txt", "Is it a cat?  Please answer yes or no.", "Yes", f"{said}, 1"),
        ]
        write(tmp_path / "LaVIN" / f"{task}.txt", "\n".join(map("\t".join, cells)) + "\n")
    joined = join(samples, read_answers(tmp_path / "LaVIN"))
    assert [text for _, text in joined.pairs] == ["Yes, 1", "Yes, 2", "No, 1", "No, 2"]
    assert not joined.foreign and {s.extra["category"] for s, _ in joined.pairs} < {*TASKS}
    one = read_answers(tmp_path / "LaVIN" / "OCR.txt")
    assert [sample.id for sample in join(samples, one).missing] == ["code_reasoning/0001.png"] * 2


def test_an_id_of_another_list_does_not_outweigh_picture_and_question():
    samples = [
        Sample(n, (Path(f"{n}.jpg"),), (f"{n}.jpg",), extra={"question": f"Is there a {word}?"})
        for n, word in enumerate(("cat", "dog"))
    ]
    swapped = [
        Answer("row 1", "first", id="1", question="Is there a cat?" + SHORT, images=("0.jpg",)),
        Answer("row 2", "second", id="0", question="Is there a dog?", images=("x/1.png",)),
    ]
    assert [text for _, text in join(samples, swapped).pairs] == ["first", "second"]
    for question, picture in (("Is there a bird?", "1.jpg"), ("Is there a dog?", "0.jpg")):
        other = Answer("row 1", "x", id="1", question=question, images=(picture,))
        joined = join(samples, [other])
        assert not joined.pairs and joined.foreign == (other,)


def of_pictures(*asked):
    return [
        Sample(
            f"{category}/{n}",
            (Path(name),),
            (name,),
            extra={"question": text, "category": category},
        )
        for n, (name, text, category) in enumerate(asked)
    ]


def test_one_answer_serves_all_samples_that_ask_the_same_unless_it_names_their_category():
    samples = of_pictures(("a.jpg", "Dog?", "random"), ("a.jpg", "Dog?", "popular"))
    plain = Answer("row 1", "Yes", question="Dog?", images=("a.jpg",))
    assert [text for _, text in join(samples, [plain]).pairs] == ["Yes", "Yes"]
    assert len(join(samples, [plain, plain]).pairs) == 2
    named = [
        Answer("row 1", "Yes", question="Dog?", images=("a.jpg",), category="popular"),
        Answer("row 2", "No", question="Dog?", images=("a.jpg",), category="random"),
    ]
    assert [text for _, text in join(samples, named).pairs] == ["No", "Yes"]


def test_the_longer_question_is_meant_where_one_holds_the_other():
    samples = of_pictures(("a.jpg", "What is it?", ""), ("a.jpg", "OK: What is it?", ""))
    answers = [
        Answer("row 1", "short", question="What is it?" + SHORT, images=("a.jpg",)),
        Answer("row 2", "long", question="ok: what is  it?", images=("a.jpg",)),
    ]
    assert [text for _, text in join(samples, answers).pairs] == ["short", "long"]


def test_two_answers_to_one_question_are_an_error():
    samples = of_pictures(("a.jpg", "Dog?", "random"), ("b.jpg", "Dog?", "random"))
    twice = [Answer(f"row {n}", "Yes", id="random/0") for n in (1, 2)]
    with pytest.raises(UsageError, match=r"random/0 is answered 2 times \(row 1 and row 2\)"):
        join(samples, twice)
    other = [Answer(f"row {n}", f"{n}", question="Dog?", images=("a.jpg",)) for n in (1, 2)]
    with pytest.raises(UsageError, match="answered 2 times"):
        join(samples, other)


@pytest.mark.parametrize("mark", ["<image 1>", "<image>", "image 1"])
def test_marks_of_pictures_are_no_part_of_a_question(mark):
    (sample,) = of_pictures(("a.jpg", "What is in image 1?", ""))
    said = [
        Answer("row 1", "x", id=str(sample.id), question=f"<image>\nWhat is in {mark}?" + SHORT)
    ]
    assert len(join([sample], said).pairs) == 1


def test_a_question_alone_is_enough_only_where_one_sample_asks_it():
    samples = of_pictures(("a.jpg", "Dog?", ""), ("b.jpg", "Dog?", ""), ("c.jpg", "Cat?", ""))
    answers = [Answer("row 1", "Yes", question="Dog?"), Answer("row 2", "No", question="Cat?")]
    joined = join(samples, answers)
    assert joined.pairs == ((samples[2], "No"),) and joined.foreign == (answers[0],)


def test_a_file_of_questions_is_not_taken_for_answers(tmp_path):
    LAYOUTS["jsonl"](tmp_path)
    samples = [*DATASETS["jsonl"].samples(tmp_path)]
    with pytest.raises(UsageError, match="the questions themselves; name the file of the answers"):
        join(samples, read_answers(tmp_path / "questions.jsonl"))


def test_failed_answers_are_empty(tmp_path):
    row = {"question_id": 1, "text": "half", "metadata": {"status": "error"}}
    assert read_answers(lines(tmp_path / "a.jsonl", [row]))[0].text == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is no JSON"),
        ("a.jsonl", "[]", "holds no answers"),
        ("a.jsonl", '{"question_id": 1}', "row 1 of .* has no answer; looked for one under text"),
        ("a.jsonl", "[1]", "row 1 of .* is no object with an id and an answer"),
        ("a.jsonl", '{"1": "A", "2": []}', "'2' in it is no answer"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', "line 2 is no JSON"),
        ("a.txt", "0001.txt\tIs it?\tYes\n", "line 1 is no line of MME's answers"),
        ("folder/a.csv", "", "holds no answers; looked for answers.jsonl and"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused(name, content, message, tmp_path):
    write(tmp_path / name, content)
    with pytest.raises(UsageError, match=message) as error:
        read_answers(tmp_path / name.split("/")[0])
    assert "\n" not in str(error.value)
