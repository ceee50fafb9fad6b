"""The plots of a benchmark, from the document of bench.json: needs matplotlib (the extra `plot`). Knows no torch."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write_plots(document: Row, folder: Path) -> list[Path]:
    """kept.png: latency and memory against kept tokens; batch.png: samples a second against the batch, if there are several.

    Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows, written = [row for row in document["grid"] if not row["error"]], []
    if not rows:
        return []
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    latency, memory = figure.subplots(1, 2)
    for name, line in _by(rows, lambda row: row["cell"]).items():
        line = sorted(line, key=lambda row: row["tokens"]["kept"])
        kept = [row["tokens"]["kept"] for row in line]
        walls = [row["derived"]["wall_ms"] for row in line]
        around = [[w["median"] - w["quartiles"][0] for w in walls], [w["quartiles"][1] - w["median"] for w in walls]]
        latency.errorbar(kept, [wall["median"] for wall in walls], around, marker="o", capsize=3, label=name)
        memory.plot(kept, [_bytes(row) / 2**30 for row in line], marker="o", label=name)
    _finish(latency, "visual tokens kept", "ms a sample (median, quartiles)")
    device_counts = "allocated" in rows[0]["memory"]
    _finish(memory, "visual tokens kept", "peak GiB" if device_counts else "peak GiB of the whole process so far")
    written.append(_save(figure, document, folder / "kept.png"))
    if len({row["batch"] for row in rows}) > 1:
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, line in _by(rows, lambda row: row["key"].replace(f", batch {row['batch']},", ",")).items():
            line = sorted(line, key=lambda row: row["batch"])
            rates = [row["derived"]["samples_per_second"] for row in line]
            axes.plot([row["batch"] for row in line], rates, marker="o", label=name)
        axes.set_xscale("log", base=2)
        _finish(axes, "batch", "samples a second")
        written.append(_save(figure, document, folder / "batch.png"))
    return written


def _save(figure, document: Row, path: Path) -> Path:
    figure.suptitle(document["conditions"]["device"], fontsize=9)
    figure.savefig(path, dpi=130)
    return path


def _by(rows: list[Row], name: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[name(row)].append(row)
    return found


def _bytes(row: Row) -> int:
    return row["memory"].get("allocated") or row["memory"].get("process", 0)


def _finish(axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
