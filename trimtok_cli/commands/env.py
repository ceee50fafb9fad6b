"""trimtok env: the facts that a bug report needs. Knows no model; torch names the devices."""

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli import __version__
from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.errors import EXIT_OK
from trimtok_cli.resolve import PREFIX
from trimtok_cli.wording import shown

EXAMPLES = "Examples:\n\ntrimtok env\n\ntrimtok env --json > environment.json"

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pillow",
    "av",
    "decord",
    "typer",
    "rich",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object, sizes in bytes.")]


@guarded
def env(as_json: Json = False, debug: o.Debug = False) -> int:
    """The command `trimtok env`; its help is in `cli.COMMANDS`."""
    found = facts()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return EXIT_OK
    lines = _lines(found)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        typer.echo(f"{name:<{width}}  {shown(value)}")
    return EXIT_OK


def facts() -> dict[str, Any]:
    """Everything that `trimtok env` shows, ready for JSON; sizes in bytes, None if not known."""
    return {
        "trimtok": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": {"count": os.cpu_count(), "usable": _usable_cpus()},
        "memory_bytes": _memory(),
        **_torch_facts(),
        "hub_cache": _hub_cache(),
        "variables": {
            name: _writable(value)
            for name, value in sorted(os.environ.items())
            if name.startswith(PREFIX)
        },
    }


def _torch_facts() -> dict[str, Any]:
    """The build, threads and devices of torch, or the error that torch raised."""
    found: dict[str, Any] = {"cuda_build": None, "threads": None, "devices": [], "torch_error": ""}
    try:
        import torch

        found["cuda_build"] = torch.version.cuda
        found["threads"] = torch.get_num_threads()
        for number in range(torch.cuda.device_count()):
            found["devices"].append(_cuda_device(torch, number))
        if torch.backends.mps.is_available():
            found["devices"].append({"device": "mps", "name": platform.machine()})
    except Exception as error:  # a bug report is often about a broken torch
        found["torch_error"] = f"{type(error).__name__}: {error}"
    return found


def _cuda_device(torch: Any, number: int) -> dict[str, Any]:
    major, minor = torch.cuda.get_device_capability(number)
    free, total = torch.cuda.mem_get_info(number)
    return {
        "device": f"cuda:{number}",
        "name": torch.cuda.get_device_name(number),
        "capability": f"{major}.{minor}",
        "memory_bytes": total,
        "free_bytes": free,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int | None:
    """The number of CPUs that this process may use, in many containers fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not Linux
        return None


def _hub_cache() -> dict[str, Any]:
    """The folder of the hub's cache, whether it exists, and the free space on its disk."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE).absolute()
    found: dict[str, Any] = {"folder": _writable(str(folder)), "free_bytes": None}
    for place in (folder, *folder.parents):
        try:
            return found | {"free_bytes": shutil.disk_usage(place).free}
        except OSError:
            continue
    return found


def _writable(text: str) -> str:
    """The text with bytes that are not UTF-8 escaped, so that any output can take it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as (name, value) for people."""
    packages = {name: version or "not installed" for name, version in found["packages"].items()}
    if found["packages"]["torch"]:
        build = f"CUDA {found['cuda_build']}" if found["cuda_build"] else "no CUDA"
        packages["torch"] += f" ({found['torch_error'] or build})"
    cpus, threads = found["cpus"], found["threads"]
    cache = found["hub_cache"]
    return [
        ("trimtok", found["trimtok"]),
        ("Python", found["python"]),
        ("platform", found["platform"]),
        *packages.items(),
        ("CPUs", f"{cpus['count']}, usable {cpus['usable']}, torch threads {threads}"),
        ("memory", _size(found["memory_bytes"])),
        *((each["device"], _device_line(each)) for each in found["devices"]),
        *([] if found["devices"] else [("GPU", "none")]),
        ("hub cache", f"{cache['folder']}, {_size(cache['free_bytes'])} free"),
        *found["variables"].items(),
    ]


def _device_line(device: dict[str, Any]) -> str:
    if "memory_bytes" not in device:
        return device["name"]
    free, total = _size(device["free_bytes"]), _size(device["memory_bytes"])
    return f"{device['name']}, capability {device['capability']}, {free} of {total} free"


def _size(count: int | None) -> str:
    return "not known" if count is None else f"{count / 2**30:.1f} GiB"
