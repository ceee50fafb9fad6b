"""Where a run writes: a new folder in trimtok-out, a folder, a .jsonl file with run.json beside it, or standard output."""

import time
from dataclasses import dataclass
from pathlib import Path

from trimtok_cli.errors import TrimtokError, UsageError


@dataclass(frozen=True)
class Destination:
    """answers is None for standard output, which has no manifest and no page."""

    answers: Path | None
    manifest: Path | None

    @property
    def folder(self) -> Path | None:
        return self.answers.parent if self.answers else None

    def __str__(self) -> str:
        return str(self.answers) if self.answers else "standard output"


def open_destination(out: str | None, command: str, *, name: str = "answers.jsonl", overwrite: bool = False) -> Destination:
    """Makes the folder. UsageError if answers are already there and `overwrite` is not set."""
    if out == "-":
        return Destination(None, None)
    if out is None:
        answers = _new_folder(Path("trimtok-out"), f"{command}-{time.strftime('%Y%m%d-%H%M%S')}") / name
    elif Path(out).suffix.lower() in (".jsonl", ".json"):
        answers = Path(out)
    else:
        answers = Path(out) / name
    manifest = answers.with_name("run.json" if answers.name == name else f"{answers.stem}.run.json")
    if answers.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file in it.")
    if answers.exists() and not overwrite:
        raise UsageError(f"--out: {answers} is already there; add --overwrite to replace it, or choose another --out.")
    try:
        answers.parent.mkdir(parents=True, exist_ok=True)
        answers.touch()
    except OSError as error:
        raise TrimtokError(f"--out: {answers} cannot be written ({error.strerror}); choose another --out.") from None
    return Destination(answers, manifest)


def _new_folder(parent: Path, name: str) -> Path:
    """Two runs in one second must not share a folder."""
    for number in range(1, 1000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise TrimtokError(f"{folder} cannot be made ({error.strerror}); choose a place with --out.") from None
    raise TrimtokError(f"{parent} is full of folders named {name}; choose another --out.")
