"""A run that is ended at any moment and begun again: the files are those of an undisturbed run.

The process dies, or the disk refuses, at the n-th call that changes the disk, for every n. The
engine is a stand-in that answers at once; all else is the program itself.
"""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.commands.test_cli import rows
from tests.support.stub_engine import Died, Disk, call, contents
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.readers import read_images
from trimtok_cli.readers.keys import keyed

NUMBER = 6


def line(name: str, inputs: Path, model: Path) -> list[object]:
    """The commands of these tests."""
    source = {
        "caption": ["caption", inputs],
        "batches": ["caption", inputs, "--batch-size", 3],
        "questions": ["vqa", inputs / "q.jsonl"],
        "to a file": ["caption", inputs],
    }[name]
    return [*source, "-m", model, "-q", "-o", "o/a.jsonl" if name == "to a file" else "o"]


LINES = ("caption", "batches", "questions", "to a file")


def undisturbed(arguments: list[object], code: int = 3) -> dict[str, object]:
    """The files of a run that nothing disturbs, which are removed again."""
    done = call(*arguments)
    assert done.exit_code == code, done.stderr
    found = contents(Path("o"))
    shutil.rmtree("o")
    return found


def ended(disk: Disk, arguments: list[object]) -> bool:
    """Whether the process died before the command was done."""
    with disk.in_place():
        try:
            call(*arguments)
        except Died:
            return True
    return False


def repair(inputs: Path) -> None:
    for number in (2, 5):
        (inputs / f"p{number}.png").write_text("xyz")


WAYS = {
    "caption": ("caption", False, False),
    "questions": ("questions", True, False),
    "retry": ("batches", False, True),
    "retry, half": ("to a file", True, True),
}


@pytest.mark.parametrize(("name", "half", "retry"), WAYS.values(), ids=WAYS.keys())
def test_a_run_that_dies_at_any_call_ends_as_an_undisturbed_one(
    name, half, retry, loaded, bare_model, inputs
):
    """retry: an earlier run had failures, which succeed now."""
    arguments = line(name, inputs, bare_model)
    if retry:
        assert call(*arguments).exit_code == 3
        shutil.move("o", "earlier")
        repair(inputs)
    code = 0 if retry else 3
    expected = undisturbed(arguments, code)
    number, dead = 0, True
    while dead:
        if retry:
            shutil.copytree("earlier", "o")
        number += 1
        dead = ended(Disk(number, half=half), arguments)
        again = call(*arguments)
        assert again.exit_code == code, f"call {number}: {again.stderr}"
        assert contents(Path("o")) == expected, f"call {number}"
        shutil.rmtree("o")
    assert number > 40, "the disk was hardly used"


FAULTS = {
    "a full disk": (errno.ENOSPC, True, False),
    "a full disk for a moment": (errno.ENOSPC, False, True),
    "a disk that fails": (errno.EIO, False, False),
    "a disk behind a pipe that breaks": (errno.EPIPE, False, False),
    "a disk that becomes read-only": (errno.EROFS, True, True),
}


@pytest.mark.parametrize(("code", "lasting", "retry"), FAULTS.values(), ids=FAULTS.keys())
def test_a_disk_that_fails_at_any_call_is_one_sentence_and_loses_nothing(
    code, lasting, retry, loaded, bare_model, inputs
):
    """Every line that was written stays, and the same command then goes on.

    retry: an earlier run had failures, which succeed now.
    """
    arguments = line("caption", inputs, bare_model)
    if retry:
        assert call(*arguments).exit_code == 3
        shutil.move("o", "earlier")
        repair(inputs)
    well = 0 if retry else 3
    expected = undisturbed(arguments, well)
    number, reached, stopped = 0, True, 0
    while reached:
        if retry:
            shutil.copytree("earlier", "o")
        number += 1
        disk = Disk(number, half=number % 2 == 0, code=code, lasting=lasting)
        with disk.in_place():
            done = call(*arguments)
        reached = len(disk.calls) >= number
        assert done.exit_code in (1, well), f"call {number}: {done.stderr}"
        stopped += done.exit_code == 1
        errors = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
        assert len(errors) == (done.exit_code == 1) and "Error" not in done.stderr, done.stderr
        assert not errors or os.strerror(code) in errors[0]
        lines = len(rows(Path("o/answers.jsonl"))) if Path("o/answers.jsonl").exists() else 0
        if retry:
            assert lines in range(NUMBER, NUMBER + 3)
        else:
            assert f"first {lines} answer" in done.stderr or lines in (0, NUMBER)
        assert call(*arguments).exit_code == well
        assert contents(Path("o")) == expected, f"call {number}"
        shutil.rmtree("o")
    assert number > 40 and stopped > 15


def test_a_last_line_that_is_torn_at_any_byte_is_answered_again(loaded, bare_model, inputs):
    arguments = line("caption", inputs, bare_model)
    assert call(*arguments).exit_code == 3
    file, run = Path("o/answers.jsonl"), json.loads(Path("o/run.json").read_text())["run"]
    whole, expected = file.read_bytes(), contents(Path("o"))
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    samples = list(keyed(read_images([str(inputs)]).samples))
    for size in range(ends[-3], ends[-1] + 1):
        file.write_bytes(whole[:size])
        journal = Journal(file)
        journal.read(run, lambda _: None)
        kept = 5 if ends[-2] <= size < ends[-1] else 4 if size < ends[-2] else 6
        assert (journal.lines, journal.end) == (kept, ends[kept - 1])
        left = [sample.id for sample in journal.pending(samples, keep_failed=True)]
        assert left == [f"p{number}.png" for number in range(kept + 1, 7)]
    for size in (*range(0, ends[-1], 487), *(end + by for end in ends for by in (-2, -1, 0))):
        file.write_bytes(whole[:size])
        assert call(*arguments).exit_code == 3
        assert contents(Path("o")) == expected, f"cut at byte {size}"


@pytest.mark.parametrize("damage", ["cut", "zeros", "rubbish"])
def test_a_line_in_the_middle_that_is_torn_is_an_error_with_its_number(
    damage, loaded, bare_model, inputs
):
    arguments = line("caption", inputs, bare_model)
    call(*arguments)
    file = Path("o/answers.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    hurt = {"cut": lines[2][:300] + b"\n", "zeros": bytes(50) + b"\n", "rubbish": b"{]\n"}
    damaged = b"".join([*lines[:2], hurt[damage], *lines[3:]])
    file.write_bytes(damaged)
    done = call(*arguments)
    assert done.exit_code == 2 and "line 3 of o/answers.jsonl is torn" in done.stderr
    assert file.read_bytes() == damaged
    file.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert call(*arguments).exit_code == 3 and len(rows(file)) == NUMBER


def test_a_torn_line_leaves_no_trace_where_a_shorter_one_takes_its_place(
    loaded, bare_model, inputs
):
    """The same without any line in its place: the last answer of a run was tried again in vain."""
    (inputs / "p6.png").write_text("x" * 3000)
    arguments = line("caption", inputs, bare_model)
    assert call(*arguments).exit_code == 3
    file = Path("o/answers.jsonl")
    file.write_bytes(file.read_bytes()[:-100])
    (inputs / "p6.png").write_text("y")
    assert call(*arguments, "--keep-failed").exit_code == 3
    expected = contents(Path("o"))
    assert len(expected["answers.jsonl"]) == NUMBER
    for torn in (b"{", b'{"question_id": "p2.png"', bytes(5000), b"\n"):
        file.write_bytes(file.read_bytes() + torn)
        assert call(*arguments, "--keep-failed").exit_code == 3
        assert contents(Path("o")) == expected
