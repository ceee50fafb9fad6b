"""The answers of a run as its files hold them: what every other format is made from.

Lines are read as a run that goes on reads them: a torn last one is dropped, and of several lines of
one sample the one that counts is taken. Loads no model and knows no format.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.journal import Journal

Record = Mapping[str, Any]


class Answers:
    """The answers of one run, to be walked any number of times.

    manifest: its run.json, empty if it is not there. total, failed: how many answers there are, and
    how many of them failed. root: the folder in which the names of pictures start, None if there is
    no such folder. opened: it is the one under which the run itself opened them. Raises UsageError
    if the file holds no answers of one run, OSError if it cannot be read.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], root: Path | None = None) -> None:
        self.path, self.manifest = path, manifest
        known = manifest.get("root")
        self.root = root or (Path(known) if isinstance(known, str) and known else None)
        self.opened = root is None
        finished = _Finished(path)
        finished.read(str(manifest.get("run") or _first_run(path)), lambda line: None)
        self._starts = sorted(finished.starts.values())
        self.total, self.failed = len(finished.starts), len(finished.failed)

    @property
    def over(self) -> bool:
        """Whether the run came to its end, as far as is known."""
        return not self.manifest.get("interrupted")

    def records(self) -> Iterator[Record]:
        """The records in the order of the file, which is the input's."""
        with self.path.open("rb") as file:
            for start in self._starts:
                file.seek(start)
                yield json.loads(file.readline())


class _Finished(Journal):
    """The journal of a run that nobody goes on with here."""

    def _torn(self, number: int) -> UsageError:
        return UsageError(
            f"line {number} of {self.path} is torn, and lines follow it, so the file was damaged "
            "after it was written: remove that line."
        )

    def _foreign(self, number: int) -> UsageError:
        return UsageError(
            f"line {number} of {self.path} is no answer of the run that the others are of: name "
            "the answers of one run of `trimtok caption` or `trimtok vqa`."
        )


def _first_run(path: Path) -> str:
    """The run that the first record names; empty if it is no record."""
    with path.open("rb") as file:
        try:
            return str(json.loads(file.readline())["metadata"]["run"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
