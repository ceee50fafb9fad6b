"""The cells of a grid: answered by the runs that `vqa` makes, and read back.

A cell has a folder of its own, MODEL/COLUMN/SETTING, and is a run like any other: it goes on where
it was interrupted. One model is loaded at a time, and only for a cell that has something left.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from statistics import median
from typing import Any

from trimtok_cli.commands.grid_plan import Column, Run
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.run import build, run
from trimtok_cli.commands.session import ask_of, load
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample
from trimtok_cli.errors import ModelError, TrimtokError, UsageError
from trimtok_cli.evaluation.grid_table import FINAL, Cell
from trimtok_cli.evaluation.statistics import pictures_of
from trimtok_cli.outputs.earlier import read_manifest
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.read_back import STAGES
from trimtok_cli.readers.source import Source

PART = 512  # pictures that all settings read before the next are encoded
TRIED = 3  # samples of a cell whose budget may be out of reach


class Unfit(TrimtokError):
    """A model that cannot be loaded, or a method that cannot run on it: its cells stay empty."""


class OneModel:
    """Opens models, one at a time: an earlier one is let go before the next is loaded."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.adapter: Any = None
        self.shared: Any = None
        self.problem = ""

    def next_part(self) -> None:
        """Lets go of the samples that the runs before shared."""
        self.shared = None

    def __call__(
        self, config: RunConfig, screen: Screen, meanwhile: Callable[[], None]
    ) -> tuple[Any, Any, Any]:
        """The adapter, the Ask and the shared samples of a run. Raises Unfit.

        Samples are shared on a CPU alone: a GPU's memory is for answers, and its towers are
        recorded passes, whose memory the next pass writes anew.
        """
        names = ("model", "revision", "device", "dtype", "clip_text", "trust_remote_code")
        key = tuple(getattr(config, name) for name in names)
        device = None if self.adapter is None else self.adapter.device
        if key != self.key:
            self.adapter = self.shared = None
        if device is not None and (key != self.key or device.type != "cpu"):
            from trimtok_cli.device import release

            release(device)  # of the caches of the cell before, or of the model before
        if key == self.key:
            meanwhile()
        else:
            self.key, self.problem = key, ""
            try:
                self.adapter, _ = load(config, screen, meanwhile)
            except ModelError as error:
                self.problem = str(error)
        if self.problem:
            raise Unfit(self.problem)
        from trimtok_cli.engine.prompt_stage import check_method

        try:
            check_method(self.adapter, build(config))
        except (UsageError, ModelError) as error:
            raise Unfit(str(error)) from None
        if self.shared is None and self.adapter.device.type == "cpu":
            from trimtok_cli.engine.shared import Shared

            self.shared = Shared(self.adapter)
        return self.adapter, ask_of(config), self.shared


def parts(
    columns: Iterable[Column], size: int | None
) -> Iterator[list[tuple[Column, list[Sample]]]]:
    """The columns, each with its samples about the first `size` pictures, then about as many more.

    Columns take turns, so that those that ask about the same pictures do so in the same part. A
    size of None is one part.
    """
    columns = list({column.folder: column for column in columns}.values())
    turns = zip_longest(*(column.samples for column in columns))
    met = dict.fromkeys(pictures_of(each) for turn in turns for each in turn if each is not None)
    number = {pictures: place for place, pictures in enumerate(met)}
    for end in range(size or len(met), len(met) + (size or 1), size or len(met)):
        yield [
            (column, [each for each in column.samples if number[pictures_of(each)] < end])
            for column in columns
        ]


def answer(each: Run, due: list[Sample], opener: OneModel, screen: Screen) -> None:
    """Answers what is left of one cell among its samples that are due. Raises Unfit.

    A budget that a method may not reach is tried on a few samples first.
    """
    samples, whole = each.column.samples, len(due) == len(each.column.samples)
    if not whole:
        there = {record["metadata"]["key"] for record in _records(each)}
        due_keys = {sample.key for sample in due}
        if due_keys <= there:
            return
        samples = [sample for sample in samples if sample.key in due_keys | there]
    source = Source(samples, len(samples))
    # A folder's name may look like that of a file. What failed is tried again with the last part.
    options = AnswerOptions(out=f"{each.folder}/", keep_failed=not whole)
    if each.config.budget_counts != FINAL and not read_cell([each])[0].succeeded:
        few = Source(samples[:TRIED], min(TRIED, len(samples)))
        run("evaluate", each.config, few, options, screen, again=lambda: few, opener=opener)
        cell, _ = read_cell([each])
        if not cell.succeeded:
            raise Unfit(cell.error)
    run("evaluate", each.config, source, options, screen, again=lambda: source, opener=opener)


def read_cell(runs: Sequence[Run], problem: str = "") -> tuple[Cell, list[list[str | None]]]:
    """What the files of a cell say, and the answers of each of its runs; failures are ""."""
    samples, texts = runs[0].column.samples, []
    facts: list[dict[str, Any]] = []
    failed, device = 0, ""
    for each in runs:
        records = {record["metadata"]["key"]: record for record in _records(each)}
        found = [records.get(sample.key) for sample in samples]
        texts.append([record and (record["text"] if _is_ok(record) else "") for record in found])
        known = [record["metadata"] for record in found if record]
        failures = [meta for meta in known if meta["status"] != "ok"]
        failed += len(failures)
        if failures and len(failures) == len(known):
            problem = problem or failures[0]["error"]
        facts += [meta for meta in known if meta["status"] == "ok"]
        model = read_manifest(each.folder / "run.json").get("model", {})
        device = device or model.get("device", "")
    answered = sum(all(run[i] is not None for run in texts) for i in range(len(samples)))
    cell = Cell(len(samples), answered, failed, device=device, error=problem)
    return replace(cell, **_means(facts)) if facts else cell, texts


def _records(each: Run) -> Iterator[Mapping[str, Any]]:
    if each.answers.is_file():
        with closing(Answers(each.answers, read_manifest(each.folder / "run.json"))) as answers:
            yield from answers.records()


def _is_ok(record: Mapping[str, Any]) -> bool:
    return record["metadata"]["status"] == "ok"


def _means(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Visual tokens, means over answers; milliseconds of each step and of all, medians."""
    count = len(facts)
    ms = {stage: median(each["timing_ms"][stage] for each in facts) for stage in STAGES}
    ms["total"] = median(sum(each["timing_ms"][stage] for stage in STAGES) for each in facts)
    return {
        "dense": sum(each["visual"]["tokens"] for each in facts) / count,
        "kept": sum(each["visual"]["kept"] for each in facts) / count,
        "layer_mean": sum(each["visual"]["layer_mean"] for each in facts) / count,
        "ms": {name: round(value, 3) for name, value in ms.items()},
        "batch_size": max(each["timing_ms"]["batch_size"] for each in facts),
    }
