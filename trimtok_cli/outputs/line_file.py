"""The answers of a run on their way to disk: whole lines, the old ones kept until the first new
one, and what is said when the disk fails. Knows no model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtok_cli.errors import TrimtokError
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.whole_files import Lines, Printed, beside, discard


class LineFile:
    """Open from the model's loading to the last answer. `begin` writes the manifest of a run that
    is not over.

    A new destination holds its files from the start. What is overwritten stays whole until the
    first answer is there; then the answers take the place of the old ones, and what lay beside
    those and told of them goes: a killed run leaves no two that do not belong together.
    """

    def __init__(self, destination: Destination, begin: Callable[[], None] = lambda: None) -> None:
        self.destination, self.begin, self.count, self.began = destination, begin, 0, False
        self.lines: Lines | None = None
        self.printed = Printed() if destination.answers is None else None
        if destination.answers is not None:
            self.lines = self._told(lambda: Lines(beside(destination.file, "new")))
            if not any(path.exists() for path in [destination.file, *destination.beside]):
                self._told(self._take_place)

    def write(self, line: bytes) -> None:
        """One answer. TrimtokError with what is safe if it cannot be written; BrokenPipeError if
        nobody reads standard output.
        """
        self._told(lambda: self._write(line))
        self.count += 1

    def close(self, failed: bool) -> None:
        """A run that wrote nothing leaves nothing but, if it did not fail, its manifest."""
        if self.lines is None:
            return
        self.lines.close()
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

    def _take_place(self) -> None:
        for path in self.destination.beside:
            path.unlink(missing_ok=True)
        answers = self.destination.file
        beside(answers, "new").replace(answers)
        self.began = True
        self.begin()

    def _told(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise TrimtokError(self._sentence(error)) from error

    def _sentence(self, error: OSError) -> str:
        place, answers = self.destination, f"{self.count} answer{'s' * (self.count != 1)}"
        if isinstance(error, FileNotFoundError):
            return (
                f"{place} was removed while the run went on, with {answers} in it: run again "
                "with an --out that stays."
            )
        safe = (
            f"the first {answers} are safe in it"
            if self.count and place.answers
            else f"{answers} were written before"
        )
        return (
            f"{place} cannot be written ({error.strerror or error}): {safe}; make room, and "
            "run again with another --out for "
            "the rest."
        )


def finish(path: Path, write: Callable[[], None], failed: bool) -> None:
    """Writes a file at the end of a run. TrimtokError if that fails, unless the run had `failed`:
    then its own error is told.
    """
    try:
        write()
    except BrokenPipeError:
        if not failed:
            raise
    except OSError as error:
        if not failed:
            said = (
                f"{path} cannot be written ({error.strerror or error}): the answers "
                "themselves are safe"
            )
            raise TrimtokError(f"{said}; run again with --overwrite to have it.") from error
