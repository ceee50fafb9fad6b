"""The tables of `score`: a line a file, and a line a part of the data."""

from collections.abc import Sequence

from rich.text import Text

from trimtok_cli.commands.terminal.wide_table import WideTable
from trimtok_cli.evaluation.datasets.base import Scores
from trimtok_cli.outputs.grid_files import number
from trimtok_cli.wording import shown


def scores_table(
    title: str, labels: Sequence[str], scores: Sequence[Scores], answered: Sequence[str]
) -> WideTable:
    """Every metric over all samples; the headline comes first, and is bold.

    answered: how many samples each file answers, `50 of 60`, shown where one is not complete.
    """
    names = _headline_first([name for name in scores[0].values if "/" not in name], scores[0])
    rows = [
        [
            Text(shown(label)),
            *(
                Text(f"{each.values[name]:.2f}", "bold" if name == each.main else "")
                for name in names
            ),
            Text(count or "all", "yellow" if count else ""),
        ]
        for label, each, count in zip(labels, scores, answered, strict=True)
    ]
    if any(answered):
        return _table(title, "answers", [*names, "answered"], rows)
    return _table(title, "answers", names, [row[:-1] for row in rows])


def _headline_first(names: list[str], scores: Scores) -> list[str]:
    return sorted(names, key=lambda name: name != scores.main)


def parts_table(scores: Scores) -> WideTable | None:
    """Every metric over each part of the samples; None where there are no parts."""
    split = [name.rpartition("/") for name in scores.values if "/" in name]
    parts = list(dict.fromkeys(part for part, _, _ in split))
    names = _headline_first(list(dict.fromkeys(name for _, _, name in split)), scores)
    if not parts:
        return None
    rows = [
        [
            Text(shown(part)),
            *(Text(number(scores.values.get(f"{part}/{name}"))) for name in names),
        ]
        for part in parts
    ]
    return _table("", "part", names, rows)


def _table(
    title: str, first: str, names: Sequence[str], rows: Sequence[Sequence[Text]]
) -> WideTable:
    return WideTable(title, first, list(map(shown, names)), rows)
