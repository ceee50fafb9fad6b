"""The device under a benchmark: its measured ceilings, its names and clocks, the memory in use.

Knows no model.
"""

import os
import platform
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trimtok_cli.bench.roofline import Ceilings
from trimtok_cli.device import wait
from trimtok_cli.outputs.manifest import versions

GPU_FACTS = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
)

CLOCKS = {
    "cuda": "the host's, after waiting for the device before and behind every stage",
    "mps": "the host's, after waiting for the device before and behind every stage",
}


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best rates of several large matrix products and of copies far larger than any cache."""
    large = device.type == "cuda"
    side, numbers = (8192, 2**29) if large else (1024, 2**24)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    multiply = _best(lambda: torch.mm(left, right, out=product), device, 30 if large else 8)
    source, target = (torch.ones(numbers, device=device, dtype=dtype) for _ in range(2))
    copy = _best(lambda: target.copy_(source), device, 10)
    return Ceilings(2 * side**3 / multiply, 2 * source.nbytes / copy)


def _best(work, device: torch.device, times: int) -> float:
    """Seconds of the fastest of `times` calls.

    On CUDA the calls stand in one queue, and no launch is waited for in between.
    """
    for _ in range(3):
        work()
    if device.type != "cuda":
        seconds = []
        for _ in range(times):
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    return min(a.elapsed_time(b) for a, b in pairwise(events)) / 1000


@torch.inference_mode()
def launch_cost(device: torch.device, times: int = 2000) -> float:
    """Host seconds of one operation on a single number: eager code's price, whatever the size."""
    number = torch.zeros(1, device=device)
    for _ in range(100):
        number.add_(1)
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        number.add_(1)
    passed = time.perf_counter() - start
    wait(device)
    return passed / times


def conditions(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Everything that a figure depends on besides the program."""
    name = f"{device.type}: {_processor()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    facts: dict[str, Any] = {
        "device": name,
        "device_kind": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "launch_seconds": launch_cost(device),
        # Which clock the seconds are of: a stage's time ends when the device has done its work.
        "clock": CLOCKS.get(device.type, "the host's"),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = os.getloadavg()[0]  # another program's work is in every figure
    if device.type == "cuda":
        facts |= {
            "cuda": torch.version.cuda,
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory,
        }
        facts["gpu"] = _gpu_facts(device)
    return facts


def _gpu_facts(device: torch.device) -> dict[str, str]:
    """The facts that the driver's own tool reports; empty without this tool."""
    for name in _names(device):
        command = [
            "nvidia-smi",
            f"--query-gpu={','.join(GPU_FACTS)}",
            "--format=csv,noheader",
            f"--id={name}",
        ]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        values = [value.strip() for value in found.stdout.splitlines()[0].split(",")]
        return {"asked_as": name, **dict(zip(GPU_FACTS, values, strict=False))}
    return {}


def _names(device: torch.device) -> list[str]:
    """The card's own names, under which the driver's tool may know it.

    The tool counts all cards of the machine, torch only those that CUDA_VISIBLE_DEVICES leaves. A
    part of a card (MIG) has a UUID that the tool does not take, but the address of its card.
    """
    card = torch.cuda.get_device_properties(device)
    names = [f"GPU-{str(card.uuid).removeprefix('GPU-')}"] if hasattr(card, "uuid") else []
    if hasattr(card, "pci_bus_id"):
        place = card.pci_domain_id, card.pci_bus_id, card.pci_device_id
        names.append("{:08x}:{:02x}:{:02x}.0".format(*place))
    return names


def _processor() -> str:
    """The CPU's name as the system writes it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def most_resident() -> int:
    """The most bytes that this process ever had in memory; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int | None:
    """Bytes in memory now of this process and all that it started; None without /proc."""
    if not Path("/proc/self/statm").exists():
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    pending, seen = [os.getpid()], set()
    total = 0
    while pending:
        process = pending.pop()
        if process in seen:
            continue
        seen.add(process)
        try:
            total += page * int(Path(f"/proc/{process}/statm").read_text().split()[1])
            for children in Path(f"/proc/{process}/task").glob("*/children"):
                pending += map(int, children.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended in the meantime
    return total
