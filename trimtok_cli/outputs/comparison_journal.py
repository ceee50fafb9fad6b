"""compare.jsonl as the journal of its run: which samples are answered, and their comparisons.

A sample that nothing answered has failed, and is tried again. One that some settings answered is
done: a method that cannot run on a model would fail again each time.
"""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from trimtok_cli.data import Comparison
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.read_back import Lines, NoRecord
from trimtok_cli.outputs.recorded import comparison_of


def has_failed(comparison: Comparison) -> bool:
    return all(result.error for result in comparison.results)


class ComparisonJournal(Journal):
    """The lines of a compare.jsonl, by the keys of their samples.

    root: the folder in which the names of pictures start.
    """

    def __init__(self, path: Path, root: Path | None = None, *, new: bool = False) -> None:
        super().__init__(path, new=new)
        self.root = root

    def read_lines(self, block: bytes) -> Lines:
        rows = []
        for place, text in enumerate(BytesIO(block)):
            try:
                row = json.loads(text) if text.endswith(b"\n") else None
            except (ValueError, RecursionError):
                row = None
            if row is None:
                break
            try:
                comparison = comparison_of(row, self.root)
                key = bytes.fromhex(comparison.sample.key)
                run = str(row["runs"][0]["metadata"]["run"])
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise NoRecord(f"it is no comparison ({error})", place) from error
            if not key:
                raise NoRecord("it has no key", place)
            rows.append((len(text), key, run, has_failed(comparison)))
        return Lines(*zip(*rows, strict=True)) if rows else Lines()

    def note(self, comparison: Comparison, start: int) -> None:
        """Notes the line of a comparison, which was appended at byte `start`."""
        self._add(bytes.fromhex(comparison.sample.key), start, has_failed(comparison))

    def comparisons(self) -> Iterator[Comparison]:
        """Every sample's comparison, in the order of `pending` as far as it met them."""
        for key in list(self.in_order()):
            yield comparison_of(self.record(key), self.root)
