"""The samples that every reader returns, in input order, and how many. Knows no format."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from trimtok_cli.blobs import Stored
from trimtok_cli.data import Sample
from trimtok_cli.errors import TrimtokError


@dataclass(frozen=True)
class Source:
    """The samples of a run, to be walked once.

    total: how many, None where that is not known beforehand (stdin); files: what the samples come
    from, as far as it is known beforehand, 0 for standard input, so that no output overwrites one;
    notes: sentences for the user, such as how many files were passed over; quiet_notes: those for a
    user who asks for more; root: the folder in which the names of pictures start, None if they lie
    in no one folder.
    """

    samples: Iterable[Sample]
    total: int | None
    files: tuple[Path | int | Stored, ...] = ()
    notes: tuple[str, ...] = ()
    quiet_notes: tuple[str, ...] = ()
    root: Path | None = None

    def first(self, limit: int | None) -> "Source":
        """The source, cut after `limit` samples; None cuts nothing."""
        if limit is None:
            return self
        total = None if self.total is None else min(limit, self.total)
        return replace(self, samples=islice(self.samples, limit), total=total)


def late(samples: Iterable[Sample], name: str) -> Iterator[Sample]:
    """The samples, read during the run. An error of the file becomes one more, failed sample."""
    try:
        yield from samples
    except (TrimtokError, OSError) as error:
        problem = f"{name} cannot be read to its end ({error})"
        yield Sample(id=name, question="", problem=problem)
