"""compare.jsonl: one sample answered in several ways, dense first."""

from typing import Any

from trimtok_cli.data import Comparison
from trimtok_cli.outputs.record import record


def comparison_record(comparison: Comparison, model: str) -> dict[str, Any]:
    """One line: the question, the references, and under `runs` a full record for each setting,
    dense first.
    """
    records = [record(result, model=model, run="compare") for result in comparison.results]
    shared = {key: records[0][key] for key in ("question_id", "image", "prompt")}
    dense = comparison.results[0].answer
    runs = [
        {
            "setting": result.setting.name,
            "method": result.method,
            "text": row["text"],
            "identical_to_dense": not result.error and result.answer == dense,
            "kept_tokens": list(result.kept[-1].tokens) if result.kept else [],
            "metadata": row["metadata"],
        }
        for result, row in zip(comparison.results, records, strict=True)
    ]
    return {**shared, "reference": list(comparison.sample.answers), "runs": runs}
