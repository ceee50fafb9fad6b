"""VQAv2's results: a JSON array of {"question_id": int, "answer": str}, one for each question.

The server wants all questions of a split, so a sample that failed has an empty answer. Answers are
written as VQA's evaluation compares them: it spells both sides alike only where people disagreed.
"""

import json
import re
from pathlib import Path

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import (
    LeftOut,
    Made,
    Wanted,
    succeeded,
    whole_number,
    write_rows,
)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}

_ARTICLES = frozenset(("a", "an", "the"))

_WITHIN_NUMBER = re.compile(r"(?<=\d),(?=\d)")

# A full stop counts between digits only; other marks part words, unless a blank does.
_STOP = re.compile(r"(?<!\d)\.|\.(?!\d)")

_MARKS = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@`,?!]")


def write_vqav2(answers: Answers, target: Path, wanted: Wanted) -> Made:
    made = write_rows(answers, target, _row, head="[", between=",\n", tail="]\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} failed, whose answer is empty")
    return made


def _row(record: Record) -> str:
    number = whole_number(record["question_id"])
    if number is None:
        raise LeftOut("without a number for a question_id")
    answer = plain_answer(str(record["text"])) if succeeded(record) else ""
    return json.dumps({"question_id": number, "answer": answer}, ensure_ascii=False)


def plain_answer(text: str) -> str:
    """An answer in lower case, without articles and punctuation, small numbers as digits.

    `None.` is 0, `A red-haired dog` is `red haired dog`, `1,000` is 1000.
    """
    text = _MARKS.sub(" ", _WITHIN_NUMBER.sub("", text.lower()))
    words = _STOP.sub(" ", text).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)
