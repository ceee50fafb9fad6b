"""The flags of an answer: when it is caught in a loop, and how long it takes to tell."""

import json
import random
from dataclasses import replace

import pytest

from tests.support.finished import answer
from tests.support.writing import as_written
from trimtok_cli.outputs.flags import loops
from trimtok_cli.outputs.read_back import _RECORD

SENTENCE = "A small dog runs over the wet grass of a park. "


def oracle(text: str) -> bool:
    """Every piece at the end, counted letter by letter."""
    text = text.rstrip()
    return any(
        all(text[-i] == text[-i - size] for i in range(1, 2 * size))
        for size in range(40, (len(text) + 1) // 3 + 1)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("A dog.", False),
        (SENTENCE * 2, False),
        (SENTENCE * 3, True),
        (SENTENCE * 3 + SENTENCE[:20], True),
        (SENTENCE * 5 + "And then it stops.", False),
        ("the " * 40, True),
        ("the " * 20, False),
        ("No.\nNo.\n\nNo. \n", True),
        ("No.\nNo.\nYes.\n", False),
        ("狗在草地上跑。" * 20, True),
        ("x" * 10_000 + SENTENCE * 3, True),
    ],
)
def test_an_answer_loops_if_its_end_is_the_same_three_times(text, expected):
    assert loops(text) is expected
    _, line = as_written(answer("a.jpg", text), model="m", run="0")
    assert json.loads(line)["metadata"]["flags"]["loops"] is expected
    assert _RECORD.fullmatch(line), "a line is matched as bytes, or a resumed run reads it slowly"


def test_loops_are_those_of_the_oracle():
    random.seed(0)
    found = 0
    for _ in range(300):
        piece = "".join(random.choices("ab ", k=random.randint(1, 60)))
        text = "start" * random.randint(0, 3) + piece * random.randint(1, 9)
        text += piece[: random.randint(0, len(piece))] + random.choice(["", "", "!"])
        assert loops(text) is oracle(text), text
        found += oracle(text)
    assert 30 < found < 270


def test_only_an_answer_that_was_cut_off_says_so():
    for finish in ("stop", "length"):
        result = replace(answer("a.jpg", "x"), finish=finish)
        _, line = as_written(result, model="m", run="0")
        assert json.loads(line)["metadata"]["flags"]["cut_off"] is (finish == "length")
