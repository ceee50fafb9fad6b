"""The data sets by name."""

from trimtok_cli.errors import UsageError
from trimtok_cli.evaluation.datasets.base import Dataset
from trimtok_cli.evaluation.datasets.captions import COCO, NOCAPS
from trimtok_cli.evaluation.datasets.chartqa import CHARTQA
from trimtok_cli.evaluation.datasets.gqa import GQA
from trimtok_cli.evaluation.datasets.jsonl import JSONL
from trimtok_cli.evaluation.datasets.mmbench import MMBENCH
from trimtok_cli.evaluation.datasets.mme import MME
from trimtok_cli.evaluation.datasets.mmmu import MMMU
from trimtok_cli.evaluation.datasets.ocrbench import OCRBENCH
from trimtok_cli.evaluation.datasets.pope import POPE
from trimtok_cli.evaluation.datasets.scienceqa import SCIENCEQA
from trimtok_cli.evaluation.datasets.textvqa import TEXTVQA
from trimtok_cli.evaluation.datasets.vqa import OKVQA, VQAV2
from trimtok_cli.wording import brief, suggestion

_ALL = (
    COCO,
    NOCAPS,
    VQAV2,
    OKVQA,
    TEXTVQA,
    GQA,
    POPE,
    MME,
    MMBENCH,
    MMMU,
    SCIENCEQA,
    CHARTQA,
    OCRBENCH,
    JSONL,
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def dataset_named(name: str) -> Dataset:
    """The data set of that name. UsageError, with all names, where there is none."""
    if name in DATASETS:
        return DATASETS[name]
    raise UsageError(
        f"--dataset: there is no data set {brief(name)}{suggestion(name, DATASETS)}; "
        f"choose one of {', '.join(DATASETS)}."
    )
