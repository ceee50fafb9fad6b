"""The time that a bench.json lets one expect of a run: the row that was measured most like it.

Nothing is scaled: the row says under which conditions its time holds. Measures nothing.
"""

from typing import Any

from trimtok_cli.models.catalog import ALIASES


def expected(
    document: dict[str, Any], model: str, method: str, *, kept: float | None, batch: int
) -> dict[str, Any] | None:
    """Seconds a sample, from its files to its last token, and the row they are from.

    document: with derived figures. kept: the visual tokens that a sample of the run keeps. None
    where no row has the model and the method.
    """
    rows = [
        row
        for row in document["grid"]
        if not row["error"]
        and row["method"] == method
        and ALIASES.get(row["model"], row["model"]) == ALIASES.get(model, model)
    ]
    if not rows:
        return None
    row = min(
        rows,
        key=lambda row: (
            abs(row["tokens"]["kept"] - (kept or row["tokens"]["kept"])),
            abs(row["batch"] - batch),
        ),
    )
    return {
        "seconds_a_sample": row["derived"]["wall_with_files_ms"]["median"] / 1000,
        "measured": row["key"],
        "measured_kept": row["tokens"]["kept"],
    }
