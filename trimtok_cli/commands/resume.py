"""Going on with an earlier run: whether this run may, what is answered, and what is left.

Loads no model: a run that is complete says so at once.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from trimtok_cli import __version__, stores
from trimtok_cli.bounds import field_of, flag
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Sample, Setting
from trimtok_cli.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from trimtok_cli.models.catalog import locate
from trimtok_cli.models.identity import identity
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.earlier import to_go_on_with
from trimtok_cli.outputs.errors_file import write_errors
from trimtok_cli.outputs.fingerprint import (
    differences,
    differences_loaded,
    digest,
    other_draws,
    other_shard,
    other_versions,
)
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.line_file import finish
from trimtok_cli.outputs.manifest import Manifest, RunSummary, versions, write_document
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.shards import part_of
from trimtok_cli.readers.source import Source
from trimtok_cli.wording import shortened


@dataclass(frozen=True)
class Begun:
    """Where a run stands before its model is loaded.

    samples: those that are to be answered. number: how many, None if that is not known. earlier:
    the run.json that the run goes on with, empty for a new run. summary: the counts of the answers
    that are there. root: the folder in which the names of pictures start, empty if they lie in no
    one folder. formats: the names of files that the run, or an earlier part of it, makes of the
    answers. run: the name that a new run has; empty is any. facts: others for run.json, which may
    change until the end. following: what happens between two results, besides.
    """

    samples: Iterator[Sample]
    number: int | None
    journal: Journal
    identity: Mapping[str, str]
    earlier: Mapping[str, Any]
    summary: RunSummary | None = None
    root: str = ""
    formats: tuple[str, ...] = ()
    run: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    following: Callable[[Generator[Result]], Generator[Result]] = lambda results: results

    @property
    def end(self) -> int | None:
        """The byte at which the answers go on; None for a new run."""
        return self.journal.end if self.earlier else None

    def check_loaded(self, model: Mapping[str, str]) -> None:
        """Raises UsageError if another model was loaded than the run began with."""
        if self.earlier:
            refuse(differences_loaded(self.earlier, model), self.journal.path)


def begin(
    command: str,
    destination: Destination,
    config: RunConfig,
    source: Source,
    options: AnswerOptions,
    screen: Screen,
    again: Callable[[], Source],
) -> Begun | int:
    """What is to be answered, or the exit code of a run that has nothing left to do.

    again: reads the source anew. Raises UsageError if the answers that are there are of another
    run than this one.
    """
    identity, part = identity_of(config), options.part
    earlier = to_go_on_with(destination.answers, destination.manifest, options.if_there)
    journal = Journal(destination.answers or Path(), new=not earlier)
    samples = iter(part_of(keyed(source.samples), part))
    root = "" if source.root is None else str(source.root.absolute())
    total = source.total if part is None or source.total is None else part.size(source.total)
    facts = {} if part is None else {"shard": part.facts}
    if not earlier:
        if options.only_failed:
            raise UsageError(f"--only-failed: {destination} holds no answers of an earlier run.")
        names = tuple(path.name for path in destination.formats)
        begun = Begun(samples, total, journal, identity, earlier, root=root, formats=names)
        out = options.out or ""
        folder = stores.checked(out) if stores.is_stored(out) else os.path.abspath(out)
        name = "" if part is None else digest(config, identity, command, part.count, folder)
        return replace(begun, run=name, facts=facts)
    changed = differences(earlier, config, identity) + other_draws(earlier, config.engine)
    refuse(changed + other_shard(earlier, str(part or "")), journal.path)
    earlier |= {"root": root, "formats": _formats(destination, earlier), **facts}
    summary = _summary(earlier)
    journal.read(earlier["run"], summary.add_lines)
    if source.total is not None:
        listed = source.samples if isinstance(source.samples, list) else again().samples
        asked = part_of(keyed(listed), options.part)
        refuse_strangers(journal, journal.strangers(asked))
    tell_versions(earlier, screen)
    retried = 0 if options.keep_failed else len(journal.failed)
    number = None
    if options.only_failed:
        number = retried
    elif total is not None:
        number = total - len(journal.starts) + retried
    pending = journal.pending(
        samples, keep_failed=options.keep_failed, only_failed=options.only_failed
    )
    first = next(pending, None)
    if first is None:
        return _nothing_left(destination, journal, earlier, summary, screen)
    count = len(journal.starts) - len(journal.failed)
    failed = f"; trying again the {retried} that failed" if retried else ""
    screen.say(f"going on with {destination}: {count} answered already{failed}", "dim")
    samples, formats = chain([first], pending), tuple(earlier["formats"])
    begun = Begun(samples, number, journal, identity, earlier, summary, root, formats)
    return replace(begun, facts=facts)


def close(destination: Destination, journal: Journal, manifest: Manifest, *, over: bool) -> None:
    """Ends the files beside the answers; over: all samples were met, so the answers are settled."""
    if over:
        journal.forget_unmet()
    manifest.summary.count_failed(len(journal.failed))
    write_errors(destination.errors, journal)
    if over:
        journal.settle()
    manifest.write()  # the last, as a run whose run.json says that it is over is left alone


def identity_of(config: RunConfig) -> dict[str, str]:
    """A hash of the files of each model that is a local folder, by the option that names it."""
    found = {}
    for name in ("model", "clip_text"):
        option = flag(field_of(RunConfig, name))
        value = getattr(config, name)
        place = locate(value, option) if value else ""
        found[option] = identity(place) if isinstance(place, Path) else ""
    return found


def _formats(destination: Destination, earlier: Mapping[str, Any]) -> list[str]:
    """The files that the run makes of its answers. UsageError if one is there of somebody else."""
    before = list(earlier.get("formats", ()))
    for path in destination.formats:
        if path.name not in before and path.exists():
            raise UsageError(
                f"--format: {path} is already there and was not made by this run; move it away, or "
                "use `trimtok export -o` with another place."
            )
    return list(dict.fromkeys((*before, *(path.name for path in destination.formats))))


def _summary(earlier: Mapping[str, Any]) -> RunSummary:
    """An empty summary of the earlier run, from its run.json."""
    setting = earlier["settings"][0]
    summary = RunSummary(Setting(**{each.name: setting[each.name] for each in fields(Setting)}))
    summary.started = earlier["started"]
    summary.peak_bytes = earlier["peak_bytes"]
    return summary


def refuse(differences: list[str], answers: Path) -> None:
    """Raises UsageError if there is any difference between the earlier run and this one."""
    if differences:
        raise UsageError(
            f"--out: {answers} was begun with other settings: {'; '.join(differences)}. Give the "
            "same again to go on, choose another --out, or begin anew with --existing overwrite."
        )


def refuse_strangers(journal: Journal, strangers: set[bytes]) -> None:
    """Raises UsageError if there are answers to none of the samples of the source.

    strangers: their keys.
    """
    if not strangers:
        return
    record = journal.record(min(strangers, key=lambda key: journal.starts[key]))
    name = shortened(str(record["image"] or record["question_id"]))
    number = "an answer" if len(strangers) == 1 else f"{len(strangers)} answers"
    raise UsageError(
        f"--out: {journal.path} holds {number} to what is not asked now, the first of "
        f"{name}: choose another --out; or begin anew with --existing overwrite, or remove those "
        "lines, to have the answers to these inputs alone."
    )


def tell_versions(earlier: Mapping[str, Any], screen: Screen) -> None:
    """Says which versions are not those that the run began with."""
    now = {"trimtok": __version__} | versions()
    then = {"versions": {"trimtok": earlier["trimtok"], **earlier["versions"]}}
    if changed := list(other_versions(then, now)):
        screen.say(f"note: since the run began, {', '.join(changed)}", "yellow")


def _nothing_left(
    destination: Destination,
    journal: Journal,
    earlier: Mapping[str, Any],
    summary: RunSummary,
    screen: Screen,
) -> int:
    """Ends the files of a run whose process was ended after its last answer; the exit code."""
    if not journal.left:
        end = partial(_finish, destination, journal, earlier, summary)
        finish(destination.file, end, failed=False)
    failed = len(journal.failed)
    said = f", {failed} of them failed" if failed else ""
    screen.say(f"nothing to do: {len(journal.starts)} {screen.noun} are in {destination}{said}")
    return EXIT_SOME_FAILED if failed else EXIT_OK


def _finish(
    destination: Destination, journal: Journal, earlier: Mapping[str, Any], summary: RunSummary
) -> None:
    journal.cut()
    journal.forget_unmet()
    summary.count_failed(len(journal.failed))
    write_errors(destination.errors, journal)
    journal.settle()
    write_document(destination, {**earlier, "interrupted": False, **summary.counts()})
