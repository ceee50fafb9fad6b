"""The destination of a run: a new folder in trimtok-out, a named folder, a file, or stdout.

The destination is found and tried before a model is loaded: no output is an input, no other run
writes there, and the disk takes it. run.json stands beside the answers. Knows no format.
"""

import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trimtok_cli import interrupts, stores
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.earlier import FAIL, refuse_others
from trimtok_cli.outputs.lock import Busy, Lock
from trimtok_cli.outputs.whole_files import beside, create, discard, put
from trimtok_cli.wording import brief

OWN = Path("trimtok-out")  # holds the folders of runs without --out
TRIED = 64 * 1024  # bytes written to the disk before a model is loaded
# The ending of a file's name. v1.5 and qwen-0.5b are names of folders.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,6}", re.IGNORECASE)


@dataclass(frozen=True)
class Destination:
    """The files of a run. `answers` is None for standard output, which has no file beside it.

    errors: the failed samples once more, by themselves. formats: the answers in other formats.
    sent: the address of the answers, if they are in a store.
    """

    answers: Path | None
    manifest: Path | None = None
    page: Path | None = None
    plots: tuple[Path, ...] = ()
    errors: Path | None = None
    formats: tuple[Path, ...] = ()
    sent: str = ""

    def __str__(self) -> str:
        if self.sent:
            return self.sent
        return str(self.answers) if self.answers else "standard output"

    @property
    def file(self) -> Path:
        """The file of the answers. Raises LookupError for standard output."""
        if self.answers is None:
            raise LookupError("standard output is no file")
        return self.answers

    @property
    def beside(self) -> list[Path]:
        """The other files that the command writes."""
        paths = (self.manifest, self.page, *self.plots, self.errors, *self.formats)
        return [path for path in paths if path]

    @property
    def holds(self) -> bool:
        """Whether an earlier run's answers, or a page or the like of them, are there."""
        there = self.file.exists() and self.file.stat().st_size > 0
        return there or any(path.exists() for path in self.beside if path != self.manifest)

    @property
    def written(self) -> list[Path | int]:
        """Every file that the run writes, for a time or for good; 1 is standard output."""
        if self.answers is None:
            return [1]
        final = [self.answers, *self.beside]
        return [
            *final,
            *(beside(path, each) for path in final for each in ("new", "tmp")),
            self.lock,
        ]

    @property
    def lock(self) -> Path:
        return self.file.with_name(self.file.name + ".lock")


@dataclass(frozen=True)
class Files:
    """The files that a command writes.

    name: that of the answers' file in a folder. run.json stands beside it, with `errors`
    errors.jsonl, with `page` a page; `plots` stand there in place of run.json. endings: those of
    the same answers in other formats.
    """

    name: str = "answers.jsonl"
    errors: bool = False
    page: bool = False
    plots: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()

    def beside(self, answers: Path) -> Destination:
        """All files of a run whose answers are in `answers`."""
        own = "" if answers.name == self.name else f"{answers.stem}."
        return Destination(
            answers,
            None if self.plots else answers.with_name(f"{own}run.json"),
            answers.with_suffix(".html") if self.page else None,
            tuple(answers.with_name(plot) for plot in self.plots),
            answers.with_name(f"{own}errors.jsonl") if self.errors else None,
            tuple(answers.with_name(answers.stem + ending) for ending in self.endings),
        )


@contextmanager
def claimed(
    out: str | None,
    command: str,
    reads: Iterable[str | Path | int] = (),
    files: Files = Files(),
    *,
    existing: str = FAIL,
) -> Iterator[Destination]:
    """Finds the destination that `out` names, and holds it for a run.

    Folders made for the run are removed if it writes nothing. reads: the files that the run reads;
    a number is an open file. existing: what may be done with a file that is there. Raises
    UsageError if `out` names no output, one of `reads` would be written, a file is there that may
    not be touched, or another run writes there. Raises TrimtokError if the disk refuses.
    """
    if out == "-":
        if sys.__stdout__ is None:
            raise UsageError("--out -: standard output is closed; name a file or a folder.")
        refuse_inputs(Destination(None), reads)
        yield Destination(None)
        return
    undo = ExitStack()
    with interrupts.undone(undo.close):
        try:
            answers = _answers(out, command, files.name, undo)
            destination = files.beside(answers)
            refuse_inputs(destination, reads)
            _hold(destination, existing, undo)
        except Busy as error:
            raise UsageError(
                f"--out: {answers} cannot be used: {error}; choose another --out."
            ) from None
        except OSError as error:
            place = brief(out or str(OWN), 120)
            raise TrimtokError(
                f"--out: {place} cannot be written ({error.strerror or error}); choose "
                "another --out."
            ) from None
        yield destination


def _hold(destination: Destination, existing: str, undo: ExitStack) -> None:
    """Makes the folder, takes the lock, and tries the disk with every name that the run writes.

    Formats are made at its end, when `trimtok export` may be making others under the same names.
    """
    answers = destination.file
    # A link may lead to a picture that a row names.
    if answers.suffix.lower() not in (".jsonl", ".json") and answers.is_file():
        raise UsageError(
            f"--out leads to {answers}, which is no file of JSON lines: choose another --out."
        )
    _make_folder(destination.file.parent, undo)
    lock = Lock(destination.lock)
    undo.callback(lock.release)
    lock.take()
    place = destination
    refuse_others(place.file, place.manifest, place.beside, existing)
    for trial in (
        *(beside(path, "tmp") for path in place.beside if path not in place.formats),
        beside(place.file, "new"),
    ):
        undo.callback(discard, trial)
        with create(trial) as file:
            put(file, b"\0" * TRIED)
            os.fsync(file.fileno())
        discard(trial)


def refuse_inputs(destination: Destination, reads: Iterable[str | Path | int]) -> None:
    """Raises UsageError if the run would write a file that it reads, by whatever name or link."""
    there = {found: path for path in destination.written if (found := _identity(path))}
    for read in reads if there else ():
        same = _identity(read)
        if same and (twice := there.get(same)) is not None:
            name = "standard output" if twice == 1 else str(twice)
            said = "standard input" if read == 0 else str(read)
            raise UsageError(
                f"--out: {name} is an input of this run ({said}); choose another --out."
            )


def listed(name: str | Path) -> list[Path]:
    """The file of this name, or the files of the folder of this name; empty if neither exists."""
    try:
        path = Path(name).expanduser()
        return [*path.iterdir()] if path.is_dir() else [path] * path.is_file()
    except (OSError, RuntimeError, ValueError):  # opening it will raise the same error
        return []


def _answers(out: str | None, command: str, name: str, undo: ExitStack) -> Path:
    """The file of the answers. Raises OSError, or UsageError for a name no output can have."""
    if out and stores.is_stored(out):
        raise UsageError(
            f"--out {brief(stores.shown_address(out))}: `trimtok {command}` writes to no store: "
            "name a folder or a file."
        )
    if out is None:
        return _free_folder(f"{command}-{time.strftime('%Y%m%d-%H%M%S')}", undo) / name
    if not out.strip() or "\0" in out:
        raise UsageError(
            "--out must not be empty: name a folder, a .jsonl file, or - for standard output."
        )
    try:
        path = Path(out).expanduser()
    except RuntimeError:
        raise UsageError(
            f"--out {brief(out)}: there is no such user; write the path in full."
        ) from None
    try:
        mode = path.stat().st_mode
    except OSError:  # the file is not there yet, or trying it will show the error
        mode = 0
    folder = stat.S_ISDIR(mode) or out.endswith(("/", os.sep))
    # /dev/stdout may be a regular file.
    odd = not stat.S_ISREG(mode) or out.startswith(("/dev/", "/proc/"))
    if mode and not folder and odd:
        raise UsageError(
            f"--out {brief(out)} is no plain file and no folder: use -o - and redirect "
            "standard output to it."
        )
    if path.suffix.lower() in (".jsonl", ".json") and not out.endswith(("/", os.sep)):
        return _followed(path)
    if not folder and _ENDING.fullmatch(path.suffix):
        raise UsageError(
            f"--out {brief(out)}: {path.suffix} files cannot be written: a name ending in "
            ".jsonl or .json is a file of JSON "
            f"lines, one without an ending is a folder (and {brief(out)}/ a folder of that name)."
        )
    if mode and not folder:
        raise UsageError(
            f"--out {brief(out)} is a file and no folder: add .jsonl to its name, or choose "
            "another --out."
        )
    return _followed(path / name)


def _followed(path: Path) -> Path:
    """The path that a link leads to: that file is replaced, and the others stand beside it."""
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path
    mode = path.stat().st_mode if os.path.exists(path) else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise UsageError(f"--out {path} is a folder: name a file in it.")
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"--out {path} is no plain file: use -o - and redirect standard output to it."
        )
    return path


def _free_folder(name: str, undo: ExitStack) -> Path:
    """Makes a new folder at once: two runs in one second must not share it."""
    number = 1
    while True:
        folder = OWN / (name if number == 1 else f"{name}-{number}")
        _make_folder(folder.parent, undo)
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            undo.callback(_remove, folder)
            return folder


def _make_folder(folder: Path, undo: ExitStack) -> None:
    """Makes a folder and its parents; new folders are removed again if they stay empty."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        undo.callback(_remove, path)
        path.mkdir(exist_ok=True)


def _remove(folder: Path) -> None:
    with suppress(OSError):  # the run has written, so the folder is not empty
        folder.rmdir()


def _identity(file: str | Path | int) -> tuple[int, int] | None:
    """Device and number of a regular file, equal under all its names; None for anything else."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
