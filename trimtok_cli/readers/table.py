"""A Table: the rows of a file that are not JSON lines, whatever its format; and its samples.

The file is read to its first sound row before anything is loaded, and again as samples are asked
for. Knows no format.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.readers.rows import Rows, Rules
from trimtok_cli.readers.source import Source, late

# Broken rows at the beginning of a file after which the file is refused.
FILE_ROWS = 10_000


@dataclass(frozen=True)
class Table:
    """The rows of a file, each with its place in it (`line 4`).

    what: the format in words. rows: walks the rows, from the beginning each time; a row that cannot
    be read is a Problem. total: how many there are. packed: the pictures lie in the file itself.
    """

    what: str
    rows: Callable[[], Iterator[tuple[str, Any]]]
    total: int
    packed: bool = False

    def source(self, path: Path, name: str, rules: Rules) -> Source:
        """The samples. UsageError where no row can be answered; `name` is the file's in messages.

        A file that changes while it is read ends in one more, failed row.
        """
        first = None
        for sample in islice(self._samples(Rows(rules, name)), FILE_ROWS):
            first = first or sample
            if not sample.problem:
                break
        else:
            if first is None:
                raise UsageError(f"{name} is {self.what} without rows; there is nothing to ask")
            raise UsageError(
                f"no row of {name}, which is {self.what}, can be answered; the first: "
                f"{first.problem}"
            )
        samples = late(self._unchanged(path, name, Rows(rules, name)), name)
        note = f"{name} is read as {self.what}"
        root = None if self.packed else rules.root
        return Source(samples, self.total, (path,), quiet_notes=(note,), root=root)

    def _samples(self, rows: Rows) -> Iterator[Sample]:
        for number, (place, row) in enumerate(self.rows()):
            yield rows.sample(row, number, place)

    def _unchanged(self, path: Path, name: str, rows: Rows) -> Iterator[Sample]:
        before = _state(path)
        number = 0
        for sample in self._samples(rows):
            yield sample
            number += 1
        if number != self.total or _state(path) != before:
            raise UsageError(
                f"it was changed while it was read: it had {self.total} rows, and {number} were "
                "read; run it again"
            )


def _state(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
