"""A record's line, read back: the fast way says what JSON says, and a million lines take seconds."""

import json
import os
import random
import re
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.writing import as_written
from trimtok_cli.data import Media, Result, Sample, Seconds, Setting, TokenCounts
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs import read_back
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.manifest import RunSummary
from trimtok_cli.outputs.read_back import NoRecord, read_lines

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

    def name() -> str:
        return lots.choice(
            [each for each in ODD if each.isprintable() and not set(each) & {*'"\\'}]
        )

    def size() -> int:
        return lots.choice((0, 1, 576, 10**7))

    return Result(
        sample=Sample(
            id=lots.choice((text(), 7, 0.5, -1e-9, 1e300)),
            names=tuple(text() for _ in range(lots.randrange(3))),
            key=f"{number:032x}",
        ),
        question=text(),
        answer=lots.choice((text(), "la " * 60)),
        setting=Setting(name(), name(), params={text(): text()}),
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
        error_class=name(),
        prompt_sent=text(),
        media=tuple(
            Media(mode=name(), decoder=name(), times=lots.choice(((), (0.0, 1.25))))
            for _ in range(lots.randrange(3))
        ),
        notes=tuple(text() for _ in range(lots.randrange(3))),
    )


def parsed(block: bytes) -> read_back.Lines:
    """What JSON says of lines."""
    return read_back._in_columns(list(read_back._each(BytesIO(block))))


def plain(lines: read_back.Lines) -> list[object]:
    return [[*map(list, column)] if column is lines.ms else list(column) for column in lines]


def test_lines_read_as_bytes_say_what_they_say_as_json():
    lots = random.Random(0)
    lines = []
    for number in range(1000):
        line = as_written(drawn(lots, number), model=lots.choice(ODD), run="0123abcdef01")[1]
        assert read_back._RECORD.fullmatch(line), line
        quick = read_back._QUICK_RECORD.fullmatch(line)
        assert bool(quick) == (b'\\\\"' not in line), line
        assert not quick or quick.groups() == read_back._RECORD.fullmatch(line).groups()
        assert plain(read_lines(line)) == plain(parsed(line))
        assert list(read_lines(line).keys) == [number.to_bytes(16)]
        lines.append(line)
    block = b"".join(lines)
    assert plain(read_lines(block)) == plain(parsed(block))
    assert read_lines(block).sizes == [*map(len, lines)]
    assert sum(read_lines(block).loops) == sum(b'"loops": true' in line for line in lines) > 0


@pytest.mark.parametrize(
    ("extra", "matched"),
    [
        ({"label": "no", "n": 1.5, "none": None, "yes": True, "few": ["a", "b"], "": [1]}, True),
        ({"metadata": {"key": "0" * 32}, "key": "mine"}, False),
        ({"boxes": [[1, 2]], "key": "mine"}, False),
    ],
)
def test_columns_of_the_input_change_nothing(extra, matched):
    result = Result(Sample("a", extra=extra, key="f" * 32), "What?", "a", finish="stop")
    _, line = as_written(result, model="m", run="0123abcdef01")
    assert bool(read_back._RECORD.fullmatch(line)) == matched
    assert list(read_lines(line).keys) == [b"\xff" * 16]
    assert plain(read_lines(line * 3)) == plain(parsed(line * 3))


def test_no_part_of_a_line_is_taken_for_a_line():
    lots = random.Random(1)
    _, line = as_written(drawn(lots, 1), model="m", run="0123abcdef01")
    _, other = as_written(drawn(lots, 2), model="m", run="0123abcdef01")
    half = line.index(b'"metadata"')
    torn = [line[:at] + end for at in range(len(line) - 1) for end in (b"", b"\n")]
    for hurt in (*torn, line[: half - 5] + other):
        assert not read_lines(hurt).keys
        assert list(read_lines(other + hurt).sizes) == [len(other)]


def test_a_byte_that_changes_is_seen_as_json_sees_it():
    lots = random.Random(4)
    lines = [as_written(drawn(lots, each), model="m", run="0123abcdef01")[1] for each in range(30)]
    told = 0
    for _ in range(3000):
        block = bytearray(lots.choice(lines) + lots.choice(lines))
        at = lots.randrange(len(block))
        block[at : at + lots.randrange(2)] = lots.choice((b'"', b"\\", b"\n", b'\\"', b"\\\\"))
        try:
            found = plain(read_lines(bytes(block)))
        except NoRecord:
            continue
        said = plain(parsed(bytes(block)))
        told += found != said
        # An escape that JSON does not know, and a control character, are a text's own here.
        assert found == said or len(found[0]) > len(said[0])
    assert told < 300


def test_a_number_that_is_none_tears_a_line():
    _, line = as_written(drawn(random.Random(1), 1), model="m", run="0123abcdef01")
    hurt = re.sub(rb'"prune": [^,]+', b'"prune": 1-2', line)
    assert hurt != line and list(read_lines(line + hurt + line).sizes) == [len(line)]


@pytest.mark.parametrize(
    "text", ["1", "[]", "null", "{}", '{"metadata": 1}', '{"metadata": {"key": 1}}']
)
def test_json_that_is_no_record_is_told_from_a_torn_line(text):
    with pytest.raises(NoRecord):
        read_lines(text.encode() + b"\n")


def test_a_journal_is_read_in_a_time_that_grows_with_its_lines_alone():
    """A night's run has a million lines: LINES=1000000 in the environment measures that many."""
    number = int(os.environ.get("LINES", "5000"))
    answer = replace(drawn(random.Random(2), 0), error="", finish="stop")
    _, line = as_written(answer, model="m", run="0123abcdef01")
    with open("a.jsonl", "wb") as file:
        for each in range(number):
            file.write(line.replace(b"0" * 32, f"{each:032x}".encode()))
    start = time.process_time()
    journal = Journal(Path("a.jsonl"))
    summary = RunSummary(Setting("a", "all"))
    journal.read("0123abcdef01", summary.add_lines)
    seconds = time.process_time() - start
    print(f"{number} lines of {len(line)} bytes: {seconds:.2f} s")
    assert len(journal.starts) == journal.lines == number == summary.done
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
        journal, summary = Journal(Path("a.jsonl")), RunSummary(Setting("a", "all"))
        journal.read("0", summary.add_lines)
        assert dict(journal.starts) == {bytes(16): start} and bool(journal.failed) == fails
        assert summary.done == (not fails) and journal.lines == len(order)
        list(journal.pending([result.sample]))
        assert journal.settle() and Path("a.jsonl").read_bytes() == lines[2 if not fails else 1]
        assert json.loads(Path("a.jsonl").read_text())["text"] == ("" if fails else "first")
