"""Where a run writes: a new folder in trimtok-out, a folder, a .jsonl file with run.json beside it, or standard output."""

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.writers.answers import JsonLines


@dataclass(frozen=True)
class Destination:
    """answers is None for standard output, which has no manifest and no page."""

    answers: Path | None
    manifest: Path | None

    def __str__(self) -> str:
        return str(self.answers) if self.answers else "standard output"


def find_destination(out: str | None, command: str, *, name: str = "answers.jsonl", overwrite: bool = False) -> Destination:
    """Decides, and makes nothing yet. UsageError if answers are already there and `overwrite` is not set."""
    if out == "-":
        return Destination(None, None)
    if out is None:
        answers = _free_folder(Path("trimtok-out"), f"{command}-{time.strftime('%Y%m%d-%H%M%S')}") / name
    elif Path(out).suffix.lower() in (".jsonl", ".json"):
        answers = Path(out)
    else:
        answers = Path(out) / name
    if answers.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it.")
    if answers.exists() and not overwrite:
        raise UsageError(f"--out: {answers} is already there; add --overwrite to replace it, or choose another --out.")
    return Destination(answers, answers.with_name("run.json" if answers.name == name else f"{answers.stem}.run.json"))


def open_answers(destination: Destination, *, overwrite: bool) -> JsonLines:
    """The file to write to, with its folder. TrimtokError if the disk will not have it, or if another run was faster."""
    try:
        if destination.answers:
            destination.answers.parent.mkdir(parents=True, exist_ok=True)
        return JsonLines(destination.answers, replace=overwrite)
    except OSError as error:
        raise TrimtokError(f"--out: {destination} cannot be written ({error.strerror}); choose another --out.") from None


def _free_folder(parent: Path, name: str) -> Path:
    """Two runs in one second must not share a folder."""
    return next(folder for i in count(1) if not (folder := parent / (name if i == 1 else f"{name}-{i}")).exists())
