"""The table of a grid as files: Markdown, CSV, JSON and a small HTML page of one document.

Knows no model.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from trimtok_cli.outputs.whole_files import write_whole

NAMES = ("table.json", "table.md", "table.csv", "table.html")

Figures = Mapping[str, Any]


def write_tables(document: Figures, folder: Path) -> None:
    """Writes all four files, each whole or not at all. Raises OSError."""
    texts = (
        json.dumps(document, indent=1, ensure_ascii=False) + "\n",
        markdown(document),
        comma_separated(document),
        page(document),
    )
    for name, text in zip(NAMES, texts, strict=True):
        write_whole(folder / name, text)


def heading(block: Figures) -> str:
    """What the rows of a block have in common."""
    if not block["keep"]:
        return "dense"
    return f"keep {block['keep']}" + (
        ", the mean over layers" if block["counts"] == "layer-mean" else ""
    )


def number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def score(cell: Figures) -> str:
    """A score with its interval, or why there is none."""
    if cell["score"] is None:
        return "failed" if cell["error"] else ""
    text = f"{number(cell['score'])} [{number(cell['low'])}, {number(cell['high'])}]"
    if cell["answered"] < cell["samples"]:
        text += f" ({cell['answered']} of {cell['samples']})"
    return text


def share(cell: Figures) -> str:
    """Per cent of dense, and the published figure."""
    relative = "" if cell["relative"] is None else f"{cell['relative']:.1f} %"
    published = "" if cell["published"] is None else f"(published: {cell['published']:g})"
    return " ".join(filter(None, (relative, published)))


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def milliseconds(document: Figures) -> str:
    """The heading of the times: those of a CPU say so."""
    devices = {device for row in document["rows"] for device in row["devices"]}
    return "ms (CPU)" if devices == {"cpu"} else "ms"


def notes(document: Figures) -> list[str]:
    """What the figures mean, and what is missing, a sentence each."""
    found = [
        "Scores with 95 % intervals, pictures drawn anew; the best of each block in bold; behind "
        "them per cent of dense. Average: the mean of these shares.",
        "Tokens: visual tokens left. Layer mean: visual tokens in a decoder layer, on average; a "
        "method that prunes inside the language model has more than it keeps. Milliseconds: "
        "medians of whole samples, means over the columns.",
    ]
    columns = (f"{name}: {each['metric']}" for name, each in document["columns"].items())
    found.append("Metrics: " + ", ".join(columns) + ".")
    return found + _missing(document)


def _missing(document: Figures) -> list[str]:
    """What has no score, and why; what failed, and what was not asked yet."""
    found: dict[str, list[str]] = {}
    for row in document["rows"]:
        for name, cell in row["cells"].items():
            if cell["score"] is None and cell["error"]:
                said = f"{row['setting']} has no score: {cell['error'].rstrip('.')}"
            elif cell["answered"] < cell["samples"]:
                said = f"{row['setting']} is not over"
            elif cell["failed"]:
                said = f"{row['setting']}: {cell['failed']} answers failed, and count as wrong"
            else:
                continue
            found.setdefault(f"{said} ({row['model']})", []).append(name)
    return [f"{said}: {', '.join(names)}." for said, names in found.items()]


def markdown(document: Figures) -> str:
    """Every block with its scores, then the differences to dense and to the reference."""
    columns = list(document["columns"])
    lines = [f"# {document['title']}", ""]
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        lines += [f"## {model}", ""]
        head = ["method", "tokens", "layer mean", milliseconds(document), *columns, "average"]
        lines += _markdown_row(head), _markdown_row(["---", *["---:"] * (len(head) - 1)])
        for block in document["blocks"]:
            if block["model"] == model:
                lines += _markdown_block(document, block, columns)
        lines.append("")
        for name in ("dense", "reference"):
            lines += _markdown_differences(document, model, name, columns)
    lines += [f"- {note}" for note in notes(document)]
    return "\n".join(lines) + "\n"


def _markdown_block(document: Figures, block: Figures, columns: Sequence[str]) -> list[str]:
    lines = []
    if block["keep"]:
        lines.append(_markdown_row([f"*{heading(block)}*", *[""] * (len(columns) + 4)]))
    for place in block["rows"]:
        row = document["rows"][place]
        cells = [row["label"], *costs(row)]
        for name in columns:
            text = score(row["cells"][name])
            text = f"**{text}**" if place in block["best"].get(name, ()) else text
            cells.append(" ".join(filter(None, (text, share(row["cells"][name])))))
        average = "" if row["average"] is None else f"{row['average']:.1f} %"
        best = place in block["best"].get("average", ())
        lines.append(_markdown_row([*cells, f"**{average}**" if best and average else average]))
    return lines


def costs(row: Figures) -> list[str]:
    """Tokens kept, their mean over layers, and milliseconds."""
    return [
        number(row[name], digits) for name, digits in (("kept", 0), ("layer_mean", 0), ("ms", 1))
    ]


def _markdown_differences(
    document: Figures, model: str, name: str, columns: Sequence[str]
) -> list[str]:
    """The differences to dense, or to the reference, with their p values."""
    rows = [row for row in document["rows"] if row["model"] == model]
    found = [
        [difference(row["cells"][column][f"against_{name}"]) for column in columns] for row in rows
    ]
    if not any(text for texts in found for text in texts):
        return []
    other = document["reference"] if name == "reference" else name
    lines = [f"Difference to {other}, on the same samples:", ""]
    lines += _markdown_row(["setting", *columns]), _markdown_row(["---", *["---:"] * len(columns)])
    lines += [
        _markdown_row([row["setting"], *texts])
        for row, texts in zip(rows, found, strict=True)
        if any(texts)
    ]
    return [*lines, ""]


def difference(found: Figures | None) -> str:
    """`+1.20 [0.40, 2.00], p 0.004 (mcnemar)`."""
    if found is None:
        return ""
    ends = f"[{number(found['low'])}, {number(found['high'])}]"
    return f"{found['difference']:+.2f} {ends}, p {p_value(found['p'])} ({found['test']})"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


CSV_COLUMNS = (
    "model",
    "label",
    "setting",
    "method",
    "keep",
    "counts",
    "column",
    "dataset",
    "metric",
    "score",
    "low",
    "high",
    "relative",
    "published",
    "samples",
    "answered",
    "failed",
    "dense",
    "kept",
    "layer_mean",
    "total_ms",
    "batch_size",
    "device",
    "error",
)


def comma_separated(document: Figures) -> str:
    """A line for each cell, with both differences."""
    tests = [
        f"{name}_{figure}"
        for name in ("dense", "reference")
        for figure in ("difference", "low", "high", "p", "test")
    ]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *(f"against_{name}" for name in tests)])
    for row in document["rows"]:
        for name, cell in row["cells"].items():
            known = {
                **{key: value for key, value in row.items() if key != "cells"},
                **cell,
                "column": name,
                "dataset": document["columns"][name]["dataset"],
                "total_ms": cell["ms"].get("total"),
            }
            against = [
                (cell[f"against_{other}"] or {}).get(figure)
                for other, _, figure in (test.partition("_") for test in tests)
            ]
            writer.writerow([*(known[column] for column in CSV_COLUMNS), *against])
    return text.getvalue()


def page(document: Figures) -> str:
    """The tables as an HTML page without scripts. Its text is other people's and is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "heading": heading,
        "score": score,
        "share": share,
        "costs": costs,
        "difference": difference,
    }
    return environment.get_template("grid.html.j2").render(
        document=document,
        columns=list(document["columns"]),
        models=list(dict.fromkeys(row["model"] for row in document["rows"])),
        milliseconds=milliseconds(document),
        notes=notes(document),
    )
