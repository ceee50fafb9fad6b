"""The data sets by name."""

from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset
from trimtok_cli.evaluation.datasets.jsonl import JSONL
from trimtok_cli.evaluation.datasets.pope import POPE
from trimtok_cli.wording import brief, suggestion

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (POPE, JSONL)}


def dataset_named(name: str) -> Dataset:
    """The data set of that name. UsageError, with all names, where there is none."""
    if name in DATASETS:
        return DATASETS[name]
    raise UsageError(
        f"--dataset: there is no data set {brief(name)}{suggestion(name, DATASETS)}; "
        f"choose one of {', '.join(DATASETS)}."
    )
