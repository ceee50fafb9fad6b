"""The file of a run's lines: whole lines only, and an old file is kept until the first new line.

The error of a failed disk says which answers are safe. Knows no model and no format.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtok_cli.errors import TrimtokError
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.whole_files import Lines, Printed, beside, discard, move


class LineFile:
    """The open file, from the model's loading to the last answer, or standard output.

    begin: writes the manifest of a run that is not over. A new destination has its files from the
    start. An old destination stays whole until the first answer. Then the new file takes the old
    one's place, and the files beside the old answers are removed, so that a killed run never leaves
    two files that do not belong together.

    end: the file goes on at this byte, and what stands beside it stays.
    """

    def __init__(
        self,
        destination: Destination,
        begin: Callable[[], None] = lambda: None,
        end: int | None = None,
    ) -> None:
        self.destination, self.begin, self.count, self.began = destination, begin, 0, False
        self.lines: Lines | None = None
        self.goes_on = end is not None
        self.printed = Printed() if destination.answers is None else None
        if destination.answers is None:
            return
        if end is not None:
            self._or_say(lambda: self._go_on(end))
            return
        self.lines = self._or_say(lambda: Lines(beside(destination.file, "new")))
        if not destination.holds:
            self._or_say(self._take_place)

    @property
    def end(self) -> int:
        """The byte at which the next line begins; 0 on standard output."""
        return self.lines.end if self.lines else 0

    def write(self, line: bytes) -> None:
        """Writes one line.

        Raises TrimtokError, which names the answers that are safe, if the disk refuses the line, or
        nobody reads standard output any more.
        """
        self._or_say(lambda: self._write(line))
        self.count += 1

    def close(self, failed: bool) -> None:
        """Closes the file. A run without a line leaves its manifest, or nothing if it failed."""
        if self.lines is None:
            return
        try:
            self.lines.close()
        except OSError as error:
            if not failed:
                raise TrimtokError(self._sentence(error)) from error
        answers = self.destination.file
        discard(beside(answers, "new"))
        if self.began and not self.lines.end:
            discard(answers)
            for path in self.destination.beside if failed else ():
                discard(path)

    def _write(self, line: bytes) -> None:
        if self.printed is not None:
            self.printed.append(line)
        elif self.lines is not None:
            self.lines.append(line)
            if not self.began:
                self._take_place()

    def _go_on(self, end: int) -> None:
        self.lines = Lines(self.destination.file, end)
        self.began = True
        self.begin()

    def _take_place(self) -> None:
        for path in self.destination.beside:
            path.unlink(missing_ok=True)
        answers = self.destination.file
        move(beside(answers, "new"), answers)
        self.began = True
        self.begin()

    def _or_say(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except OSError as error:
            raise TrimtokError(self._sentence(error)) from error

    def _sentence(self, error: OSError) -> str:
        place = self.destination
        answers = "1 answer" if self.count == 1 else f"{self.count} answers"
        if isinstance(error, FileNotFoundError):
            return (
                f"{place} was removed while the run went on, with {answers} in it: run again "
                "with an --out that stays."
            )
        if self.goes_on:
            safe = f"what it held and {answers} more are safe in it"
        elif self.count and place.answers:
            safe = f"the first {answers} are safe in it"
        else:
            safe = f"{answers} {'was' if self.count == 1 else 'were'} written before"
        rest = "the same command again" if place.errors else "again with another --out"
        if self.printed and isinstance(error, BrokenPipeError):
            return f"nobody reads standard output any more: {safe}; run again for the rest."
        return (
            f"{place} cannot be written ({error.strerror or error}): {safe}; make room, and "
            f"run {rest} for the rest."
        )


def finish(path: Path, write: Callable[[], None], failed: bool) -> None:
    """Writes a file at the end of a run. Raises TrimtokError if the disk fails.

    A run that itself failed raises its own error instead.
    """
    try:
        write()
    except OSError as error:
        if not failed:
            problem = (
                f"{path} cannot be written ({error.strerror or error}): the answers "
                "themselves are safe"
            )
            raise TrimtokError(f"{problem}; make room, and run again to have it.") from error
