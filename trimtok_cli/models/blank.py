"""A checkpoint without its weights: the Adapter of its config and processor.

It says where visual tokens lie and which settings hold, and can answer nothing. Asks no server:
what is not on this machine is not looked at.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from trimtok_cli.errors import UsageError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.catalog import locate
from trimtok_cli.models.checkpoint import read_settings
from trimtok_cli.models.folder import Folder
from trimtok_cli.models.hub import cached
from trimtok_cli.models.loading import read_checkpoint
from trimtok_cli.models.registry import ADAPTERS
from trimtok_cli.models.weight_files import weight_bytes


class _Bare:
    """A network whose weights have shapes alone; small tensors beside them are on the CPU.

    Generation settings are tried on such tensors, which have to hold numbers.
    """

    device = torch.device("cpu")

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


@dataclass(frozen=True)
class Blank:
    """An Adapter without weights. weight_bytes: what they would take once they are loaded."""

    adapter: Adapter
    weight_bytes: int


def folder_here(model: str, flag: str = "--model", *, revision: str | None = None) -> Path | None:
    """The folder of a checkpoint on this machine, its hub's cache included; None where it is not.

    An adapter's base model has to be here as well. Raises UsageError for a name of nothing, and
    Broken for settings that cannot be read.
    """
    place = locate(model, flag)
    folder = place if isinstance(place, Path) else cached(place, revision)
    if folder is None:
        return None
    settings = read_settings(folder)
    base = settings.get("adapter_config.json", {}).get("base_model_name_or_path")
    if "config.json" in settings or not isinstance(base, str):
        return folder
    try:
        return folder if folder_here(base, "its base model") else None
    except UsageError:  # loading the folder says it in a sentence
        return folder


def blank_model(
    path: Path, model: str, *, dtype: torch.dtype, trust_remote_code: bool = False
) -> Blank:
    """The checkpoint in a folder, without its weights. Raises ModelError as `load_model` does."""
    folder = Folder(path, f"--model {model}", trusted=trust_remote_code)
    found = read_checkpoint(folder, model)
    with torch.device("meta"):
        network = AutoModelForImageTextToText.from_config(
            found.config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    if "generation_config.json" in found.settings:
        network.generation_config = found.base.load(
            "generation_config.json", GenerationConfig.from_pretrained
        )
    adapter = ADAPTERS[found.config.model_type](
        _Bare(network), found.processor, name=model, revision="local"
    )
    return Blank(adapter, weight_bytes(found.base.path, found.settings, dtype.itemsize))
