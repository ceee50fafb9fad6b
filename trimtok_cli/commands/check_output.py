"""What `check` says of --out: whether a run could write there, and what --existing would do.

The place is claimed for a moment as a run claims it, and left as it was.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.resume import identity_of, refuse, refuse_strangers
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.destination import Destination, Files, claimed
from trimtok_cli.outputs.earlier import to_go_on_with
from trimtok_cli.outputs.fingerprint import differences, other_shard
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.mirror import Mirror
from trimtok_cli.stores import is_stored

BEGIN, RESUME, OVERWRITE, REFUSE = ("begin", "resume", "overwrite", "refuse")


class Output:
    """What a run with these options would do at its destination.

    would: begin, resume, overwrite or refuse. problem: the sentence that it would be refused with.
    done, failed, new: of the samples that `note` was told of, by the answers that are there.
    """

    def __init__(self, out: str | None, options: AnswerOptions) -> None:
        self.out, self.options = out, options
        self.answers, self.would, self.problem = "", BEGIN, ""
        self.exit_code = self.done = self.failed = self.new = 0
        self.journal: Journal | None = None
        self.unmet: set[bytes] = set()  # keys of answers to samples that `note` was not told of

    def look(self, destination: Destination, config: RunConfig) -> None:
        """Notes what is there. Raises UsageError for answers that the run cannot go on with."""
        self.answers = str(destination)
        if destination.answers is None:
            return
        earlier = to_go_on_with(destination.answers, destination.manifest, self.options.if_there)
        if not earlier:
            if self.options.only_failed:
                raise UsageError(
                    f"--only-failed: {destination} holds no answers of an earlier run."
                )
            self.would = OVERWRITE if destination.holds else BEGIN
            return
        changed = differences(earlier, config, identity_of(config))
        shard = str(self.options.part or "")
        refuse(changed + other_shard(earlier, shard), destination.answers)
        journal = Journal(destination.answers)
        journal.read(earlier["run"], lambda line: None)
        self.journal, self.would = journal, RESUME
        self.unmet = journal.strangers([])

    def note(self, sample: Sample) -> None:
        """Counts a sample of the source; it has its key."""
        key = bytes.fromhex(sample.key)
        if self.journal is None or key not in self.journal.starts:
            self.new += 1
        elif key in self.journal.failed:
            self.failed += 1
        else:
            self.done += 1
            self.unmet.discard(key)

    def met_all(self) -> None:
        """Notes that `note` was told of every sample, and the source has no others."""
        try:
            if self.journal is not None:
                refuse_strangers(self.journal, self.unmet)
        except TrimtokError as error:
            self.refused(error)

    def refused(self, error: TrimtokError) -> None:
        self.would, self.problem, self.exit_code = REFUSE, str(error), error.exit_code

    @property
    def to_answer(self) -> int:
        """How many of the samples the run would answer, or try again."""
        if self.options.only_failed:
            return self.failed
        return self.new + (0 if self.options.keep_failed else self.failed)

    def found(self) -> dict[str, Any] | None:
        """For JSON; None where no --out was given, as a run makes a new folder then."""
        if self.out is None:
            return None
        names = ("answers", "would", "problem", "done", "failed", "new", "to_answer")
        return {name: getattr(self, name) for name in names}


def output_of(
    command: str, config: RunConfig, options: AnswerOptions, reads: Iterable[Path | str | int]
) -> Output:
    """What is at --out. A run that would be refused is a finding and ends nothing."""
    place = options.place
    output = Output(place, options)
    if place is None:
        return output
    try:
        if is_stored(place):  # what was sent from elsewhere is fetched by the run
            place = Mirror(place, warn=print).out
        with claimed(
            place, command, reads, Files(errors=True), existing=options.if_there
        ) as destination:
            output.look(destination, config)
    except TrimtokError as error:
        output.refused(error)
    return output
