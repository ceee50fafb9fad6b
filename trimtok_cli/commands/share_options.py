"""The options that share a run out: among GPUs or processes of this machine, and among machines.

Knows no model, and imports no ray.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.config import INPUT, MODEL, RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.on_ray.cluster import check_address, parse_resources
from trimtok_cli.readers.shards import Shard, parse_shard
from trimtok_cli.replicas.places import (
    MOST,
    VISIBLE,
    Place,
    cpu_places,
    gpu,
    gpu_places,
    parse_gpus,
    visible_gpus,
)
from trimtok_cli.wording import brief

Gpus = Annotated[
    str | None,
    typer.Option(
        "--gpus",
        help="GPUs that answer side by side, a process each: 0,1 or all, or UUIDs.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="With --device cpu, or --engine ray: so many processes side by side, each with the "
        "whole model.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        help="With --engine ray: the cluster; auto for the one that this machine is part of.",
        rich_help_panel=MODEL,
        show_default="RAY_ADDRESS, else a new one of this machine",
    ),
]

RayResources = Annotated[
    list[str] | None,
    typer.Option(
        "--ray-resources",
        help="With --engine ray: NAME=AMOUNT that each process asks for, such as CPU=8 or "
        "memory=64e9; may be repeated.",
        rich_help_panel=MODEL,
        show_default="GPU=1, or CPU=1 on a CPU",
    ),
]

ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        help="The part of the inputs to answer: 2/8 is the second of eight. Or env: what torchrun "
        "or a Slurm array says. `trimtok merge` puts them together.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ShareOptions:
    """How a run is shared out. Raises UsageError for values that mean nothing."""

    gpus: Gpus = None
    processes: NumProcesses = None
    ray_address: RayAddress = None
    ray_resources: RayResources = None
    shard: ShardOption = None

    def __post_init__(self) -> None:
        if self.gpus is not None:
            parse_gpus(self.gpus)
        if self.processes is not None and not 1 <= self.processes <= MOST:
            raise UsageError(
                f"--processes must be at least 1 and at most {MOST}, got {brief(self.processes)}."
            )
        if self.gpus is not None and self.processes is not None:
            raise UsageError("--gpus and --processes contradict each other: give one.")
        parse_resources(self.ray_resources)
        if self.ray_address is not None:
            check_address(self.ray_address)
        if self.shard is not None:
            parse_shard(self.shard)
        super().__post_init__()  # type: ignore[misc]

    @property
    def part(self) -> Shard | None:
        """The shard that is answered, None for the whole."""
        return None if self.shard is None else parse_shard(self.shard)

    def check_device(self, config: RunConfig) -> None:
        """Raises UsageError if --device or --engine contradicts these options."""
        if config.engine == "ray":
            self._check_on_ray(config)
            return
        if self.ray_address is not None or self.ray_resources:
            raise UsageError("--ray-address and --ray-resources are for --engine ray: add it.")
        if self.gpus is not None and config.device not in ("auto", "cuda"):
            raise UsageError(
                f"--gpus and --device {config.device} contradict each other: give one; for "
                "several processes on a CPU, --device cpu --processes N."
            )
        if self.processes is not None and config.device != "cpu":
            raise UsageError(
                "--processes is for the CPU: add --device cpu, or name GPUs with --gpus."
            )

    def _check_on_ray(self, config: RunConfig) -> None:
        if self.gpus is not None:
            raise UsageError(
                "--gpus names GPUs of this machine: with --engine ray, --processes N says how many "
                "are to be used."
            )
        if config.device not in ("auto", "cuda", "cpu"):
            raise UsageError(
                f"--engine ray and --device {config.device} contradict each other: Ray says which "
                "GPU each process has; leave it out, or give --device cpu."
            )
        if config.device == "cpu" and self.processes is None:
            raise UsageError("--engine ray --device cpu: say how many with --processes N.")

    def places(self) -> list[Place]:
        """Where replicas are to run; empty for a run in this process. May import torch."""
        if self.gpus is not None:
            return gpu_places(self.gpus)
        return [] if self.processes is None else cpu_places(self.processes)

    def shard_folder(self, out: str | None) -> str | None:
        """The folder of the shard in `out`; `out` itself without a shard. Raises UsageError."""
        part = self.part
        if part is None or out == "-":
            return out
        if out is None or Path(out).suffix.lower() in (".jsonl", ".json"):
            raise UsageError(
                "--shard: name one folder for all shards with --out; each makes its own folder "
                "in it."
            )
        return os.path.join(out, part.folder) if out.strip() else out

    def take_own_gpu(self, config: RunConfig) -> None:
        """Leaves this process one GPU where torchrun started one for each, and nobody named any."""
        local = os.environ.get("LOCAL_RANK", "")
        if self.shard != "env" or self.gpus is not None or not local.isdecimal():
            return
        visible = visible_gpus()
        if config.device in ("auto", "cuda") and (visible is None or len(visible) > 1):
            os.environ[VISIBLE] = gpu(local, "LOCAL_RANK")
