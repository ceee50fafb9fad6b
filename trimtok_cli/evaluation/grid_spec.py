"""The records that a grid's YAML is read into. Knows no torch and no model.

An unknown key is an error that names the right one. A list of one may be written as a single value,
and a data set or a method that has nothing but a name as that name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtok_cli.bounds import like, setting
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.registry import dataset_named
from trimtok_cli.resolve import build
from trimtok_cli.wording import brief, suggestion
from trimtok_cli.yaml_text import read_yaml

MOST = 10**9

# Settings of a run that a grid says elsewhere, or that would change what its cells mean.
OWN = ("model", "method", "keep", "params", "seed", "batch_size", "budget_counts", "limit")


@dataclass(frozen=True)
class Data:
    """A column of the table.

    name: the data set. data: its folder or file, in the folder of all data. split, images: as in
    `trimtok score`. metric: the metric of the column, the data set's headline if it is empty.
    limit: the first so many samples, 0 for the grid's own limit. max_new_tokens: 0 for the data
    set's own. label: the column's heading.
    """

    name: str = setting("")
    data: str = setting("", empty=True, path=True)
    split: str = setting("", empty=True)
    images: str = setting("", empty=True, path=True)
    metric: str = setting("", empty=True)
    limit: int = setting(0, least=0, most=MOST)
    max_new_tokens: int = setting(0, least=0, most=MOST)
    label: str = setting("", empty=True)

    @property
    def asked(self) -> tuple[object, ...]:
        """What is asked, whatever metric scores it."""
        return (
            self.name,
            self.data,
            self.split,
            self.images,
            self.limit,
            self.max_new_tokens,
        )

    @property
    def heading(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Method:
    """Rows of the table: a method with parameters, for each budget.

    keep, budget_counts: those of the grid if they are empty. label: its name in the table.
    """

    method: str = like(RunConfig, "method", help="")
    params: dict[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = like(RunConfig, "keep", default=(), help="")
    budget_counts: tuple[str, ...] = like(RunConfig, "budget_counts", default=(), help="")
    label: str = setting("", empty=True)


@dataclass(frozen=True)
class Published:
    """Published figures: {SETTING or LABEL@KEEP: {column: value}}, and where they stand."""

    source: str = setting("", empty=True)
    rows: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A whole grid: every model x data set x (dense, and method x keep x counts x seed).

    reference: the method, label or setting that every other row is tested against, besides dense.
    seeds: for methods that draw lots; the row is the mean over seeds. settings: further settings of
    every run, by the names of --config.
    """

    title: str = setting("", empty=True)
    models: tuple[str, ...] = like(RunConfig, "model", default=(), help="")
    datasets: tuple[Data, ...] = ()
    methods: tuple[Method, ...] = ()
    keep: tuple[str, ...] = like(RunConfig, "keep", default=(RunConfig.keep,), help="")
    budget_counts: tuple[str, ...] = like(RunConfig, "budget_counts", default=("final",), help="")
    seeds: tuple[int, ...] = setting((0,), least=0, most=MOST)
    reference: str = setting("", empty=True)
    settings: dict[str, Any] = field(default_factory=dict)
    published: Published = field(default_factory=Published)
    batch_size: int | str = like(RunConfig, "batch_size", shown="the grid's, else 1")
    limit: int = like(
        RunConfig, "limit", help="The first so many samples of each data set.", shown="the grid's"
    )
    device: str = like(RunConfig, "device")
    dtype: str = like(RunConfig, "dtype")


def read_grid(file: str, flags: Mapping[str, Any] | None = None, record: type[Grid] = Grid) -> Grid:
    """The grid of a file, or of a preset of configs/eval by its name. Raises UsageError.

    Flags that are not None replace the settings of the file.
    """
    path, values = read_yaml(file, inside="eval", flag="GRID")
    where = Path(path).name
    for name, key in (("datasets", "name"), ("methods", "method")):
        entries = values.get(name, [])
        entries = entries if isinstance(entries, list) else [entries]
        values[name] = [each if isinstance(each, dict) else {key: each} for each in entries]
    grid: Grid = build(record, values, where, flags)
    _check(grid, where)
    return grid


def _check(grid: Grid, where: str) -> None:
    """Raises UsageError where a grid names nothing to run, or one thing twice."""
    for name in ("models", "datasets", "methods"):
        if not getattr(grid, name):
            raise UsageError(f"{where} names no {name}: a grid has models, datasets and methods.")
    for data in grid.datasets:
        if not data.name:
            raise UsageError(f"{where}: a data set of the grid has no name.")
        dataset_named(data.name)
    headings = [data.heading for data in grid.datasets]
    if twice := [each for each in headings if headings.count(each) > 1]:
        raise UsageError(
            f"{where}: two columns are called {brief(twice[0])}; give each a label of its own."
        )
    named = {each for method in grid.methods for each in (method.method, method.label)}
    if grid.reference and grid.reference.partition("@")[0] not in named - {""}:
        raise UsageError(
            f"{where}: the reference {brief(grid.reference)} is no method of the grid"
            f"{suggestion(grid.reference, named)}."
        )
    if odd := [name for name in grid.settings if name.replace("-", "_") in OWN]:
        raise UsageError(
            f"{where}: {brief(odd[0])} stands in the grid itself and not among its settings."
        )
    for row, figures in grid.published.rows.items():
        if not isinstance(figures, dict) or figures.keys() - set(headings):
            raise UsageError(
                f"{where}: published figures of {brief(row)} must be numbers by column, "
                f"{', '.join(headings)}."
            )
