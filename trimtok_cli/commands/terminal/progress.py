"""Progress and lines on stderr: a bar on a terminal, plain lines elsewhere.

File names and answers are other people's text: `shown` prints them, never as markup and never as
commands of the terminal. Knows no model.
"""

import os
import re
import sys
import time
from contextlib import suppress
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from trimtok_cli.data import Result, Sample
from trimtok_cli.wording import brief, shortened, shown

PLAIN_EVERY = 10.0  # seconds between plain lines if there is no terminal
FEW = 50  # number of answers that are all shown without -v
GLIMPSE_EVERY = 60.0  # seconds between answers that are shown of many
LONGEST_NAME, LONGEST_WORD = 160, 300
RATE_FROM, BAR_FROM, SHARE_FROM = 56, 72, 100  # columns of a terminal on which these have room


def names(sample: Sample) -> str:
    """The names of a sample's images, on one line."""
    return (
        brief(", ".join(shortened(name, LONGEST_NAME) for name in sample.names), 4 * LONGEST_NAME)
        or "(no image)"
    )


def message(text: str) -> str:
    """An error or a note; one word of it may be as long as a data: URI."""
    return shown(
        re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: shortened(found[0], LONGEST_NAME), text)
    )


class _Messages(Console):
    """Standard error. Nobody may be reading it any more: that must not end a night's run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Screen:
    """Lines and, inside `with`, progress. `quiet` leaves errors only."""

    def __init__(self, *, quiet: bool = False, noun: str = "images") -> None:
        # Without a terminal rich assumes 80 columns, which would fold tables in a log file.
        width = None if sys.stderr.isatty() or "COLUMNS" in os.environ else 120
        self.console = _Messages(stderr=True, highlight=False, width=width)
        self.quiet, self.noun = quiet, noun
        self.bar: Progress | None = None
        self.total: int | None = None
        self.glimpsed = -GLIMPSE_EVERY
        self.done = self.failed = self.kept = self.visual = 0

    def say(self, text: str | Text = "", style: str = "") -> None:
        if not self.quiet:
            self._print(Text(shown(text), style) if isinstance(text, str) else text, soft_wrap=True)

    def say_imports(self) -> None:
        """Says what takes the first seconds, in which nothing else is seen; once."""
        if "torch" not in sys.modules:
            self.say("importing torch and transformers", "dim")

    def show(self, table) -> None:
        if not self.quiet:
            self._print(table)

    def error(self, text: str) -> None:
        self._print(Text("error: ", "bold red").append(message(text), "default"), soft_wrap=True)

    def failure(self, sample: Sample, error: str) -> None:
        """An item that failed is an error: `quiet` does not hide it."""
        line = (
            Text(names(sample), "bold")
            .append("  failed: ", "red")
            .append(message(error), "default")
        )
        self._print(line, soft_wrap=True)

    def _print(self, what, **options) -> None:
        """Prints. A log that is full, or that nobody reads any more, must not end the run."""
        try:
            self.console.print(what, **options)
        except OSError:
            with suppress(OSError):
                self.console.file.flush()

    def track(self, total: int | None) -> Self:
        self.total, self.start, self.told = total, time.perf_counter(), time.perf_counter()
        self.done = self.failed = self.kept = self.visual = 0
        return self

    def __enter__(self) -> Self:
        # A terminal that moves no cursor (TERM=dumb) is told as a file is: in lines.
        if self.console.is_interactive and not self.quiet:
            width = self.console.width
            bar = [BarColumn(20 if width < SHARE_FROM else 40)] if width >= BAR_FROM else []
            self.bar = Progress(
                SpinnerColumn(),
                *bar,
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, *results: Result) -> None:
        """Counts one more sample, and the failures and tokens of each of its results."""
        self.done += 1
        self.failed += any(result.error for result in results)
        self.kept += results[-1].tokens.kept
        self.visual += results[-1].tokens.visual
        now = time.perf_counter()
        if self.bar:
            self.bar.update(self.task, advance=1, note=self._note(now))
        elif not self.quiet and now - self.told >= PLAIN_EVERY:
            self.told = now
            rate = self.done / (now - self.start)
            left = f", {(self.total - self.done) / rate:.0f} s left" if self.total else ""
            self.say(
                f"{self.done}{f' of {self.total}' if self.total else ''} {self.noun}, "
                f"{self._note(now)}{left}"
            )

    def _note(self, now: float) -> str:
        """What fits beside the count and the time left."""
        width = self.console.width if self.bar else SHARE_FROM
        said = [f"{self.failed} failed"]
        if self.visual and width >= SHARE_FROM:
            said.append(f"{self.kept / self.visual:.1%} of visual tokens kept")
        if width >= RATE_FROM:
            said.append(f"{self.done / max(now - self.start, 1e-9):.2f} {self.noun}/s")
        return ", ".join(said)

    def glimpse(self, result: Result) -> None:
        """Prints the first answer of many, and then one a minute: they are what was asked for."""
        now = time.perf_counter()
        if now - self.glimpsed >= GLIMPSE_EVERY:
            self.glimpsed = now
            self.answer(result)

    def answer(self, result: Result) -> None:
        """Prints an answer in two lines: the sample and its cost, then the answer."""
        if result.error:
            self.failure(result.sample, result.error)
            return
        tokens, seconds = result.tokens, result.seconds
        cost = (
            f"  {tokens.visual} → {tokens.kept} visual tokens, {tokens.generated} generated, "
            f"{1000 * seconds.total:.0f} ms"
            f" (encode {1000 * seconds.encode:.0f}, prune {1000 * seconds.prune:.1f},"
            f" prefill {1000 * seconds.prefill:.0f}, decode {1000 * seconds.decode:.0f})"
        )
        self.say(Text(names(result.sample), "bold").append(cost, "dim not bold"))
        asked = f"{message(result.question)} → " if result.sample.question is not None else ""
        answer = "\n  ".join(map(shown, result.answer.splitlines()))
        self.say(
            Text("  ")
            .append(asked, "dim")
            .append(answer, "green" if result.finish == "stop" else "yellow")
        )
        for warning in result.warnings:
            self.say(Text(f"  note: {message(warning)}", "yellow"))
