"""The cells of a grid: planned, answered by the runs that `vqa` makes, and read back.

A cell has a folder of its own, MODEL/COLUMN/SETTING, and is a run like any other: it goes on where
it was interrupted. One model is loaded at a time, and only for a cell that has something left.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

from trimtok_cli.commands.format_options import read_manifest
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.run import build, run
from trimtok_cli.commands.session import ask_of, load, pruning
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample, Setting
from trimtok_cli.errors import ModelError, TrimtokError, UsageError
from trimtok_cli.evaluation.datasets.base import Dataset
from trimtok_cli.evaluation.datasets.registry import dataset_named
from trimtok_cli.evaluation.grid_spec import Data, Grid, Method
from trimtok_cli.evaluation.grid_table import FINAL, Cell
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.read_back import STAGES
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.source import Source
from trimtok_cli.resolve import build as record_of
from trimtok_cli.wording import shown_name

LONGEST_NAME = 80  # characters of a folder's name
TRIED = 3  # samples of a cell whose budget may be out of reach


class Unfit(TrimtokError):
    """A model that cannot be loaded, or a method that cannot run on it: its cells stay empty."""


@dataclass(frozen=True)
class Column:
    """A data set of the grid, read. samples: those that are asked, with their keys.

    folder: the name under which its answers lie; columns of several metrics share one.
    """

    spec: Data
    dataset: Dataset
    samples: list[Sample]
    folder: str

    @property
    def heading(self) -> str:
        return self.spec.heading


@dataclass(frozen=True)
class Line:
    """A row of the table before it has figures: a setting for each seed, and its config."""

    label: str
    settings: tuple[Setting, ...]
    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class Run:
    """The run of one cell with one seed."""

    config: RunConfig
    column: Column
    folder: Path

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"


def read_columns(grid: Grid, root: Path) -> list[Column]:
    """The data sets of a grid, read. Raises UsageError if a file or a picture is not there."""
    columns: list[Column] = []
    for spec in grid.datasets:
        dataset = dataset_named(spec.name)
        if same := [each for each in columns if each.spec.asked == spec.asked]:
            columns.append(replace(same[0], spec=spec))
            continue
        images = root / spec.images if spec.images else None
        try:
            found = dataset.samples(
                root / (spec.data or spec.name), split=spec.split, images=images
            )
            samples = list(keyed(islice(found, spec.limit or grid.limit or None)))
        except UsageError as error:
            raise UsageError(f"{spec.heading}: {error}") from None
        if not samples:
            raise UsageError(f"{spec.heading}: the data set has no samples.")
        missing = [
            medium
            for sample in samples
            for medium in (*sample.images, sample.video)
            if isinstance(medium, Path) and not medium.is_file()
        ]
        if missing:
            raise UsageError(
                f"{spec.heading}: {len(missing)} pictures are not there, the first of them "
                f"{shown_name(str(missing[0]))}: get them, name their folder with images, or ask "
                "fewer samples with limit."
            )
        columns.append(Column(spec, dataset, samples, _slug(spec.heading)))
    return columns


def plan(grid: Grid, model: str) -> list[Line]:
    """The rows of one model, dense first, each setting once. Imports torch.

    Raises UsageError for a method, parameter or budget that cannot be.
    """
    lines = [_line(grid, model, Method("dense"), "all", FINAL)]
    for method in grid.methods:
        for counts, keep in product(
            method.budget_counts or grid.budget_counts, method.keep or grid.keep
        ):
            lines.append(_line(grid, model, method, keep, counts))
    once = {line.settings[0].name: line for line in reversed(lines)}
    return list(reversed(once.values()))


def _line(grid: Grid, model: str, method: Method, keep: str, counts: str) -> Line:
    from trimtok_cli.pruners.registry import build_pruner

    found: dict[str, tuple[Setting, RunConfig]] = {}
    for seed in grid.seeds:
        values = {
            "greedy": True,
            **grid.settings,
            "model": model,
            "method": method.method,
            "params": dict(method.params),
            "keep": keep,
            "budget_counts": counts,
            "seed": seed,
            "batch_size": grid.batch_size,
            "device": grid.device,
            "dtype": grid.dtype,
        }
        config = record_of(RunConfig, values, f"the grid's {method.label or method.method}")
        config.sources.update(dict.fromkeys(grid.settings, "config file"))
        pruner = build_pruner(config.method, pruning(config, config.method))
        setting = Setting.of(pruner)
        # A method that draws no lots answers alike with every seed.
        name = setting.name if config.greedy else f"{setting.name} {seed}"
        found.setdefault(name, (setting, config))
    settings, configs = zip(*found.values(), strict=True)
    plain = replace(settings[0], seed=0, params=_without_counts(settings[0].params))
    label = method.label or " ".join(filter(None, (plain.method, plain.changes)))
    return Line(label, settings, configs)


def _without_counts(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "counts"}


def runs_of(line: Line, column: Column, grid: Grid, out: Path) -> list[Run]:
    """The runs of one cell: one for each seed."""
    longest = column.spec.max_new_tokens or column.dataset.max_new_tokens
    limit = column.spec.limit or grid.limit
    found = []
    for setting, config in zip(line.settings, line.configs, strict=True):
        name = setting.name
        if not config.greedy and config.seed and not setting.seed:
            name += f" seed={config.seed}"
        config = replace(
            config, max_new_tokens=grid.settings.get("max_new_tokens", longest), limit=limit
        )
        folder = out / _slug(config.model) / column.folder / _slug(name)
        found.append(Run(config, column, folder))
    return found


def _slug(name: str) -> str:
    """A name as a folder's; names that differ give folders that differ."""
    plain = re.sub(r"[^\w.@=%+-]", "_", name).strip(".")
    if plain == name and len(name) <= LONGEST_NAME:
        return plain
    mark = hashlib.blake2b(name.encode(), digest_size=3).hexdigest()
    return f"{plain[-LONGEST_NAME:]}-{mark}"


class OneModel:
    """Opens models, one at a time: an earlier one is let go before the next is loaded."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.adapter: Any = None
        self.problem = ""

    def __call__(
        self, config: RunConfig, screen: Screen, meanwhile: Callable[[], None]
    ) -> tuple[Any, Any]:
        """The adapter and the Ask of a run. Raises Unfit."""
        names = ("model", "revision", "device", "dtype", "clip_text", "trust_remote_code")
        key = tuple(getattr(config, name) for name in names)
        if key == self.key:
            meanwhile()
        else:
            self.key, self.problem = key, ""
            self._let_go()
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
        return self.adapter, ask_of(config)

    def _let_go(self) -> None:
        if self.adapter is not None:
            from trimtok_cli.device import release

            device, self.adapter = self.adapter.device, None
            release(device)


def answer(each: Run, opener: OneModel, screen: Screen) -> None:
    """Answers what is left of one cell. Raises Unfit.

    A budget that a method may not reach is tried on a few samples first.
    """
    samples = each.column.samples
    source = Source(samples, len(samples))
    # A folder's name may look like that of a file.
    options = AnswerOptions(out=f"{each.folder}/")
    if each.config.budget_counts != FINAL and not read_cell([each])[0].kept:
        few = Source(samples[:TRIED], min(TRIED, len(samples)))
        run("evaluate", each.config, few, options, screen, again=lambda: few, opener=opener)
        cell, _ = read_cell([each])
        if not cell.kept:
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
        yield from Answers(each.answers, read_manifest(each.folder / "run.json")).records()


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
