"""The tables of a benchmark on the terminal, from the document of bench.json. Knows no torch.

On a CPU the tables show ratios only: absolute times of a shared processor say little, and are in
the JSON.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trimtok_cli.units import duration, percent

GIB = 2**30

Row = dict[str, Any]


def tables(document: Row) -> Iterator[Table]:
    """A table for each cell of the grid and each further part that was measured."""
    timed = document["conditions"]["device_kind"] != "cpu"
    for cell in dict.fromkeys(row["cell"] for row in document["grid"]):
        rows = [row for row in document["grid"] if row["cell"] == cell]
        yield _grid(rows, _times if timed else _ratios, TIMES if timed else RATIOS)
    for part, heads, cells in (
        ("pruner", ("greedy stage", "total", "loop alone", "same tokens"), _pruner),
        (
            "decode",
            ("decode loop against transformers' generate", "faster than it", "same tokens"),
            _decode,
        ),
        (
            "overhead",
            ("whole run, from files to answers", "outside the model", "samples/s" if timed else ""),
            _overhead,
        ),
        ("memory", ("resident memory", "first", "last", "growth"), _memory),
        ("counts", ("counted, not timed", *COUNTS, "attention", "GB", "TFLOP"), _counts),
        ("schedule", ("a run's schedule, counted", *SCHEDULE, "useful slot-steps"), _schedule),
    ):
        if document.get(part):
            table = _table("", heads)
            for row in document[part]:
                table.add_row(Text(row["key"]), *_cells(row, cells, timed))
            yield table


COUNTS = ("kernels", "launches", "products", "waits")

SCHEDULE = ("steps", "replayed", "recordings", "attention_shapes", "waits")

TIMES = (
    "setting",
    "kept",
    "encode",
    "prune",
    "prefill",
    "decode",
    "a sample",
    "quartiles",
    "with files",
    "samples/s",
    "× dense",
    "× roofline",
    "GiB",
)

RATIOS = (
    "setting",
    "kept",
    "first token",
    "FLOPs allow",
    "of that",
    "prune / dense prefill",
    "decode",
    "whole",
    "with files",
)


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(
            head, justify="right" if number else "left", overflow="fold", no_wrap=False
        )
    return table


def _cells(row: Row, cells, timed: bool) -> list:
    return [Text(row["error"], "red")] if row["error"] else cells(row, timed)


def _grid(rows: Sequence[Row], cells, heads: Sequence[str]) -> Table:
    """The settings of one cell, with published figures beneath."""
    tokens = next((row["tokens"] for row in rows if not row["error"]), None)
    title = rows[0]["cell"]
    if tokens:
        title += f" ({tokens['visual']:.0f} visual and {tokens['text']:.0f} text tokens)"
    table = _table(title, heads)
    for row in rows:
        if row["error"]:
            table.add_row(Text(f"{row['setting']} failed: {row['error']}".strip(), "red"))
        else:
            table.add_row(Text(row["setting"]), f"{row['tokens']['kept']:.0f}", *cells(row))
    notes = [_recorded(row) for row in rows if _recorded(row)]
    notes += [_reference(row) for row in rows if row.get("reference")]
    table.caption = "\n".join(notes) or None
    table.caption_justify = "left"
    return table


def _times(row: Row) -> list[str]:
    derived = row["derived"]
    stages = ("encode", "prune", "prefill", "decode", "wall")
    low, high = derived["wall_ms"]["quartiles"]
    used = row["memory"].get("allocated")
    return [
        *(_ms(derived[f"{name}_ms"]["median"]) for name in stages),
        f"{_ms(low)} to {_ms(high)}",
        _ms(derived["wall_with_files_ms"]["median"]),
        f"{derived['samples_per_second']:.1f}",
        _times_or_none(derived.get("speedup", {}).get("wall")),
        _times_or_none(derived.get("times_floor", {}).get("wall")),
        f"{used / GIB:.2f} ({row['memory']['reserved'] / GIB:.2f})" if used else "",
    ]


def _ratios(row: Row) -> list[str]:
    derived = row["derived"]
    if "speedup" not in derived:
        return [""] * 7
    speedup = derived["speedup"]
    reached = derived.get("of_what_flops_allow")
    return [
        _times_or_none(speedup["first"]),
        _times_or_none(derived.get("flops_allow")),
        "" if reached is None else percent(reached),
        f"{100 * derived['prune_share_of_dense_prefill']:.2f} %",
        _times_or_none(speedup.get("decode")),
        _times_or_none(speedup["wall"]),
        _times_or_none(speedup["wall_with_files"]),
    ]


def _recorded(row: Row) -> str:
    """The rounds of a row whose decode steps were all replayed; empty where none could be."""
    recorded = row.get("derived", {}).get("recorded")
    if not recorded:
        return ""
    mark = ": its rounds are not alike, do not compare them" if recorded["mixed"] else ""
    return (
        f"{row['setting']}: decode steps recorded in {recorded['rounds']} of {recorded['of']} "
        f"rounds{mark}"
    )


def _reference(row: Row) -> str:
    reference = row["reference"]
    units = {"latency_ms": "ms", "memory_gib": "GiB"}
    figures = [f"{reference[name]} {unit}" for name, unit in units.items() if name in reference]
    return f"{row['setting']} in {reference['source']}: {', '.join(figures)}"


def _pruner(row: Row, timed: bool) -> list[str]:
    speedup = row["derived"]["speedup"]
    cost = [
        f" ({_ms(row['derived'][name]['median'])})" if timed else ""
        for name in ("ours_ms", "our_loop_ms")
    ]
    return [
        f"{speedup['total']:.1f}×{cost[0]}",
        f"{speedup['loop']:.1f}×{cost[1]}",
        "yes" if row["identical"] else "no",
    ]


def _decode(row: Row, timed: bool) -> list[str]:
    derived = row["derived"]
    paces = [
        f"{name} {pace:.2f}×" + (f" ({_ms(derived[f'{name}_ms']['median'])})" if timed else "")
        for name, pace in derived["speedup"].items()
    ]
    return [
        ", ".join(paces),
        ", ".join("yes" if same else "no" for same in row["identical"].values()),
    ]


def _overhead(row: Row, timed: bool) -> list[str]:
    derived = row["derived"]
    return [
        f"{100 * derived['share_outside_model']['median']:.1f} %",
        f"{derived['samples_per_second']:.1f}" if timed else "",
    ]


def _memory(row: Row, timed: bool) -> list[str]:
    ends = [
        f"{look['bytes'] / 2**20:.0f} MiB after {look['inputs']}"
        for look in (row["resident"][0], row["resident"][-1])
    ]
    return [*ends, f"{100 * row['derived']['growth']:+.1f} %"]


def _counts(row: Row, timed: bool) -> list[str]:
    attention = f"{row['attention']} ({row['attention_shapes']} shapes)"
    return [
        *(f"{row[name]:,}" for name in COUNTS),
        attention,
        f"{row['bytes'] / 1e9:.1f}",
        f"{row['flops'] / 1e12:.2f}",
    ]


def _schedule(row: Row, timed: bool) -> list[str]:
    return [*(f"{row[name]:,}" for name in SCHEDULE), percent(row["useful_slot_steps"])]


def count_table(now: Row, before: Row) -> Table:
    """Counted facts in an earlier document and now, where they differ."""
    heads = ("counted", "what", "before", "now")
    table = _table("Counts against the earlier ones", heads)
    for part, names in (("counts", (*COUNTS, "attention")), ("schedule", SCHEDULE)):
        earlier = {row["key"]: row for row in before.get(part, []) if not row["error"]}
        for row in now.get(part, []):
            old = earlier.get(row["key"])
            for name in names if old and not row["error"] else ():
                if old[name] != row[name]:
                    table.add_row(Text(row["key"]), name, f"{old[name]:,}", f"{row[name]:,}")
    return table


def change_table(changes: Sequence[Row]) -> Table:
    """Wall time of a sample, now and in an earlier document.

    An asterisk says that the quartile ranges of the two do not overlap.
    """
    table = _table(
        "A sample's wall time against the earlier one", ("setting", "before", "now", "change")
    )
    for row in changes:
        times = [
            f"{_ms(row[name]['median'])} ({' to '.join(map(_ms, row[name]['quartiles']))})"
            for name in ("before", "now")
        ]
        mark = " *" if row["beyond_spread"] else ""
        table.add_row(Text(row["key"]), *times, f"{100 * row['change']:+.1f} %{mark}")
    return table


def ceilings_line(document: Row) -> str:
    """The device and its ceilings, in one sentence."""
    conditions, ceilings = document["conditions"], document["ceilings"]
    return (
        f"{conditions['device']}, {conditions['dtype']}, {conditions['threads']} threads: "
        f"{ceilings['flops_per_second'] / 1e12:.3g} TFLOP/s in a large matrix "
        f"product, {ceilings['bytes_per_second'] / 1e9:.3g} GB/s in a copy, "
        f"{1e6 * conditions['launch_seconds']:.1f} µs for one operation"
    )


def _ms(milliseconds: float) -> str:
    return duration(milliseconds / 1000)


def _times_or_none(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"
