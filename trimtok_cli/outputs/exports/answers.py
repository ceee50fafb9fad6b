"""The answers of a run as its files hold them: what every other format is made from.

Lines are read as a run that goes on reads them: a torn last one is dropped, and of several lines of
one sample the one that counts is taken. A run may be writing the file meanwhile: it only appends to
it, or puts another in its place, and what was read at first stays what is read. Loads no model and
knows no format.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.journal import Journal

Record = Mapping[str, Any]


class Answers:
    """The answers of one run, to be walked any number of times until they are closed.

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
        self._file = path.open("rb")
        try:
            run = str(manifest.get("run") or _first_run(self._file))
            finished.read_from(self._file, run, lambda lines: None)
        except BaseException:
            self.close()
            raise
        self._starts = sorted(finished.starts.values())
        self.total, self.failed = len(finished.starts), len(finished.failed)

    def close(self) -> None:
        self._file.close()

    @property
    def over(self) -> bool:
        """Whether the run came to its end, as far as is known."""
        return not self.manifest.get("interrupted")

    def records(self) -> Iterator[Record]:
        """The records in the order of the file, which is the input's."""
        for start in self._starts:
            self._file.seek(start)
            yield json.loads(self._file.readline())


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


def _first_run(file: BinaryIO) -> str:
    """The run that the first record names; empty if it is no record."""
    try:
        return str(json.loads(file.readline())["metadata"]["run"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    finally:
        file.seek(0)
