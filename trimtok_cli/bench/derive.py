"""What follows from raw times: medians, spreads, speed-ups, distance to the floor. Plain Python on
the document of bench.json.

Seconds in the raw numbers are of a batch; `*_ms` here are of one sample.
"""

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any


def spread(values: Sequence[float]) -> list[float]:
    """[lower, upper] quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]


def figure(values: Sequence[float], scale: float = 1.0) -> dict[str, Any]:
    """Median and quartiles of values times `scale`."""
    scaled = [value * scale for value in values]
    return {"median": median(scaled), "quartiles": spread(scaled), "rounds": len(scaled)}


def derive(document: dict[str, Any]) -> dict[str, Any]:
    """The document with a `derived` in every row that was measured. The raw numbers stay as they
    are.
    """
    dense = {row["cell"]: row for row in document["grid"] if row["baseline"] and not row["error"]}
    by = {"pruner": _pruner, "decode": _decode, "overhead": _overhead, "memory": _memory}
    derived = {
        "grid": [
            _with(row, lambda row: _row(row, dense.get(row["cell"]))) for row in document["grid"]
        ]
    }
    for part, work_out in by.items():
        derived[part] = [_with(row, work_out) for row in document[part]]
    return document | derived


def _with(row: dict[str, Any], work_out) -> dict[str, Any]:
    return row if row["error"] else row | {"derived": work_out(row)}


def _first(row: dict[str, Any]) -> list[float]:
    """Seconds to the first token, round by round: the tower, pruning, prefill."""
    seconds = row["seconds"]
    return [
        sum(stages)
        for stages in zip(seconds["encode"], seconds["prune"], seconds["prefill"], strict=True)
    ]


def _row(row: dict[str, Any], dense: dict[str, Any] | None) -> dict[str, Any]:
    scale, seconds = 1000 / row["batch"], row["seconds"]
    found: dict[str, Any] = {
        f"{name}_ms": figure(values, scale) for name, values in seconds.items()
    }
    found["first_ms"] = figure(_first(row), scale)
    with_files = [
        wall / row["batch"] + each
        for wall, each in zip(seconds["wall"], row["prepare"], strict=True)
    ]
    found["wall_with_files_ms"] = figure(with_files, 1000)
    found["samples_per_second"] = row["batch"] / median(seconds["wall"])
    if row["work"]:
        floor = row["work"]["floor"]
        times = {name: median(seconds[name]) for name in floor} | {"wall": median(seconds["wall"])}
        floors = floor | {"wall": sum(floor.values())}
        found["times_floor"] = {name: times[name] / low for name, low in floors.items() if low}
    if dense is None or dense is row:
        return found
    found["speedup"] = {
        name: median(dense["seconds"][name]) / median(seconds[name])
        for name in ("encode", "prefill", "wall")
    }
    found["speedup"]["first"] = median(_first(dense)) / median(_first(row))
    if row["new_tokens"] > 1:
        found["speedup"]["decode"] = median(dense["seconds"]["decode"]) / median(seconds["decode"])
    files = zip(dense["seconds"]["wall"], dense["prepare"], strict=True)
    whole = median(wall / row["batch"] + each for wall, each in files)
    found["speedup"]["wall_with_files"] = whole / median(with_files)
    found["prune_share_of_dense_prefill"] = median(seconds["prune"]) / median(
        dense["seconds"]["prefill"]
    )
    if row["work"] and dense["work"]:
        allowed = sum(dense["work"]["flops"].values()) / sum(row["work"]["flops"].values())
        found["flops_allow"] = allowed
        found["of_what_flops_allow"] = found["speedup"]["first"] / allowed
    return found


def _pruner(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{name}_ms": figure(values, 1000) for name, values in row["seconds"].items()
    }
    found["speedup"] = {
        "total": median(row["seconds"]["literal"]) / median(row["seconds"]["ours"]),
        "loop": median(row["seconds"]["literal_loop"]) / median(row["seconds"]["our_loop"]),
    }
    return found


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{name}_ms": figure(values, 1000 / row["batch"]) for name, values in row["seconds"].items()
    }
    library = median(row["seconds"]["generate"])
    found["speedup"] = {
        name: library / median(values)
        for name, values in row["seconds"].items()
        if name != "generate"
    }
    return found


def _overhead(row: dict[str, Any]) -> dict[str, Any]:
    shares = [
        1 - model / wall
        for model, wall in zip(row["seconds"]["model"], row["seconds"]["wall"], strict=True)
    ]
    return {
        "share_outside_model": figure(shares),
        "samples_per_second": row["samples"] / median(row["seconds"]["wall"]),
    }


def _memory(row: dict[str, Any]) -> dict[str, Any]:
    """growth: of the resident bytes after the last count over those after the first; `peak` of the
    most in between.
    """
    first, last = row["resident"][0]["bytes"], row["resident"][-1]["bytes"]
    return {"growth": last / first - 1, "peak_growth": row["most_bytes"] / first - 1}


def changes(now: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    """For every row of the grid that both documents measured: wall time before and now, and the
    change as a share of before.

    beyond_spread: the quartiles of the two do not overlap.
    """
    old = {row["key"]: row for row in before["grid"] if not row["error"]}
    found = []
    for row in now["grid"]:
        if row["error"] or row["key"] not in old:
            continue
        was, be = old[row["key"]]["derived"]["wall_ms"], row["derived"]["wall_ms"]
        apart = be["quartiles"][0] > was["quartiles"][1] or be["quartiles"][1] < was["quartiles"][0]
        found.append(
            {
                "key": row["key"],
                "before": was,
                "now": be,
                "change": be["median"] / was["median"] - 1,
                "beyond_spread": apart,
            }
        )
    return found
