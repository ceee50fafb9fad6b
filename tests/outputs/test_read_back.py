"""A record's line, read back: the fast way says what JSON says, and a million lines take seconds."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.support.writing import as_written
from trimtok_cli.data import Media, Result, Sample, Seconds, Setting, TokenCounts
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs import read_back
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.read_back import NoRecord, read_line

ODD = [
    "",
    "a",
    '"',
    "\\",
    '\\"',
    "\n",
    "ünï",
    "\x00",
    "]}",
    '", "text": "',
    "{",
    "\ud800",
    "\u2028",
]


def drawn(lots: random.Random, number: int) -> Result:
    """A result with odd texts and numbers everywhere."""

    def text() -> str:
        return "".join(lots.choices(ODD, k=lots.randrange(4)))

    def size() -> int:
        return lots.choice((0, 1, 576, 10**7))

    return Result(
        sample=Sample(
            id=lots.choice((text(), 7, 0.5, -1e-9, 1e300)),
            names=tuple(text() for _ in range(lots.randrange(3))),
            key=f"{number:032x}",
        ),
        question=text(),
        answer=text(),
        setting=Setting(text(), text(), params={text(): text()}),
        tokens=TokenCounts(
            size(),
            size(),
            size(),
            lots.random(),
            size(),
            tuple((layer, size()) for layer in range(lots.randrange(3))),
        ),
        seconds=Seconds(*(lots.choice((0.0, 1e-7, 1e-9, 1.5, 1e6)) for _ in range(6))),
        grid=lots.choice(((), (24, 24))),
        finish=lots.choice(("stop", "length", "error")),
        error=lots.choice(("", text())),
        error_class=text(),
        prompt_sent=text(),
        media=tuple(
            Media(mode=text(), decoder=text(), times=lots.choice(((), (0.0, 1.25))))
            for _ in range(lots.randrange(3))
        ),
        notes=tuple(text() for _ in range(lots.randrange(3))),
    )


def test_a_line_read_as_bytes_says_what_it_says_as_json():
    lots = random.Random(0)
    for number in range(1000):
        _, line = as_written(drawn(lots, number), model=lots.choice(ODD), run="0123abcdef01")
        assert read_back._RECORD.fullmatch(line), line
        assert read_line(line) == read_back._parsed(line)
        assert read_line(line).key == number.to_bytes(16)


def test_a_line_with_columns_of_the_input_is_parsed():
    extra = {"metadata": {"key": "0" * 32}, "key": "mine", "": [1]}
    result = Result(Sample("a", extra=extra, key="f" * 32), "What?", "a", finish="stop")
    _, line = as_written(result, model="m", run="0123abcdef01")
    assert not read_back._RECORD.fullmatch(line) and read_line(line).key == b"\xff" * 16


def test_no_part_of_a_line_is_taken_for_a_line():
    lots = random.Random(1)
    _, line = as_written(drawn(lots, 1), model="m", run="0123abcdef01")
    _, other = as_written(drawn(lots, 2), model="m", run="0123abcdef01")
    for at in range(len(line) - 1):
        with pytest.raises(ValueError):
            read_line(line[:at])
        with pytest.raises(ValueError):
            read_line(line[:at] + b"\n")
    half = line.index(b'"metadata"')
    with pytest.raises(ValueError):
        read_line(line[: half - 5] + other)


@pytest.mark.parametrize(
    "text", ["1", "[]", "null", "{}", '{"metadata": 1}', '{"metadata": {"key": 1}}']
)
def test_json_that_is_no_record_is_told_from_a_torn_line(text):
    with pytest.raises(NoRecord):
        read_line(text.encode() + b"\n")


def test_a_journal_is_read_in_a_time_that_grows_with_its_lines_alone():
    """A night's run has a million lines: LINES=1000000 in the environment measures that many."""
    number = int(os.environ.get("LINES", "5000"))
    _, line = as_written(drawn(random.Random(2), 0), model="m", run="0123abcdef01")
    with open("a.jsonl", "wb") as file:
        for each in range(number):
            file.write(line.replace(b"0" * 32, f"{each:032x}".encode()))
    start = time.process_time()
    journal = Journal(Path("a.jsonl"))
    journal.read("0123abcdef01", lambda _: None)
    seconds = time.process_time() - start
    print(f"{number} lines of {len(line)} bytes: {seconds:.2f} s")
    assert len(journal.starts) == journal.lines == number
    assert journal.end == os.path.getsize("a.jsonl")


def test_lines_of_another_run_end_the_reading():
    _, line = as_written(drawn(random.Random(3), 0), model="m", run="0123abcdef01")
    Path("a.jsonl").write_bytes(line)
    with pytest.raises(UsageError, match="line 1 is not of the run"):
        Journal(Path("a.jsonl")).read("0" * 12, lambda _: None)


def test_of_several_lines_of_a_sample_success_counts_and_else_the_last():
    result = Result(Sample("a", key="0" * 32), "What?", "first", finish="stop")
    failed = Result(Sample("a", key="0" * 32), "What?", error="bad")
    lines = [as_written(each, model="m", run="0")[1] for each in (failed, failed, result, failed)]
    for order, start, fails in (
        ((0, 1), len(lines[0]), True),
        ((0, 2), len(lines[0]), False),
        ((2, 3), 0, False),
        ((0, 2, 2), len(lines[0]), False),
    ):
        Path("a.jsonl").write_bytes(b"".join(lines[each] for each in order))
        journal, counted = Journal(Path("a.jsonl")), []
        journal.read("0", counted.append)
        assert journal.starts == {bytes(16): start} and bool(journal.failed) == fails
        assert len(counted) == (not fails) and journal.lines == len(order)
        journal.order.append(bytes(16))
        assert journal.settle() and Path("a.jsonl").read_bytes() == lines[2 if not fails else 1]
        assert json.loads(Path("a.jsonl").read_text())["text"] == ("" if fails else "first")
