"""Figures that follow from raw times: medians, spreads, speed-ups, distance to the roofline.

Raw seconds are a batch's; the `*_ms` derived here are one sample's. Plain Python on the document of
bench.json: knows no model and no device.
"""

from collections.abc import Callable, Sequence
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
    """The document with `derived` figures in every row that was measured; raw numbers stay."""
    dense = {row["cell"]: row for row in document["grid"] if row["baseline"] and not row["error"]}
    figures = {"pruner": _pruner, "decode": _decode, "overhead": _overhead, "memory": _memory}
    derived = {
        "grid": [
            _with_figures(row, lambda row: _grid(row, dense.get(row["cell"])))
            for row in document["grid"]
        ]
    }
    for part, figures_of in figures.items():
        derived[part] = [_with_figures(row, figures_of) for row in document.get(part, [])]
    return document | derived


def _with_figures(row: dict[str, Any], figures_of: Callable[[dict], dict]) -> dict[str, Any]:
    return row if row["error"] else row | {"derived": figures_of(row)}


def _first_token(row: dict[str, Any]) -> list[float]:
    """Seconds to the first token, round by round: the tower, pruning, prefill."""
    seconds = row["seconds"]
    return [
        sum(stages)
        for stages in zip(seconds["encode"], seconds["prune"], seconds["prefill"], strict=True)
    ]


def _mixed(passes: dict[str, list[int]]) -> bool:
    """Whether some of the passes of a row's rounds were replayed and others were not."""
    return any(passes.get("replayed", ())) and any(passes.get("eager", ()))


def _grid(row: dict[str, Any], dense: dict[str, Any] | None) -> dict[str, Any]:
    """Figures of one setting; against dense of the same cell, where dense was measured."""
    seconds = row["seconds"]
    figures: dict[str, Any] = {
        f"{name}_ms": figure(values, 1000 / row["batch"]) for name, values in seconds.items()
    }
    figures["first_ms"] = figure(_first_token(row), 1000 / row["batch"])
    figures["wall_with_files_ms"] = figure(_wall_with_files(row), 1000)
    figures["samples_per_second"] = row["batch"] / median(seconds["wall"])
    if (steps := row.get("steps")) and any(steps["replayed"] + steps["eager"]):
        pairs = list(zip(steps["replayed"], steps["eager"], strict=True))
        whole = sum(eager == 0 for _, eager in pairs)
        figures["recorded"] = {
            "rounds": whole,
            "of": len(pairs),
            "mixed": any(map(_mixed, (steps, row.get("prefills", {})))),
        }
    if row["work"]:
        roofline = row["work"]["floor"]
        roofline = roofline | {"wall": sum(roofline.values())}
        figures["times_floor"] = {
            name: median(seconds[name]) / least for name, least in roofline.items() if least
        }
    if dense is None or dense is row:
        return figures
    return figures | _against_dense(row, dense)


def _wall_with_files(row: dict[str, Any]) -> list[float]:
    """Seconds of a sample, round by round, from its files to its last token."""
    rounds = zip(row["seconds"]["wall"], row["prepare"], strict=True)
    return [wall / row["batch"] + prepare for wall, prepare in rounds]


def _against_dense(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    seconds = row["seconds"]
    stages = ["encode", "prefill", "wall"]
    if row["new_tokens"] > 1:
        stages.append("decode")
    speedup = {name: median(dense["seconds"][name]) / median(seconds[name]) for name in stages}
    speedup["first"] = median(_first_token(dense)) / median(_first_token(row))
    speedup["wall_with_files"] = median(_wall_with_files(dense)) / median(_wall_with_files(row))
    figures: dict[str, Any] = {
        "speedup": speedup,
        "prune_share_of_dense_prefill": median(seconds["prune"])
        / median(dense["seconds"]["prefill"]),
    }
    if row["work"] and dense["work"]:
        allowed = sum(dense["work"]["flops"].values()) / sum(row["work"]["flops"].values())
        figures["flops_allow"] = allowed
        figures["of_what_flops_allow"] = speedup["first"] / allowed
    return figures


def _pruner(row: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"{name}_ms": figure(values, 1000) for name, values in row["seconds"].items()
    }
    figures["speedup"] = {
        "total": median(row["seconds"]["literal"]) / median(row["seconds"]["ours"]),
        "loop": median(row["seconds"]["literal_loop"]) / median(row["seconds"]["our_loop"]),
    }
    return figures


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"{name}_ms": figure(values, 1000 / row["batch"]) for name, values in row["seconds"].items()
    }
    library = median(row["seconds"]["generate"])
    figures["speedup"] = {
        name: library / median(values)
        for name, values in row["seconds"].items()
        if name != "generate"
    }
    return figures


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
    """growth: of the resident bytes from the first count to the last.

    peak_growth: from the first count to the most bytes in between.
    """
    first = row["resident"][0]["bytes"]
    last = row["resident"][-1]["bytes"]
    return {"growth": last / first - 1, "peak_growth": row["most_bytes"] / first - 1}


def changes(now: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    """Wall times before and now, for every row of the grid that both documents measured.

    change: of the median, as a share of before. beyond_spread: the two quartile ranges do not
    overlap.
    """
    old_rows = {row["key"]: row for row in before["grid"] if not row["error"]}
    changed = []
    for row in now["grid"]:
        if row["error"] or row["key"] not in old_rows:
            continue
        old = old_rows[row["key"]]["derived"]["wall_ms"]
        new = row["derived"]["wall_ms"]
        slower = new["quartiles"][0] > old["quartiles"][1]
        faster = new["quartiles"][1] < old["quartiles"][0]
        changed.append(
            {
                "key": row["key"],
                "before": old,
                "now": new,
                "change": new["median"] / old["median"] - 1,
                "beyond_spread": slower or faster,
            }
        )
    return changed
