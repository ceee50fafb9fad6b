"""Where the replicas of a run are: a GPU each, or the CPU, by the words of --gpus and --processes.

A replica sees its own GPU alone, as the environment's CUDA_VISIBLE_DEVICES says which GPUs there
are. Knows no model.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from trimtok_cli.child_process import num_cores
from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief

ALL = "all"
MOST = 256  # processes of one run
VISIBLE = "CUDA_VISIBLE_DEVICES"

# A number; or what `nvidia-smi -L` shows of a GPU, or of a part of one.
_NAME = re.compile(r"\d{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+", re.ASCII)


@dataclass(frozen=True)
class Place:
    """One replica's device, and the variables of the environment that its process is given."""

    name: str
    device: str
    environment: Mapping[str, str]


def parse_gpus(text: str) -> list[str]:
    """The names in --gpus: numbers, UUIDs, MIG names, or `all`. Raises UsageError."""
    names = [name.strip() for name in text.split(",")]
    if names == [ALL]:
        return names
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--gpus must be all, or numbers or UUIDs of GPUs with commas between (0,1), got "
                f"{brief(name)!r}."
            )
    if len(set(names)) < len(names):
        raise UsageError(f"--gpus {brief(text)} names a GPU twice: name each once.")
    return names


def gpu_places(text: str) -> list[Place]:
    """A place for each GPU that --gpus names. Raises UsageError."""
    names = parse_gpus(text)
    if names == [ALL]:
        visible = visible_gpus()
        names = list(map(str, range(_count() if visible is None else len(visible))))
        if not names:
            raise UsageError(
                "--gpus all: there is no GPU here; --device cpu runs without, and --processes N "
                "beside it in N processes."
            )
    chosen = [gpu(name, "--gpus") for name in names]
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"--gpus {brief(text)} names a GPU twice: name each once.")
    return [
        Place(f"GPU {name}", "cuda", {VISIBLE: own})
        for name, own in zip(names, chosen, strict=True)
    ]


def cpu_places(number: int) -> list[Place]:
    """Places on the CPU, which share its cores out unless OMP_NUM_THREADS does."""
    own = {VISIBLE: ""}
    if "OMP_NUM_THREADS" not in os.environ:
        own["OMP_NUM_THREADS"] = str(max(1, num_cores() // number))
    return [Place(f"process {each}", "cpu", own) for each in range(1, number + 1)]


def gpu(name: str, option: str) -> str:
    """The value of CUDA_VISIBLE_DEVICES for one GPU.

    Numbers count the GPUs that are visible now, as cuda:N does. Raises UsageError for a number
    beyond them; option: begins its sentence.
    """
    visible = visible_gpus()
    if visible is None or not name.isdecimal():
        return name
    if int(name) >= len(visible):
        raise UsageError(
            f"{option} {name}: {VISIBLE} leaves {len(visible)} to be used, which count from 0."
        )
    return visible[int(name)]


def visible_gpus() -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None where it is not set, and all are visible."""
    value = os.environ.get(VISIBLE)
    return None if value is None else list(_valid(value))


def _valid(value: str) -> Iterator[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that is none, as CUDA reads them."""
    entries = (entry.strip() for entry in value.split(","))
    return takewhile(lambda entry: entry and not entry.startswith("-"), entries)


def _count() -> int:
    import torch

    return torch.cuda.device_count()
