"""The plots of a benchmark, from the document of bench.json. Knows no torch.

matplotlib is needed (the extra `plot`).
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_plots(document: Row, folder: Path) -> list[Path]:
    """Draws kept.png and batch.png, each where its line has points, and returns their paths.

    kept.png: latency, and memory where the device counts it, against kept tokens. batch.png:
    samples a second against batch. On a CPU times are shares of dense's in its smallest batch, as
    in the tables. Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows = [row for row in document["grid"] if not row["error"]]
    on_cpu = document["conditions"]["device_kind"] == "cpu"
    drawn = []
    if any(not row["baseline"] for row in rows):
        drawn.append((_against_kept(Figure, rows, on_cpu), folder / "kept.png"))
    if len({row["batch"] for row in rows}) > 1:
        drawn.append((_against_batch(Figure, rows, on_cpu), folder / "batch.png"))
    for figure, path in drawn:
        figure.suptitle(
            f"{document['conditions']['device']}, {document['conditions']['dtype']}", fontsize=9
        )
        figure.savefig(path, dpi=130)
    return [path for _, path in drawn]


def _against_kept(figure_class, rows: list[Row], on_cpu: bool):
    """A line for each method of each cell, from its fewest tokens to dense; a model to a row."""
    models = _grouped(rows, lambda row: row["model"])
    has_memory = "allocated" in rows[0]["memory"]
    num_columns = 2 if has_memory else 1
    size = (11 if has_memory else 6, 4.2 * len(models))
    figure = figure_class(figsize=size, layout="constrained")
    grid = figure.subplots(len(models), num_columns, squeeze=False)
    time = "time a sample, of dense's" if on_cpu else "ms a sample"
    labels = (f"{time} (median, quartiles)", "peak GiB allocated")
    for panels, of_model in zip(grid, models.values(), strict=True):
        unit = _unit(of_model) if on_cpu else 1.0
        for cell, of_cell in _grouped(of_model, lambda row: row["cell"]).items():
            dense = [row for row in of_cell if row["baseline"]]
            pruned = [row for row in of_cell if not row["baseline"]]
            for method, line in _grouped(pruned, lambda row: row["method"]).items():
                line = sorted(line + dense, key=lambda row: row["tokens"]["kept"])
                _draw_line(panels, line, f"{cell.partition(', ')[2]}: {method}", unit)
        for panel, label in zip(panels, labels, strict=False):
            _finish(panel, of_model[0]["model"], "visual tokens kept (mean over layers)", label)
    return figure


def _draw_line(panels, line: list[Row], name: str, unit: float) -> None:
    """Times against kept tokens in the first panel, in units of `unit` ms; memory in the second."""
    kept = [row["tokens"]["kept"] for row in line]
    walls = [row["derived"]["wall_ms"] for row in line]
    times = [wall["median"] / unit for wall in walls]
    low, high = (
        [abs(wall["quartiles"][end] - wall["median"]) / unit for wall in walls] for end in (0, 1)
    )
    panels[0].errorbar(kept, times, [low, high], marker="o", capsize=3, label=name)
    if len(panels) > 1:
        memory = [row["memory"]["allocated"] / 2**30 for row in line]
        panels[1].plot(kept, memory, marker="o", label=name)


def _against_batch(figure_class, rows: list[Row], on_cpu: bool):
    """A line for each setting, a model to a panel."""
    models = _grouped(rows, lambda row: row["model"])
    figure = figure_class(figsize=(7, 4.2 * len(models)), layout="constrained")
    for (panel,), of_model in zip(
        figure.subplots(len(models), 1, squeeze=False), models.values(), strict=True
    ):
        unit = _unit(of_model) / 1000 if on_cpu else 1.0

        for name, line in _grouped(of_model, _key_without_batch).items():
            line = sorted(line, key=lambda row: row["batch"])
            rates = [row["derived"]["samples_per_second"] * unit for row in line]
            panel.plot([row["batch"] for row in line], rates, marker="o", label=name)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        _finish(
            panel,
            of_model[0]["model"],
            "batch",
            "throughput, dense's in its smallest batch = 1" if on_cpu else "samples a second",
        )
    return figure


def _unit(rows: list[Row]) -> float:
    """Milliseconds a sample of dense in its smallest batch; of another row where dense failed."""
    row = min(rows, key=lambda row: (not row["baseline"], row["batch"]))
    return row["derived"]["wall_ms"]["median"]


def _key_without_batch(row: Row) -> str:
    """A setting's name in every batch, without its model."""
    return row["key"].replace(f", batch {row['batch']},", ",").partition(", ")[2]


def _grouped(rows: list[Row], name: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[name(row)].append(row)
    return groups


def _finish(axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
