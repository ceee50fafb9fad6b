"""The programs that formats are for read them: datasets, pycocotools, pandas, pyarrow, webdataset.

The extra `consumers` installs them; a test is skipped where its program is missing. The rule by
which LLaVA scores POPE is written out here.
"""

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.support.finished import answer, finished, lines_of
from tests.support.stub_engine import call

TEXTS = ['A "dog",\nand; a cat', "Ünï\u2028\U0001f408", "NA", "=1+1", "null\r", "'"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(len(TEXTS)):
        name = f"sub/{number:012d}.png" if number % 2 else f"{number:012d}.png"
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def run(photos, tmp_path) -> Path:
    """Six answers and a failure, with a column that some have and some have not."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    results = [
        answer(name, text, extra={"score": number / 2, "tags": ["a", number]} if number else {})
        for number, (name, text) in enumerate(zip(names, TEXTS, strict=True))
    ]
    return finished(tmp_path / "run", [*results, answer("9.png", failed="gone")], photos)


def export(run: Path, names: str, *more: object) -> None:
    done = call("export", run, "--format", names, *more)
    assert done.exit_code == 0, done.stderr


def test_pandas_reads_the_csv(run):
    pandas = pytest.importorskip("pandas")
    export(run, "csv")
    table = pandas.read_csv(run / "answers.csv", keep_default_na=False, dtype={"score": str})
    assert list(table["text"]) == [*TEXTS, ""]
    assert list(table["status"]) == ["ok"] * 6 + ["error"]
    assert set(table["visual_tokens_kept"]) == {64}
    assert json.loads(table["tags"][1]) == ["a", 1]


def test_pyarrow_reads_the_parquet_file(run):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(run, "parquet")
    table = parquet.read_table(run / "answers.parquet")
    assert table["text"].to_pylist() == [*TEXTS, ""]
    assert table["score"].to_pylist() == [None, 0.5, 1.0, 1.5, 2.0, 2.5, None]
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["width"], kinds["score"], kinds["decode_ms"]) == ("int64", "double", "double")
    assert kinds["question_id"] == kinds["tags"] == "string"


def test_a_parquet_file_of_odd_values(tmp_path):
    """Several kinds in one column, numbers beyond 64 bits, and names that are not UTF-8."""
    parquet = pytest.importorskip("pyarrow.parquet")
    values = [1, "1", None, 2**80, True, {"a": float(1)}]
    results = [answer(f"{n}\udcff", "x", extra={"c": v, "run": v}) for n, v in enumerate(values)]
    run = finished(tmp_path / "run", results)
    export(run, "parquet")
    table = parquet.read_table(run / "answers.parquet")
    expected = ["1", "1", None, str(2**80), "true", '{"a": 1.0}']
    assert table["c"].to_pylist() == table["input_run"].to_pylist() == expected
    assert table["image"].to_pylist()[0] == "0\\udcff"


def test_datasets_loads_the_pictures_with_their_answers(run, photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(run, "imagefolder")
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache")
    )
    expected = {
        name: " ".join(text.split()) for name, text in zip(_names(photos), TEXTS, strict=True)
    }
    pixels = {row["image"].getpixel((0, 0))[0]: row["text"] for row in found}
    assert pixels == {int(Path(name).stem) * 40: text for name, text in expected.items()}
    assert set(found["visual_tokens_kept"]) == {64}


def _names(photos: Path) -> list[str]:
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))


def test_datasets_loads_the_records(run, tmp_path):
    """The same keys and kinds in every line, failed or not, or loading stops with a CastError."""
    datasets = pytest.importorskip("datasets")
    export(run, "jsonl,llava,openai")
    for name in ("answers.jsonl", "answers.llava.jsonl", "answers.openai.jsonl"):
        found = datasets.load_dataset(
            "json", data_files=str(run / name), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert found.num_rows == 7, name


def test_coco_s_own_loader_takes_the_results(run, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    export(run, "coco")
    (tmp_path / "truth.json").write_text(
        json.dumps(
            {
                "info": {},
                "images": [{"id": number} for number in range(6)],
                "annotations": [
                    {"id": number, "image_id": number, "caption": "x"} for number in range(6)
                ],
            }
        )
    )
    results = coco.COCO(str(tmp_path / "truth.json")).loadRes(str(run / "answers.coco.json"))
    assert sorted(results.getImgIds()) == [0, 1, 2, 3, 4, 5]
    assert all(results.imgToAnns[number][0]["caption"] for number in range(6))


def test_webdataset_pairs_pictures_and_sidecars(run, photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    export(run, "txt")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(photos.rglob("*.*")):
            tar.add(path, path.relative_to(photos).as_posix())
    shard = webdataset.WebDataset(str(tmp_path / "shard.tar"), shardshuffle=False)
    found = {row["__key__"]: row["txt"].decode() for row in shard}
    assert found == {
        name.removesuffix(".png"): " ".join(text.split()) + "\n"
        for name, text in zip(_names(photos), TEXTS, strict=True)
    }


def pope_score(questions: list[dict], answers: list[dict]) -> list[tuple[str, str]]:
    """(answer, label) of every line: the two files are walked side by side, and any answer that
    does not say no is a yes.
    """
    assert len(questions) == len(answers)
    pairs = []
    for question, given in zip(questions, answers, strict=True):
        assert question["question_id"] == given["question_id"]
        words = given["text"].split(".")[0].replace(",", "").split(" ")
        said = "no" if {"No", "not", "no"} & set(words) else "yes"
        pairs.append((said, question["label"]))
    return pairs


def test_pope_answers_pair_with_their_questions_line_by_line(loaded, bare_model, inputs):
    """Ids repeat within a POPE file, and a failed line still has its place."""
    rows = [
        {"question_id": number // 2, "image": f"p{number}.png", "text": "?", "label": label}
        for number, label in enumerate(("yes", "no", "no", "yes", "yes", "no"), start=1)
    ]
    questions = inputs / "pope.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("vqa", questions, "-m", bare_model, "-o", "o", "--format", "llava", "--limit", 4)
    assert call(*line).exit_code == 3
    assert call(*line[:-2]).exit_code == 3
    answers = lines_of(Path("o/answers.llava.jsonl"))
    assert [pair[1] for pair in pope_score(rows, answers)] == [row["label"] for row in rows]
    assert [row["text"] == "" for row in answers] == [False, True, False, False, True, False]
