"""Finished runs read back and joined: the comparisons that their files hold.

A run is a folder or a .jsonl file, of `compare` or of `caption` and `vqa`. Several are joined by
what was asked, never by their lines; a sample counts that every run has. Loads no model.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtok_cli.data import Comparison, FrameRule, Result, Setting
from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.earlier import read_manifest
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.recorded import References, answer_of, asked, comparison_of

NAMES = ("compare.jsonl", "answers.jsonl")


@dataclass
class FinishedRun:
    """The answers of one run, by what was asked.

    document: its run.json, empty if there is none. settings: each once, in their order. notes:
    sentences for the user.
    """

    path: Path
    document: dict[str, Any]
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        config = self.document.get("config")
        return str(config.get("model", "")) if isinstance(config, dict) else ""

    @property
    def settings(self) -> list[Setting]:
        found = {r.setting.name: r.setting for c in self.comparisons.values() for r in c.results}
        return list(found.values())

    @property
    def frame_rule(self) -> FrameRule:
        """Which frames of a video the run took; the default where run.json does not say it."""
        config = self.document.get("config")
        names = ("frames", "fps", "start", "end")
        if not isinstance(config, dict) or any(name not in config for name in names):
            return FrameRule()
        return FrameRule(
            frames=config["frames"],
            fps=config["fps"] or None,
            start=config["start"],
            end=config["end"] or None,
        )


def read_run(path: Path, root: Path | None, references: References) -> FinishedRun:
    """The run in a folder or a file; `root` stands for the folder in which names start.

    references: gives the reference answers among a row's columns. Raises UsageError for what is no
    run, OSError for what cannot be read.
    """
    file = _file(path)
    own = "" if file.name in NAMES else f"{file.stem}."
    document = read_manifest(file.with_name(f"{own}run.json"))
    known = document.get("root")
    root = root or (Path(known) if isinstance(known, str) and known else None)
    run = FinishedRun(file, document)
    number = 0
    try:
        for number, row in enumerate(_rows(file, run), start=1):  # noqa: B007 for the error
            if "runs" in row:
                run.comparisons.setdefault(asked(row), comparison_of(row, root))
            else:
                key, result = answer_of(row, root, references)
                run.comparisons[key] = Comparison(result.sample, (result,))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{file}: record {number} cannot be shown by this version of trimtok "
            f"({type(error).__name__}: {error}); name runs of `trimtok compare`, `caption` or "
            "`vqa`."
        ) from error
    if not run.comparisons:
        raise UsageError(f"{file} holds no answers; name the folder of a finished run.")
    if document.get("interrupted"):
        run.notes.append(f"{file} is of a run that is not over")
    return run


def joined(runs: Sequence[FinishedRun]) -> tuple[list[Comparison], list[str]]:
    """The samples that every run has, answered in every setting, dense first; and notes.

    Raises UsageError if no run is dense, the runs are of several models, or they share no sample.
    """
    models = {run.model for run in runs if run.model}
    if len(models) > 1:
        raise UsageError(
            f"these runs are of several models ({', '.join(sorted(models))}); name those of one."
        )
    notes = [note for run in runs for note in run.notes]
    places: dict[str, tuple[FinishedRun, Setting]] = {}
    for run in runs:
        for setting in run.settings:
            if setting.name not in places:
                places[setting.name] = (run, setting)
            elif places[setting.name][0] is not run:
                notes.append(
                    f"{setting.name} is in {places[setting.name][0].path} and in {run.path}; "
                    "the first is shown"
                )
    dense = Setting().name
    if dense not in places:
        raise UsageError(
            "none of these runs is dense, and dense is what the others are compared with: name a "
            "run with `--method dense` of the same samples, too."
        )
    order = [dense, *(name for name in places if name != dense)]
    common = [key for key in runs[0].comparisons if all(key in run.comparisons for run in runs)]
    if not common:
        raise UsageError("these runs share no sample: they were asked other things.")
    missed = len({key for run in runs for key in run.comparisons}) - len(common)
    if missed:
        notes.append(f"{missed} samples are not in every run and are left out")
    return [_joined(key, runs, order, places) for key in common], notes


def _joined(
    key: str,
    runs: Sequence[FinishedRun],
    order: Sequence[str],
    places: dict[str, tuple[FinishedRun, Setting]],
) -> Comparison:
    """One sample. The boxes are those of a run that recorded them."""
    each = [run.comparisons[key] for run in runs]
    first = next((comparison for comparison in each if comparison.boxes), each[0])
    sample = next((c.sample for c in each if c.sample.answers), first.sample)
    sample = replace(sample, images=first.sample.images, video=first.sample.video)
    results = []
    for name in order:
        run, setting = places[name]
        here = run.comparisons[key].results
        found = next((result for result in here if result.setting.name == name), None)
        missing = Result(sample, first.results[0].question, setting=setting, error="no answer")
        results.append(replace(found or missing, sample=sample))
    return replace(first, sample=sample, results=tuple(results))


def _file(path: Path) -> Path:
    """The file of a run. Raises UsageError if there is none."""
    if path.is_dir():
        for name in NAMES:
            if (path / name).is_file():
                return path / name
    elif path.is_file():
        return path
    raise UsageError(
        f"{path} is no run: name a folder that holds {' or '.join(NAMES)}, or such a file."
    )


def _rows(file: Path, run: FinishedRun) -> Iterator[dict[str, Any]]:
    """The records of a file; a torn last line of a comparison is left out, with a note."""
    with file.open("rb") as lines:
        first = lines.readline()
    if b'"runs": [' not in first:
        with closing(Answers(file, run.document)) as answers:
            yield from map(dict, answers.records())
        return
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                run.notes.append(f"the last line of {file} is torn and left out")
                return
            yield json.loads(line)
