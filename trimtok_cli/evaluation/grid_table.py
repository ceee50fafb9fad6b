"""The table of a grid as plain values: rows, blocks of one budget, what is best, and differences.

Pure functions; Markdown, CSV, HTML and JSON show the same document. Knows no file and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from trimtok_cli.data import Setting
from trimtok_cli.evaluation.grid_scores import Score, Scorer

FINAL, LAYER_MEAN = COUNTS = ("final", "layer-mean")

# A mean over layers counts as the budget if it is as near as this: budgets of shares are rounded.
NEAR = 0.01

Figures = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What the files of one cell say.

    samples: asked for; answered: of these, by now; failed: of the answered, and scored as wrong.
    dense, kept, layer_mean: visual tokens, means over answers. ms: medians of each step and of
    whole samples (`total`). error: why nothing was answered.
    """

    samples: int
    answered: int = 0
    failed: int = 0
    dense: float = 0.0
    kept: float = 0.0
    layer_mean: float = 0.0
    ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 0
    device: str = ""
    error: str = ""
    score: Score | None = None

    @property
    def succeeded(self) -> bool:
        """Whether anything came back but failures. VTW's answers keep no token, and are answers."""
        return bool(self.ms)


@dataclass(frozen=True)
class Row:
    """One line: a setting (that of its first seed) on one model, with a cell for each column."""

    model: str
    setting: Setting
    label: str
    cells: Mapping[str, Cell]

    @property
    def is_dense(self) -> bool:
        return self.setting == Setting()

    @property
    def counts(self) -> str:
        """What the budget counts."""
        return str(self.setting.params.get("counts", FINAL))

    @property
    def block(self) -> tuple[str, str, str]:
        return (self.model, self.counts, "" if self.is_dense else self.setting.keep)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name by which a grid's reference may call it, the most telling first."""
        setting = self.setting
        labelled = (setting.name, f"{self.label}@{setting.keep}", self.label)
        return (*labelled, setting.method_keep, setting.method)


def document(
    rows: Sequence[Row],
    scorers: Mapping[str, Scorer],
    *,
    reference: str = "",
    published: Mapping[str, Mapping[str, float]] | None = None,
) -> Figures:
    """The whole table. reference: the row of each block that the others are tested against."""
    entries = [_entry(row) for row in rows]
    for row, entry in zip(rows, entries, strict=True):
        dense = next((each for each in rows if each.model == row.model and each.is_dense), None)
        other = _reference(row, rows, reference)
        for heading, scorer in scorers.items():
            cell = entry["cells"][heading]
            cell["published"] = _published(row, published or {}).get(heading)
            _score(cell, row.cells[heading], scorer)
            cell["relative"] = dense and _relative(
                row.cells[heading].score, dense.cells[heading].score
            )
            _compare(cell, "dense", row, dense, heading, scorer)
            _compare(cell, "reference", row, other, heading, scorer)
        _averages(entry)
    columns = {heading: _column(heading, scorer, entries) for heading, scorer in scorers.items()}
    return {
        "columns": columns,
        "reference": reference,
        "rows": entries,
        "blocks": _blocks(rows, entries),
    }


def _entry(row: Row) -> Figures:
    return {
        "model": row.model,
        "label": row.label,
        "setting": row.setting.name,
        "method": row.setting.method,
        "keep": row.setting.keep,
        "counts": row.counts,
        "cells": {heading: _facts(cell) for heading, cell in row.cells.items()},
    }


def _facts(cell: Cell) -> Figures:
    names = ("samples", "answered", "failed", "dense", "kept", "layer_mean", "batch_size")
    return {
        **{name: getattr(cell, name) for name in names},
        "ms": dict(cell.ms),
        "device": cell.device,
        "error": cell.error,
    }


def _score(figures: Figures, cell: Cell, scorer: Scorer) -> None:
    score = cell.score
    found = scorer.interval(score) if score else None
    figures |= {
        "metric": score.metric if score else "",
        "score": found and found.value,
        "low": found and found.low,
        "high": found and found.high,
        "values": dict(score.values) if score else {},
    }


def _compare(
    figures: Figures, name: str, row: Row, other: Row | None, heading: str, scorer: Scorer
) -> None:
    """Notes the difference to another row, which `name` says the part of."""
    figures[f"against_{name}"] = None
    mine = row.cells[heading].score
    theirs = other.cells[heading].score if other else None
    if other is None or row is other or mine is None or theirs is None:
        return
    if not set(mine.chosen) & set(theirs.chosen):
        return
    found = scorer.difference(mine, theirs)
    figures[f"against_{name}"] = {
        "setting": other.setting.name,
        "difference": found.interval.value,
        "low": found.interval.low,
        "high": found.interval.high,
        **{key: value for key, value in asdict(found).items() if key != "interval"},
    }


def _relative(mine: Score | None, dense: Score | None) -> float | None:
    """Per cent of dense's score; None unless both are of the same samples."""
    if mine is None or dense is None or mine.chosen != dense.chosen or not dense.value:
        return None
    return 100 * mine.value / dense.value


def _averages(entry: Figures) -> None:
    """The row's means over columns: relative to dense, tokens and milliseconds."""
    cells = list(entry["cells"].values())
    shares = [cell["relative"] for cell in cells]
    known = [cell for cell in cells if cell["ms"]]
    entry["average"] = fmean(shares) if shares and None not in shares else None
    for name in ("dense", "kept", "layer_mean"):
        entry[name] = fmean(cell[name] for cell in known) if known else None
    entry["ms"] = fmean(cell["ms"]["total"] for cell in known) if known else None
    entry["devices"] = sorted({cell["device"] for cell in known})


def _column(heading: str, scorer: Scorer, entries: Sequence[Figures]) -> Figures:
    cells = [entry["cells"][heading] for entry in entries]
    return {
        "dataset": scorer.dataset.name,
        "title": scorer.dataset.title,
        "metric": next((cell["metric"] for cell in cells if cell["metric"]), ""),
        "samples": len(scorer.samples),
        "pictures": len(set(scorer.groups)),
    }


def _published(row: Row, published: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    names = (row.setting.name, f"{row.label}@{row.setting.keep}", row.label)
    return next((published[name] for name in names if name in published), {})


def _reference(row: Row, rows: Sequence[Row], name: str) -> Row | None:
    """The row that a grid's reference names: of the same block, else by its full name."""
    if not name:
        return None
    same = [each for each in rows if each.model == row.model]
    near = [each for each in same if each.block == row.block] if not row.is_dense else []
    plain = [each for each in same if each.block == (row.model, FINAL, row.setting.keep)]
    full = same if "@" in name else []
    return next(filter(None, (_named(each, name) for each in (near, plain, full))), None)


def _named(rows: Sequence[Row], name: str) -> Row | None:
    """The row that is most certainly called so: a method's name is that of its variants, too."""
    found = [(row.names.index(name), row) for row in rows if name in row.names]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _blocks(rows: Sequence[Row], entries: Sequence[Figures]) -> list[Figures]:
    """The blocks of each model: dense, each budget, and each budget as a mean over layers."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault(row.block, []).append(number)
    models = list(dict.fromkeys(row.model for row in rows))
    order = sorted(
        found,
        key=lambda block: (models.index(block[0]), bool(block[2]), COUNTS.index(block[1])),
    )
    blocks = []
    for model, counts, keep in order:
        numbers = found[model, counts, keep]
        if counts == LAYER_MEAN:
            # Methods of the prompt have the same budget in every layer, and belong here as well.
            plain = found.get((model, FINAL, keep), [])
            numbers = [number for number in plain if _is_level(entries[number])] + numbers
        best = _best([(number, entries[number]) for number in numbers]) if keep else {}
        blocks.append(
            {"model": model, "counts": counts, "keep": keep, "rows": numbers, "best": best}
        )
    return blocks


def _is_level(entry: Figures) -> bool:
    kept, mean = entry["kept"], entry["layer_mean"]
    return kept is not None and abs(mean - kept) <= NEAR * kept


def _best(entries: Sequence[tuple[int, Figures]]) -> dict[str, list[int]]:
    """The rows with the highest score of each column, and with the highest average (`average`).

    Scores of fewer samples than were asked for are no candidates.
    """
    found: dict[str, list[int]] = {}
    for heading in entries[0][1]["cells"] if entries else ():
        scores = {
            number: entry["cells"][heading]["score"]
            for number, entry in entries
            if entry["cells"][heading]["answered"] == entry["cells"][heading]["samples"]
        }
        found[heading] = _highest(scores)
    found["average"] = _highest({number: entry["average"] for number, entry in entries})
    return found


def _highest(values: Mapping[int, float | None]) -> list[int]:
    known = {number: value for number, value in values.items() if value is not None}
    most = max(known.values(), default=0.0)
    return [number for number, value in known.items() if abs(value - most) < 1e-9]
