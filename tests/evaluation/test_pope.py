"""POPE: how answers are read, what is counted, and how labels find LLaVA's questions."""

import json
from fractions import Fraction

import pytest

from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.pope import POPE
from trimtok_cli.evaluation.metrics.pope import pope, yes_or_no

SHORT = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is", "no"),
        ("There is not. Yes", "no"),
        ("Yes. No", "yes"),
        ("NO", "yes"),
        ("Nothing", "yes"),
        ("No\n", "yes"),
        ("None", "yes"),
        ("Yes, no", "no"),
        (".No", "yes"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_an_answer_is_read_by_its_first_sentence(text, said):
    assert yes_or_no(text) == said


@pytest.mark.parametrize(
    ("counts", "f1", "accuracy"),
    [
        ((1182, 31, 1379, 318), 87.14, 88.01),
        ((1182, 59, 1441, 318), 86.25, 87.43),
        ((1182, 117, 1383, 318), 84.46, 85.50),
    ],
)
def test_published_counts_give_the_published_scores(counts, f1, accuracy):
    """The counts of LLaVA-1.5-13B's public answers, whose F1 the paper gives as 87.1/86.2/84.5."""
    kinds = (("Yes", "yes"), ("Yes", "no"), ("No", "no"), ("No", "yes"))
    scores = pope(pair for pair, count in zip(kinds, counts, strict=True) for _ in range(count))
    assert (round(scores["f1"], 2), round(scores["accuracy"], 2)) == (f1, accuracy)
    hits, false_yes, _, missed = counts
    precision, recall = Fraction(hits, hits + false_yes), Fraction(hits, hits + missed)
    assert scores["f1"] == pytest.approx(float(200 * precision * recall / (precision + recall)))
    assert scores["yes"] == pytest.approx(100 * (hits + false_yes) / sum(counts))


def test_an_empty_answer_is_wrong_and_no_yes():
    assert pope([("", "no"), ("", "yes"), ("Yes", "yes"), ("No", "no")]) == {
        "accuracy": 50.0,
        "precision": 100.0,
        "recall": 50.0,
        "f1": pytest.approx(200 / 3),
        "yes": 25.0,
    }


def test_nothing_gives_zeros_and_no_error():
    assert set(pope([]).values()) == {0.0}


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels(folder, category, count, first=0):
    write(
        folder / "coco" / f"coco_pope_{category}.json",
        [
            {
                "question_id": number,
                "image": f"COCO_val2014_{number:012d}.jpg",
                "text": f"Is there a {category} dog?",
                "label": "no" if number % 2 else "yes",
            }
            for number in range(first, first + count)
        ],
    )


def llava(folder, categories, count):
    write(
        folder / "llava_pope_test.jsonl",
        [
            {
                "question_id": number * 10 + position,
                "image": f"COCO_val2014_{number:012d}.jpg",
                "text": f"Is there a {category} dog?{SHORT}",
                "category": category,
            }
            for position, category in enumerate(categories)
            for number in range(count)
        ],
    )


def test_labels_find_llavas_questions_by_content_and_not_by_line(tmp_path):
    """The label file has other ids and more lines, in another order."""
    labels(tmp_path, "random", 8)
    file = tmp_path / "coco" / "coco_pope_random.json"
    file.write_text("\n".join(reversed(file.read_text().splitlines())))
    llava(tmp_path, ["random"], 4)
    samples = [*POPE.samples(tmp_path)]
    assert [(sample.id, sample.answers) for sample in samples] == [
        (0, ("yes",)),
        (10, ("no",)),
        (20, ("yes",)),
        (30, ("no",)),
    ]
    assert {sample.question for sample in samples} == {"Is there a random dog?" + SHORT}
    assert POPE.score([(sample, "Yes") for sample in samples]).values["random/recall"] == 100


def test_without_llavas_file_the_lists_themselves_are_asked(tmp_path):
    labels(tmp_path, "random", 2)
    labels(tmp_path, "adversarial", 2)
    samples = [*POPE.samples(tmp_path)]
    assert [sample.id for sample in samples] == [
        "random/0",
        "random/1",
        "adversarial/0",
        "adversarial/1",
    ]
    assert samples[0].question == "Is there a random dog?" + SHORT
    scores = POPE.score([(sample, "Yes" if sample.id[0] == "r" else "No") for sample in samples])
    assert scores.values["random/f1"] == pytest.approx(200 / 3)
    assert scores.values["adversarial/f1"] == 0
    assert scores.headline == pytest.approx(100 / 3) and scores.each is None


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UsageError, match="holds no labels of POPE; looked for coco_pope"):
        [*POPE.samples(tmp_path)]
    labels(tmp_path, "random", 2)
    llava(tmp_path, ["random", "popular"], 2)
    with pytest.raises(UsageError, match=r"no labels of popular; looked for coco_pope\*_popular"):
        [*POPE.samples(tmp_path)]


def test_a_question_without_a_label_is_refused(tmp_path):
    labels(tmp_path, "random", 2)
    llava(tmp_path, ["random"], 3)
    with pytest.raises(UsageError, match="question 20 of random is not among POPE's labels"):
        [*POPE.samples(tmp_path)]
