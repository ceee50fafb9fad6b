"""The shards of one run, put together: which there are, whether they belong together, their lines.

Every shard holds one line for each of its samples, in their order; a whole run's lines are theirs
in turn. Knows no setting by name and no source.
"""

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from trimtok_cli.config import RunConfig
from trimtok_cli.data import Setting
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.destination import Destination
from trimtok_cli.outputs.earlier import document
from trimtok_cli.outputs.errors_file import write_errors
from trimtok_cli.outputs.fingerprint import differences, differences_loaded, other_draws
from trimtok_cli.outputs.journal import Journal
from trimtok_cli.outputs.manifest import RunSummary, write_document
from trimtok_cli.outputs.whole_files import discard, put, writing
from trimtok_cli.wording import brief, shortened

ANSWERS = "answers.jsonl"

# What merging takes from a run.json beside what any run has that can be gone on with.
_NEEDED = ("command", "started", "throughput", "peak_bytes")

_LISTED = 12  # numbers of shards that a sentence names


@dataclass(frozen=True)
class Part:
    """A finished shard: its folder and its run.json."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def answers(self) -> Path:
        return self.folder / ANSWERS

    @property
    def empty(self) -> bool:
        """Whether there are more shards than inputs: then a run leaves no file of answers."""
        return self.number > int(self.manifest["shard"]["inputs"])

    @property
    def number(self) -> int:
        return int(self.manifest["shard"]["number"])

    @property
    def count(self) -> int:
        return int(self.manifest["shard"]["count"])


def parts_of(paths: Sequence[Path]) -> list[Part]:
    """The shards in these folders, or in the folders within them, by their numbers.

    Raises UsageError if one is no shard or not complete, if any is missing or there twice, or if
    they are not of one run over one source.
    """
    parts = sorted(map(_part, _folders(paths)), key=lambda part: part.number)
    first = parts[0]
    for part in parts[1:]:
        _check_same(first, part)
    numbers = [part.number for part in parts]
    for part, after in pairwise(parts):
        if part.number == after.number:
            raise UsageError(
                f"{part.folder} and {after.folder} are both shard {part.number}/{part.count}: "
                "name one of them."
            )
    missing = sorted({*range(1, first.count + 1)} - {*numbers})
    if missing:
        names = ", ".join(map(str, missing[:_LISTED])) + ", ..." * (len(missing) > _LISTED)
        raise UsageError(
            f"{len(missing)} of {first.count} shards "
            f"{'is' if len(missing) == 1 else 'are'} missing: {names}; run each with --shard "
            f"NUMBER/{first.count}, and name its folder."
        )
    return parts


def merge(parts: Sequence[Part], destination: Destination) -> RunSummary:
    """Writes answers, errors and run.json of the whole run; returns its counts.

    The answers are there whole or not at all. Raises UsageError if a shard's lines are not those
    that its run.json tells of, OSError if the disk fails.
    """
    setting = parts[0].manifest["settings"][0]
    summary = RunSummary(Setting(**{each.name: setting[each.name] for each in fields(Setting)}))
    with writing(destination.file) as file:
        for line in _in_turn(parts):
            put(file, line)
        journal = Journal(Path(file.name))
        _read(journal, parts[0], summary)
        for path in destination.beside:  # of whatever was there before
            discard(path)
    journal.path = destination.file
    summary.count_failed(len(journal.failed))
    write_errors(destination.errors, journal)
    write_document(destination, _manifest(parts, summary))
    return summary


def _read(journal: Journal, first: Part, summary: RunSummary) -> None:
    """Counts the lines. Raises UsageError if they are not those of all inputs, in their order."""
    changed = "a file of answers was changed after its run, which has to be begun anew."
    try:
        journal.read(first.manifest["run"], summary.add_lines)
    except UsageError:
        raise UsageError(
            f"the shards hold lines that are no answers of their run: {changed}"
        ) from None
    shard = first.manifest["shard"]
    keys = hashlib.blake2b(b"".join(journal.starts), digest_size=16).hexdigest()
    if journal.lines != len(journal.starts) or keys != shard["keys"]:
        raise UsageError(
            f"the shards hold {journal.lines} lines for {len(journal.starts)} inputs, which are "
            f"not the {shard['inputs']} that were to be answered in their order: {changed}"
        )


def _folders(paths: Sequence[Path]) -> Iterator[Path]:
    """The folders of shards: those within a folder that has some, else the folder itself."""
    for path in paths:
        yield from sorted(path.glob("shard-*-of-*")) or [path]


def _part(folder: Path) -> Part:
    """The shard in a folder. Raises UsageError if there is none, or one that is not complete."""
    name, manifest = shortened(str(folder)), document(folder / "run.json")
    shard = manifest.get("shard")
    if not manifest:
        raise UsageError(f"{name} holds no run of `trimtok caption` or `trimtok vqa`.")
    if missing := [each for each in _NEEDED if each not in manifest]:
        raise UsageError(f"the run.json in {name} is damaged: it has no {', '.join(missing)}.")
    if not isinstance(shard, dict) or not all(
        isinstance(shard.get(each), int) for each in ("number", "count")
    ):
        raise UsageError(f"{name} is no shard of a run: it was not begun with --shard.")
    if manifest.get("interrupted") is not False or "keys" not in shard:
        raise UsageError(
            f"{name} is not complete: run the same command again with --shard "
            f"{shard['number']}/{shard['count']}, which answers the rest."
        )
    return Part(folder, manifest)


def _check_same(first: Part, part: Part) -> None:
    """Raises UsageError if two shards are not of one run over one source."""
    one, other = first.manifest, part.manifest
    found = [
        f"{name} was {brief(one[name])} and is {brief(other[name])}"
        for name in ("command",)
        if one[name] != other[name]
    ]
    if first.count != part.count:
        found.append(f"there were {first.count} shards and are {part.count}")
    found += differences(one, _config(other), other["identity"])
    found += differences_loaded(one, other["model"])
    found += other_draws(one, other["config"].get("engine", "local"))
    if not found and one["shard"]["keys"] != other["shard"]["keys"]:
        before, now = one["shard"]["inputs"], other["shard"]["inputs"]
        counts = f" ({before} and {now})" if before != now else ""
        found.append(f"the inputs were not the same{counts}, or lay under other paths")
    if not found and one["run"] != other["run"]:
        found.append("they had different --out, or other versions of trimtok began them")
    if found:
        raise UsageError(
            f"{first.folder} and {part.folder} are not shards of one run: {'; '.join(found)}."
        )


def _config(manifest: Mapping[str, Any]) -> RunConfig:
    """The settings of a run.json. Raises UsageError if this version does not know them."""
    known = {each.name for each in fields(RunConfig) if each.init}
    given = {name: value for name, value in manifest["config"].items() if name in known}
    return RunConfig(**given)


def _in_turn(parts: Sequence[Part]) -> Iterator[bytes]:
    """The lines of the whole run: the first of each shard, then the second of each."""
    with ExitStack() as stack:
        files = [stack.enter_context(_opened(part.answers)) for part in parts if not part.empty]
        while True:
            lines = [line for file in files if (line := file.readline())]
            if not lines:
                return
            yield from lines


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        more = "; raise `ulimit -n` above the number of shards" * (error.errno == errno.EMFILE)
        raise UsageError(f"{path} cannot be read ({error.strerror or error}){more}.") from None


def _manifest(parts: Sequence[Part], summary: RunSummary) -> dict[str, Any]:
    """The run.json of the whole run: that of the first shard, with the counts of all."""
    every = [part.manifest for part in parts]
    seconds = sum(each["throughput"]["seconds"] for each in every)
    samples = sum(each["throughput"]["samples"] for each in every)
    tokens = sum(
        each["throughput"]["generated_tokens_per_second"] * each["throughput"]["seconds"]
        for each in every
    )
    return {
        **{name: value for name, value in every[0].items() if name not in ("shard", "replicas")},
        "formats": [],
        "shards": [_told(part, parts[0]) for part in parts],
        "started": min(each["started"] for each in every),
        **summary.counts(),
        "throughput": {
            "seconds": round(seconds, 3),
            "samples": samples,
            "samples_per_second": round(samples / max(seconds, 1e-9), 3),
            "generated_tokens_per_second": round(tokens / max(seconds, 1e-9), 3),
        },
        "peak_bytes": max(each["peak_bytes"] for each in every),
    }


def _told(part: Part, first: Part) -> dict[str, Any]:
    """What run.json of the whole run says of one shard; its versions where they are others."""
    names = ["started", "engine", "model", "replicas", "throughput", "peak_bytes"]
    if part.manifest["versions"] != first.manifest["versions"]:
        names.append("versions")
    own = {name: part.manifest[name] for name in names if name in part.manifest}
    return {"number": part.number, **own}
