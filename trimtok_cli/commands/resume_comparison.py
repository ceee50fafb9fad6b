"""Going on with an earlier comparison: whether this one may, and what is left to answer.

Loads no model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from trimtok_cli.commands.resume import (
    identity_of,
    refuse,
    refuse_strangers,
    tell_versions,
)
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison, Sample, Setting
from trimtok_cli.outputs.comparison_journal import ComparisonJournal, has_failed
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.earlier import to_go_on_with
from trimtok_cli.outputs.fingerprint import differences, differences_loaded
from trimtok_cli.outputs.manifest import ComparisonSummary
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.source import Source


@dataclass
class BegunComparison:
    """Where a comparison stands before its model is loaded.

    samples: those that are to be answered; number: how many, None if that is not known. earlier:
    the run.json that is gone on with, empty for a new run. root: the folder in which the names of
    pictures start.
    """

    samples: Iterator[Sample]
    number: int | None
    journal: ComparisonJournal
    identity: Mapping[str, str]
    earlier: Mapping[str, Any]
    root: str
    nothing_left: bool = False

    @property
    def end(self) -> int | None:
        """The byte at which the answers go on; None for a new run."""
        return self.journal.end if self.earlier else None

    @property
    def settings(self) -> list[Setting]:
        """The settings of the earlier run."""
        return [
            Setting(**{each.name: one[each.name] for each in fields(Setting)})
            for one in self.earlier["settings"]
        ]

    def check_loaded(self, model: Mapping[str, str]) -> None:
        """Raises UsageError if another model was loaded than the run began with."""
        if self.earlier:
            refuse(differences_loaded(self.earlier, model), self.journal.path)

    def count_into(self, summary: ComparisonSummary) -> None:
        """Counts what is answered already; failed samples are tried again."""
        if not self.earlier:
            return
        summary.started = self.earlier["started"]
        for comparison in self.journal.comparisons():
            if not has_failed(comparison):
                summary.add_earlier(comparison)

    def all(self, answered: list[Comparison]) -> list[Comparison]:
        """Every comparison of the run; `answered` are those of this process."""
        return list(self.journal.comparisons()) if self.earlier else answered


def begin_comparison(
    destination: Destination,
    config: RunConfig,
    source: Source,
    existing: str,
    screen: Screen,
    again: Callable[[], Source],
) -> BegunComparison:
    """What is to be answered. again: reads the source anew.

    Raises UsageError if the answers that are there are of another run than this one.
    """
    identity = identity_of(config)
    earlier = to_go_on_with(destination.answers, destination.manifest, existing)
    root = "" if source.root is None else str(source.root.absolute())
    path = destination.answers or Path()
    journal = ComparisonJournal(path, Path(root) if root else None, new=not earlier)
    if not earlier:
        samples = journal.pending(keyed(source.samples))
        return BegunComparison(samples, source.total, journal, identity, earlier, root)
    refuse(differences(earlier, config, identity), path)
    journal.read(earlier["run"], lambda line: None)
    if source.total is not None:
        listed = source.samples if isinstance(source.samples, list) else again().samples
        refuse_strangers(journal, journal.strangers(keyed(listed)))
    tell_versions(earlier, screen)
    done = len(journal.starts) - len(journal.failed)
    pending = journal.pending(keyed(source.samples))
    first = next(pending, None)
    if first is not None:
        screen.say(f"going on with {destination}: {done} answered already", "dim")
    number = None if source.total is None else source.total - done
    begun = BegunComparison(
        chain([] if first is None else [first], pending),
        number,
        journal,
        identity,
        earlier,
        root,
        nothing_left=first is None,
    )
    return begun
