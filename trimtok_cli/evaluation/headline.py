"""The headline of a comparison: what pruning changed, where the time goes, and over how much.

Knows no page and no terminal.
"""

from collections.abc import Sequence

from trimtok_cli.evaluation.summary import Medians, Row
from trimtok_cli.units import duration, pace, percent

STEPS = {
    "load": "reading the file",
    "prepare": "preparing the image",
    "encode": "the vision tower",
    "prune": "pruning",
    "prefill": "prefill",
    "decode": "decode",
}


def explain(rows: Sequence[Row]) -> str:
    """Two sentences on the setting with the fewest visual tokens: its speed, its agreement.

    A setting that drops every visual token on the way is passed over.
    """
    pruned = [row for row in rows[1:] if row.samples]
    if not pruned:
        now = rows[0].median if rows and rows[0].samples else None
        if now is None or not now.total:
            return "No sample was answered both dense and pruned, so there is nothing to compare."
        stage, share = _shares(now)[0]
        return (
            f"Only dense answered: {duration(now.total)} a sample, {percent(share)} of it "
            f"{STEPS[stage]}."
        )
    keeping = [row for row in pruned if row.median.kept]
    if not keeping:
        return (
            "Every setting drops all visual tokens before the last layer; the table has their "
            "figures."
        )
    row = min(keeping, key=lambda row: (row.median.layer_mean or row.median.kept, row.median.kept))
    return f"{_speed(row)} {_agreement(row)}"


def _speed(row: Row) -> str:
    now = row.median
    head = f"With {now.kept} of {now.visual} visual tokens"
    if now.layer_mean > now.kept + 0.5:
        head = f"With a layer mean of {now.layer_mean:.0f} of {now.visual} visual tokens"
    if row.total_speedup is None:
        return f"{head} the time was not measured."
    prefill, whole = pace(row.prefill_speedup), pace(row.total_speedup)
    paces = (
        f"prefill is {prefill}, the whole sample {whole}"
        if prefill
        else f"the whole sample is {whole}"
    )
    if prefill == whole:
        paces = f"prefill and the whole sample are {whole}"
    return f"{head} {paces}: {_reason(row)}."


def _agreement(row: Row) -> str:
    share = row.same_share
    samples = "1 sample" if row.samples == 1 else f"{row.samples} samples"
    return (
        f"{row.label} gives the answer of dense on {row.same} of {samples} (95 % interval: "
        f"{100 * share.low:.0f} to {100 * share.high:.0f} %)."
    )


def _reason(row: Row) -> str:
    """Why the whole sample gained no more, or lost."""
    speedup = row.total_speedup or 1.0
    now, was, shares = row.median.seconds, row.dense.seconds, _shares(row.median)
    grown = {stage: getattr(now, stage) - getattr(was, stage) for stage in STEPS}
    worst, saved = max(grown, key=grown.__getitem__), -grown["prefill"]
    if speedup < 1.05 and worst == "prune" and now.prune > saved / 2:
        return (
            f"pruning takes {duration(now.prune)} and prefill saves "
            f"{duration(saved) if saved > 0 else 'nothing'}"
        )
    if speedup < 0.95 and grown[worst] > 0:
        length = (
            f", for {row.median.generated} tokens instead of {row.dense.generated}"
            if worst == "decode"
            else ""
        )
        return (
            f"{STEPS[worst]} takes {duration(getattr(now, worst))} instead of "
            f"{duration(getattr(was, worst))}{length}"
        )
    steady = [
        (s, part)
        for s, part in shares
        if part >= 0.1 and s not in ("prune", "prefill") and abs(grown[s]) <= 0.1 * getattr(now, s)
    ]
    stage, share = shares[0]
    if shares[0] not in steady or (stage == "decode" and share >= 0.5):
        shorter = (
            ", so shorter answers would gain more"
            if stage == "decode" and row.median.generated > 3
            else ""
        )
        return f"{STEPS[stage]} is {percent(share)} of what is left{shorter}"
    *parts, last = [f"{STEPS[s]} ({percent(part)})" for s, part in steady]
    return (
        f"{', '.join(parts)} and {last} take as long as before"
        if parts
        else f"{last} takes as long as before"
    )


def _shares(medians: Medians) -> list[tuple[str, float]]:
    """Each stage's share of the whole sample, largest first."""
    return sorted(
        ((s, getattr(medians.seconds, s) / medians.total) for s in STEPS),
        key=lambda pair: -pair[1],
    )
