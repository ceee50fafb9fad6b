"""The plan of a grid: its data sets read, its rows as settings, and the run of every cell.

Loads no model. Data that is missing and settings that cannot be are refused here.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from trimtok_cli.commands.session import pruning
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample, Setting
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset
from trimtok_cli.evaluation.datasets.registry import dataset_named
from trimtok_cli.evaluation.grid_scores import Scorer
from trimtok_cli.evaluation.grid_spec import Data, Grid, Method
from trimtok_cli.evaluation.grid_table import FINAL
from trimtok_cli.readers.keys import keyed
from trimtok_cli.resolve import build
from trimtok_cli.wording import shown_name

LONGEST_NAME = 80  # characters of a folder's name


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
            columns.append(_checked(replace(same[0], spec=spec)))
            continue
        images = root / spec.images if spec.images else None
        try:
            found = dataset.samples(
                root / (spec.data or spec.name), split=spec.split, images=images
            )
            samples = list(keyed(islice(found, limit_of(spec, grid) or None)))
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
        columns.append(_checked(Column(spec, dataset, samples, _slug(spec.heading))))
    return columns


def _checked(column: Column) -> Column:
    """The column. Raises UsageError if its data set has no such metric."""
    if metric := column.spec.metric:
        nothing = [""] * len(column.samples)
        Scorer(column.dataset, column.samples).score(nothing, metric=metric)
    return column


def limit_of(spec: Data, grid: Grid) -> int:
    """The samples of a column that are asked at most; 0 is no limit."""
    return min((limit for limit in (spec.limit, grid.limit) if limit), default=0)


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
        config = build(RunConfig, values, f"the grid's {method.label or method.method}")
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
    limit = limit_of(column.spec, grid)
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
