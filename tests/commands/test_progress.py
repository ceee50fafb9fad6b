"""The bar of a run on terminals of every width, and on those that move no cursor."""

import io
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console

from trimtok_cli.commands.terminal.progress import PLAIN_EVERY, Screen
from trimtok_cli.data import Result, Sample, TokenCounts


def screen(width: int, term: str) -> Screen:
    """A screen on a terminal that is a file here, 850 of 2,000 questions into a run."""
    found = Screen(noun="questions")
    found.console = Console(
        file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": term}
    )
    found.track(2000)
    found.done, found.failed, found.kept, found.visual = 849, 1, 64, 576
    found.start -= 300
    return found


def answered() -> Result:
    counts = TokenCounts(visual=576, kept=64)
    return Result(Sample("a"), "?", answer="yes", tokens=counts)


@pytest.mark.parametrize("width", [160, 100, 80, 60, 40])
def test_the_count_the_failures_and_the_time_left_are_whole_at_every_width(width):
    run = screen(width, "xterm")
    with run:
        run.bar.update(run.task, completed=849)
        run.advance(answered())
        shown = Console(file=io.StringIO(), width=width)
        shown.print(run.bar.get_renderable())
    (line,) = shown.file.getvalue().splitlines()
    assert "1 failed" in line and "…" not in line and len(line.rstrip()) <= width
    assert "850/2000" in line and " ETA 0:0" in line
    assert ("━" in line, "questions/s" in line, "of visual" in line) == (
        width >= 72,
        width >= 56,
        width >= 100,
    )


def test_a_terminal_that_moves_no_cursor_gets_lines():
    run = screen(80, "dumb")
    with run:
        assert run.bar is None
        run.told = time.perf_counter() - PLAIN_EVERY
        run.advance(answered())
    said = run.console.file.getvalue()
    assert said.startswith("850 of 2000 questions, 1 failed, 11.1% of visual tokens kept, 2.8")
    assert said.count("\n") == 1


def test_the_seconds_in_which_torch_is_imported_are_accounted_for(monkeypatch):
    run = screen(80, "dumb")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    run.say_imports()
    assert run.console.file.getvalue() == "importing torch and transformers\n"
    monkeypatch.setitem(sys.modules, "torch", sys)
    run.say_imports()
    assert run.console.file.getvalue().count("\n") == 1


def test_of_many_answers_the_first_is_shown_and_then_one_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    loud, quiet = Screen(), Screen(quiet=True)
    for second in (0, 1, 59.9, 60, 60.1, 119, 121):
        now[0] = 1000.0 + second
        for run in (loud, quiet):
            run.glimpse(replace(answered(), answer=f"at {second}"))
    said = capsys.readouterr().err.splitlines()
    assert said[1::2] == ["  at 0", "  at 60", "  at 121"]
    assert all("576 → 64 visual tokens" in line for line in said[::2])
