"""compare.jsonl: one line for each sample, answered in several ways, dense first.

A line holds what the page shows, so that the page can be made again without the model.
"""

from typing import Any

from trimtok_cli.data import Comparison
from trimtok_cli.outputs.jsonl import line_of
from trimtok_cli.outputs.line_file import LineFile
from trimtok_cli.outputs.record import record
from trimtok_cli.outputs.token_layout import strips_of

OWN = ("question_id", "image", "prompt", "reference", "runs", "layout")


class ComparisonLines:
    """The lines of compare.jsonl. model, run: names that every record repeats."""

    def __init__(self, file: LineFile, *, model: str, run: str) -> None:
        self.file, self.model, self.run = file, model, run

    def write(self, comparison: Comparison) -> None:
        self.file.write(line_of(comparison_record(comparison, model=self.model, run=self.run)))

    def close(self, failed: bool) -> None:
        self.file.close(failed)


def comparison_record(comparison: Comparison, *, model: str, run: str) -> dict[str, Any]:
    """The record of one line: the question, the references, `runs`, and where the tokens lie.

    `runs` holds a full record for each setting, dense first. Further columns of the input follow;
    the name of one that clashes gets `input_` before it.
    """
    records = [record(result, model=model, run=run) for result in comparison.results]
    shared = {key: records[0][key] for key in ("question_id", "image", "prompt")}
    dense = comparison.results[0].answer
    runs = [
        {
            "setting": result.setting.name,
            "method": result.method,
            "text": row["text"],
            "identical_to_dense": not result.error and result.answer == dense,
            "kept_tokens": list(result.kept[-1].tokens) if result.kept else [],
            "earlier_stages": [
                {"layer": each.layer, "tokens": list(each.tokens)} for each in result.kept[:-1]
            ],
            "metadata": row["metadata"],
        }
        for result, row in zip(comparison.results, records, strict=True)
    ]
    row = {
        **shared,
        "reference": list(comparison.sample.answers),
        "runs": runs,
        "layout": {
            "kinds": list(comparison.kinds),
            "strips": strips_of(comparison.boxes, comparison.visual_index, comparison.frame),
        },
    }
    for key, value in comparison.sample.extra.items():
        row[key if key not in row else f"input_{key}"] = value
    return row
