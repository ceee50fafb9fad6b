"""The samples that every reader returns, in input order, and how many. Knows no format."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from trimtok_cli.data import Sample


@dataclass(frozen=True)
class Source:
    """The samples of a run, to be walked once.

    total: how many, None where that is not known beforehand (stdin); files: what the samples come
    from, as far as it is known beforehand, 0 for standard input, so that no output overwrites one;
    notes: sentences for the user, such as how many files were passed over.
    """

    samples: Iterable[Sample]
    total: int | None
    files: tuple[Path | int, ...] = ()
    notes: tuple[str, ...] = ()

    def first(self, limit: int | None) -> "Source":
        """The source, cut after `limit` samples; None cuts nothing."""
        if limit is None:
            return self
        total = None if self.total is None else min(limit, self.total)
        return replace(self, samples=islice(self.samples, limit), total=total)
