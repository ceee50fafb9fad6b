"""Every data set in its published layout: what is read, how it is asked, and what a perfect answer
and an empty one score."""

import base64
import io
import json

import pytest
from PIL import Image

from trimtok_cli.blobs import Held
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.registry import DATASETS

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def png():
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def coco(folder, name="annotations/captions_val2014.json", domain=None):
    more = {"domain": domain} if domain else {}
    write(
        folder / name,
        {
            "images": [
                {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", **more},
                {"id": 8, "file_name": "COCO_val2014_000000000008.jpg", **more},
            ],
            "annotations": [
                {"image_id": 9, "id": 1, "caption": "A dog runs on green grass."},
                {"image_id": 9, "id": 2, "caption": "The dog is running"},
                {"image_id": 8, "id": 3, "caption": "Two cats sleep on a sofa"},
            ],
        },
    )


def nocaps(folder):
    coco(folder, "nocaps_val_4500_captions.json", "near-domain")


def vqa(folder, prefix="v2_"):
    write(
        folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json",
        {
            "data_subtype": "val2014",
            "questions": [
                {"question_id": 90, "image_id": 9, "question": "What colour?"},
                {"question_id": 91, "image_id": 9, "question": "Is it day?"},
            ],
        },
    )
    write(
        folder / f"{prefix}mscoco_val2014_annotations.json",
        {
            "annotations": [
                {
                    "question_id": 91,
                    "answer_type": "yes/no",
                    "answers": [{"answer": "yes", "answer_id": n} for n in range(10)],
                },
                {
                    "question_id": 90,
                    "answer_type": "other",
                    "answers": [{"answer": "red" if n else "dark red"} for n in range(10)],
                },
            ]
        },
    )


def okvqa(folder):
    vqa(folder, "")


def textvqa(folder):
    rows = [
        {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What brand is this?"},
        {"question_id": 34603, "image_id": "003a8ae2ef43b901", "question": "What number?"},
    ]
    answers = {34602: ["nous les gosses"] * 4 + ["dakota"] * 6, 34603: ["two"] * 10}
    write(
        folder / "TextVQA_0.5.1_val.json",
        {"data": [{**row, "answers": answers[row["question_id"]]} for row in rows]},
    )


def gqa(folder):
    write(
        folder / "testdev_balanced_questions.json",
        {
            "201307251": {
                "question": "Is it overcast?",
                "imageId": "n161313",
                "answer": "no",
                "types": {"structural": "verify"},
            },
            "201640614": {
                "question": "Who is wearing the dress?",
                "imageId": "n235859",
                "answer": "woman",
                "types": {"structural": "query"},
            },
        },
    )


def pope(folder):
    for category in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number,
                "image": f"COCO_val2014_{number:012d}.jpg",
                "text": f"Is there a {category} cat?",
                "label": "no" if number % 2 else "yes",
            }
            for number in range(4)
        ]
        write(
            folder / "coco" / f"coco_pope_{category}.json",
            "".join(json.dumps(row) + "\n" for row in rows),
        )


def mme(folder):
    for task, parted in (("OCR", False), ("code_reasoning", True)):
        base = folder / task
        texts = base / "questions_answers_YN" if parted else base
        write(
            texts / "0001.txt",
            "Is it a cat? Please answer yes or no.\tYes\nIs it a dog? Please answer yes or no.\tNo",
        )
        pictures = base / "images" if parted else base
        write(pictures / "0001.png", "")


def mmbench(folder):
    picture = base64.b64encode(png()).decode()
    head = "index\tquestion\thint\tA\tB\tC\tanswer\tcategory\tl2-category\timage\n"
    rows = [
        f"241\tWhich one?\tLook.\ta cat\tthe dog\tbirds\tB\tobject\tcoarse\t{picture}",
        "1000241\tWhich one?\tLook.\tthe dog\tbirds\ta cat\tA\tobject\tcoarse\t241",
        f'252\t"Is it\nso?"\t\tyes\tno\t\tA\tother\tfine\t{picture}',
    ]
    write(folder / "mmbench_dev_20230712.tsv", head + "\n".join(rows) + "\n")


def mmmu(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {
            "id": "validation_Art_1",
            "question": "<image 2> or <image 1>?",
            "options": "['the first', 'the second']",
            "answer": "B",
            "question_type": "multiple-choice",
            "image_1": {"bytes": png(), "path": "one.png"},
            "image_2": {"bytes": png(), "path": "two.png"},
        },
        {
            "id": "validation_Art_2",
            "question": "How many in <image 1>?",
            "options": "[]",
            "answer": "4.5",
            "question_type": "open",
            "image_1": {"bytes": png(), "path": "three.png"},
            "image_2": None,
        },
    ]
    (folder / "Art").mkdir()
    path = folder / "Art" / "validation-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def scienceqa(folder):
    problems = {
        "4": {
            "question": "Which figure of speech?",
            "choices": ["chiasmus", "apostrophe"],
            "answer": 0,
            "hint": "",
            "image": None,
            "subject": "language science",
        },
        "5": {
            "question": "What is shown?",
            "choices": ["a", "b", "c"],
            "answer": 2,
            "hint": "Look at it.",
            "image": "image.png",
            "subject": "natural science",
        },
        "6": {"question": "not in the split", "choices": ["a"], "answer": 0, "image": None},
    }
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"test": ["5", "4"], "train": ["6"]})


def chartqa(folder):
    for part in ("human", "augmented"):
        rows = [{"imgname": "41699.png", "query": f"How many, {part}?", "label": "100"}]
        write(folder / "test" / f"test_{part}.json", rows)
    (folder / "test" / "png").mkdir()


def ocrbench(folder):
    rows = [
        {
            "dataset_name": "IIIT5K",
            "id": 0,
            "type": "Regular Text Recognition",
            "image_path": "IIIT5K/1.png",
            "question": "what is written in the image?",
            "answers": ["CENTRE"],
        },
        {
            "dataset_name": "HME100k",
            "id": 1,
            "type": "Handwritten Mathematical Expression Recognition",
            "image_path": "HME/1.png",
            "question": "Write the formula.",
            "answers": "a ^ { 2 }",
        },
    ]
    write(folder / "OCRBench.json", rows)


def jsonl(folder):
    rows = [
        {
            "question_id": 1,
            "image": "a.png",
            "text": "How many?",
            "answers": ["2"],
            "task": "count",
        },
        {"question_id": 2, "image": "b.png", "text": "How many?", "answer": "3", "task": "count"},
    ]
    write(folder / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


LAYOUTS = {
    make.__name__: make
    for make in (
        coco,
        nocaps,
        okvqa,
        textvqa,
        gqa,
        pope,
        mme,
        mmbench,
        mmmu,
        scienceqa,
        chartqa,
        ocrbench,
        jsonl,
    )
} | {"vqav2": vqa}
BEST = {"mme": 200.0, "coco": 1000.0, "nocaps": 1000.0}


def read(name, folder, **options):
    LAYOUTS[name](folder)
    return [*DATASETS[name].samples(folder, **options)]


def test_every_data_set_has_a_layout_here():
    assert LAYOUTS.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", DATASETS)
def test_right_answers_score_most_and_empty_ones_nothing(name, tmp_path):
    """Corpus metrics of captions cannot reach their best where captions differ among themselves."""
    samples = read(name, tmp_path)
    right = [(sample, sample.answers[-1]) for sample in samples]
    wrong = [(sample, "") for sample in samples]
    best = DATASETS[name].score(right)
    assert best.main in best.values and DATASETS[name].score(wrong).headline == 0
    if name in ("coco", "nocaps"):
        assert 600 < best.headline < 1000 and best.values["bleu1"] == pytest.approx(100)
    else:
        assert best.headline == pytest.approx(BEST.get(name, 100.0))
    if best.each is not None:
        assert len(best.each) == len(samples)
        assert sum(best.each) / len(samples) == pytest.approx(best.headline)


@pytest.mark.parametrize("name", DATASETS)
def test_samples_can_be_asked_and_told_apart(name, tmp_path):
    dataset, samples = DATASETS[name], read(name, tmp_path)
    assert len(samples) > 1 and all(sample.question and sample.answers for sample in samples)
    assert not any(sample.problem for sample in samples)
    assert len({(s.id, s.extra.get("question"), s.question) for s in samples}) == len(samples)
    after = dataset.prompt.partition("{question}")[2]
    asked = [sample for sample in samples if name != "mmmu" or sample.extra["options"]]
    assert all(sample.question.endswith(after) for sample in asked)
    assert all(sample.question.count(after.strip() or "\0") <= 1 for sample in asked)
    assert len(sample_names(samples)) == sum(len(sample.images) for sample in samples)


def sample_names(samples):
    return [name for sample in samples for name in sample.names]


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_refused_with_what_was_looked_for(name, tmp_path):
    with pytest.raises(UsageError, match=r"^--data: .* holds no .*looked for .*\.$"):
        [*DATASETS[name].samples(tmp_path)]


@pytest.mark.parametrize("name", sorted({*DATASETS} - {"mme"}))
def test_a_folder_that_is_not_there_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match=r"--data: there is no folder .*nowhere"):
        [*DATASETS[name].samples(tmp_path / "nowhere")]


def test_pictures_lie_where_they_are_published_or_where_one_says(tmp_path):
    (tmp_path / "val2014").mkdir()
    assert read("coco", tmp_path)[0].images == (
        tmp_path / "val2014" / "COCO_val2014_000000000009.jpg",
    )
    moved = next(iter(DATASETS["coco"].samples(tmp_path, images=tmp_path / "x")))
    assert moved.images[0].parent.name == "x"


def test_answers_of_vqa_come_by_question_and_not_by_line(tmp_path):
    first, second = read("vqav2", tmp_path)
    assert first.answers[:2] == ("dark red", "red") and second.answers == ("yes",) * 10
    assert first.question == "What colour?" + SHORT
    scores = DATASETS["vqav2"].score([(first, "Dark red"), (second, "Yes")])
    assert scores.each == pytest.approx([30, 100])
    assert scores.values["other/accuracy"] == pytest.approx(30)


def test_textvqa_is_asked_as_llava_asks_where_its_file_is_there(tmp_path):
    (first, second) = read("textvqa", tmp_path)
    assert first.question == "What brand is this?" + SHORT
    text = f"what number?\nReference OCR token: 2, nous{SHORT}"
    row = {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "text": text}
    write(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", json.dumps(row))
    first, second = [*DATASETS["textvqa"].samples(tmp_path)]
    assert first.question == "What brand is this?" + SHORT and second.question == text
    assert second.extra["question"] == "What number?"


def test_a_question_of_mmbench_is_right_if_all_its_rounds_are(tmp_path):
    first, turned, other = read("mmbench", tmp_path)
    assert first.question == "Look.\nWhich one?\nA. a cat\nB. the dog\nC. birds" + LETTER
    assert turned.images == first.images and isinstance(first.images[0], Held)
    assert other.question == "Is it\nso?\nA. yes\nB. no" + LETTER
    scores = DATASETS["mmbench"].score([(first, "B"), (turned, "B"), (other, "A. yes")])
    assert (scores.main, scores.headline) == ("circular", 50)
    assert scores.values["accuracy"] == pytest.approx(200 / 3) and scores.each is None
    assert DATASETS["mmbench"].score([(first, "B"), (other, "B")]).headline == 50


def test_pictures_of_mmmu_come_in_the_order_of_the_question(tmp_path):
    first, second = read("mmmu", tmp_path)
    assert first.names == ("two.png", "one.png")
    assert first.question == "image 2 or image 1?\nA. the first\nB. the second" + LETTER
    assert second.question == "How many in image 1?" + SHORT
    scores = DATASETS["mmmu"].score([(first, "(A) or (B)"), (second, "The answer is 4.501")])
    assert scores.each == [100, 100] and scores.values["Art/accuracy"] == 100


def test_scienceqa_is_asked_in_the_order_of_its_split_with_its_context(tmp_path):
    first, second = read("scienceqa", tmp_path)
    assert (first.id, second.id) == ("5", "4") and second.images == ()
    assert first.question == (
        "Context: Look at it.\nQuestion: What is shown?\nOptions: (A) a (B) b (C) c" + LETTER
    )
    assert "Context: N/A\n" in second.question
    scores = DATASETS["scienceqa"].score([(first, "C"), (second, "B")])
    assert scores.values["with picture/accuracy"] == 100
    assert scores.values["language science/accuracy"] == 0 and scores.headline == 50


def test_formulas_of_ocrbench_are_compared_without_blanks(tmp_path):
    first, second = read("ocrbench", tmp_path)
    scores = DATASETS["ocrbench"].score([(first, "It says Centre!"), (second, "a^{2}")])
    assert scores.each == [100, 100] and scores.values["points"] == 2


def test_mme_has_two_layouts_with_the_same_samples(tmp_path):
    samples = read("mme", tmp_path / "benchmark")
    lines = [
        f"0001.jpg\t{question} Please answer yes or no.\t{label}"
        for question, label in (("Is it a cat?", "Yes"), ("Is it a dog?", "No"))
    ]
    for task in ("OCR", "code_reasoning"):
        write(tmp_path / "tool" / f"{task}.txt", "\n".join(lines) + "\n")
    others = [*DATASETS["mme"].samples(tmp_path / "tool")]
    assert [sample.question for sample in samples] == [sample.question for sample in others]
    assert samples[0].question == "Is it a cat?" + SHORT
    assert [(s.extra["category"], s.extra["picture"]) for s in samples] == [
        (s.extra["category"], s.extra["picture"]) for s in others
    ]
    assert samples[0].id == "OCR/0001.png" and samples[0].images[0].is_file()


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gqa", "testdev_balanced_questions.json", {"1": {"question": "x"}}, "no 'imageId'"),
        ("gqa", "testdev_balanced_questions.json", "{", "is no JSON"),
        ("ocrbench", "OCRBench.json", [[]], "entry 1 of .* has no 'image_path'"),
        ("chartqa", "test/test_human.json", '{"a": 1}\n{"b": 2}\n', "entry 1 .* has no 'imgname'"),
        ("scienceqa", "pid_splits.json", {"test": ["7"]}, "no problem 7, which is of split test"),
        ("scienceqa", "pid_splits.json", {}, "has no split test"),
        ("mme", "OCR/0001.txt", "Is it?", "line 1 has 1 cells between tabs"),
        ("mme", "OCR/0001.txt", "Is it?\tPerhaps", "line 1 is labelled 'Perhaps'"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", {"annotations": []}, "question 90 has no"),
        ("vqav2", "v2_mscoco_val2014_annotations.json", {}, "holds no annotations"),
        ("mmbench", "mmbench_dev_20230712.tsv", "index\tquestion\n", "has no column A"),
        ("coco", "annotations/captions_val2014.json", {"images": []}, "captions_val2014"),
        (
            "pope",
            "coco/coco_pope_random.json",
            '{"question_id": 1, "image": "a", "text": "b"}',
            "label",
        ),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(name, file, content, message, tmp_path):
    LAYOUTS[name](tmp_path)
    write(tmp_path / file, content)
    with pytest.raises(UsageError, match=message) as error:
        [*DATASETS[name].samples(tmp_path)]
    assert "\n" not in str(error.value)


def test_a_test_split_of_mmbench_has_no_answers(tmp_path):
    mmbench(tmp_path)
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text().replace("\tB\tobject", "\t\tobject"))
    with pytest.raises(UsageError, match="no answer among its options; MMBench publishes none"):
        [*DATASETS["mmbench"].samples(tmp_path)]
