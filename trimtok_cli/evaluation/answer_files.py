"""Files of answers, whoever wrote them -> Answers: what was said, and to which question.

Read are trimtok's and LLaVA's lines, result files of COCO, VQA and GQA, objects that give each id
its answer, ScienceQA's outputs, and MME's text files. Knows no data set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.files import read_json, read_text
from trimtok_cli.wording import shortened

# Columns by their meaning; the first that a row has is read.
_IDS = ("question_id", "questionId", "image_id", "id", "index", "custom_id")
_TEXTS = ("text", "prediction", "predict", "response", "caption", "answer")
_QUESTIONS = ("prompt", "question", "query")
_IMAGES = ("image", "image_name", "image_path", "imgname", "file_name")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. place: where it stands; what the file does not say is empty.

    A sample that failed has an empty text.
    """

    place: str
    text: str
    id: str = ""
    question: str = ""
    images: tuple[str, ...] = ()
    category: str = ""


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file, or of the folder of a run. UsageError where there are none."""
    name = shortened(str(path))
    if path.is_dir():
        if (path / "answers.jsonl").is_file():
            return read_answers(path / "answers.jsonl")
        files = sorted(path.glob("*.txt"))
        if not files:
            raise UsageError(
                f"{name} holds no answers; looked for answers.jsonl and for MME's .txt files."
            )
        return [answer for file in files for answer in _mme(file)]
    if not path.exists():
        raise UsageError(f"there is no file {name}; name the answers that are to be scored.")
    answers = [*_mme(path)] if path.suffix.lower() == ".txt" else [*_rows(path, name)]
    if not answers:
        raise UsageError(f"{name} holds no answers.")
    return answers


def _mme(path: Path) -> Iterator[Answer]:
    """MME's lines: picture, question, right answer, answer, with tabs between; a task a file."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < 4:
            raise UsageError(
                f"{shortened(str(path))} line {number} is no line of MME's answers, which are "
                "picture, question, right answer and answer with tabs between."
            )
        yield Answer(
            place=f"{path.name} line {number}",
            text="\t".join(cells[3:]),
            question=cells[1],
            images=(cells[0],),
            category=path.stem,
        )


def _rows(path: Path, name: str) -> Iterator[Answer]:
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("outputs"), dict):
        content = content["outputs"]
    if isinstance(content, dict) and not content.keys() & {*_TEXTS, *_IDS}:
        for key, text in content.items():
            if not isinstance(text, str | int | float):
                raise UsageError(f"{name} is an object, and {key!r} in it is no answer.")
            yield Answer(place=f"entry {key}", text=str(text), id=str(key))
        return
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"row {number} of {name} is no object with an id and an answer.")
        yield _answer(row, f"row {number}", name)


def _answer(row: Mapping[str, Any], place: str, name: str) -> Answer:
    text = next((row[column] for column in _TEXTS if row.get(column) is not None), None)
    if text is None:
        raise UsageError(
            f"{place} of {name} has no answer; looked for one under {', '.join(_TEXTS)}."
        )
    facts = row.get("metadata")
    failed = isinstance(facts, dict) and facts.get("status") == "error"
    key = next((row[column] for column in _IDS if row.get(column) is not None), "")
    return Answer(
        place=place,
        text="" if failed else str(text),
        id=str(key),
        question=_first_text(row, _QUESTIONS),
        images=_names(next((row[column] for column in _IMAGES if row.get(column)), ())),
        category=_first_text(row, ("category",)) or _folder(str(key)),
    )


def _first_text(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return next((row[name] for name in columns if isinstance(row.get(name), str)), "")


def _names(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else [value]
    return tuple(name for name in names if isinstance(name, str) and name)


def _folder(key: str) -> str:
    """The task that an id of MME begins with: `OCR/0001.jpg`."""
    return key.split("/")[0] if "/" in key else ""
