"""The first minutes on a GPU: facts about the machine, a profile, and choices held side by side.

`python -m trimtok_cli.bench.first_minutes PART` writes one JSON; samples/gpu.sh calls every part,
each with its own time limit. A part runs on a CPU as well, so that it is tested where no GPU is.
"""

import argparse
import json
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from trimtok_cli.bench.batch import Loops, make_pruner, run_batch
from trimtok_cli.bench.choices import PROMPT, Facts, from_files, held_beside, times
from trimtok_cli.bench.grid import filled, prepared, samples_of
from trimtok_cli.bench.hardware import conditions
from trimtok_cli.bench.run import load
from trimtok_cli.bench.spec import Bench, Grid
from trimtok_cli.bench.variants import VARIANTS
from trimtok_cli.device import peak_bytes, pick_device, pick_dtype, release
from trimtok_cli.errors import sentence
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Prepared


def machine(options: argparse.Namespace, facts: Facts) -> None:
    """What the machine is: versions, the card, its compiler, its free memory, a launch's cost."""
    device = pick_device(options.device)
    facts |= conditions(device, pick_dtype("auto", device))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    facts |= {
        "python": sys.executable,
        "machine": platform.platform(),
        # Triton compiles its launchers where it runs.
        "compiler": shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
        "python_header": header.is_file(),
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "flash_attention": torch.backends.cuda.flash_sdp_enabled(),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }
    if device.type == "cuda":
        facts["capability"] = torch.cuda.get_device_capability(device)
        facts["free_bytes"], facts["total_bytes"] = torch.cuda.mem_get_info(device)


def profile(options: argparse.Namespace, facts: Facts) -> None:
    """Kernels of tower, pruning, prefill and eight steps, at each batch; waits; recordings."""
    with ready(options) as (adapter, known):
        for batch in options.batch:
            facts[f"batch {batch}"] = _profiled(adapter, filled(known, batch), options)


def choices(options: argparse.Namespace, facts: Facts) -> None:
    """Every variant against the usual way, in turn, on the same inputs."""
    with ready(options) as (adapter, known):
        rows = facts["rows"] = []
        for variant in VARIANTS:
            if options.variants and variant.name not in options.variants:
                continue
            batch = variant.batch or max(options.batch)
            row: Facts = {"name": variant.name, "why": variant.why, "batch": batch, "error": ""}
            rows.append(row)
            try:
                row["seconds"] = held_beside(adapter, variant, known, options)
            except Exception as error:  # the other variants can still be measured
                row["error"] = sentence(error)
            release(adapter.device)


def files(options: argparse.Namespace, facts: Facts) -> None:
    """A run from files to answers with workers and as many answers at once as memory allows.

    fraction: of the device's memory that the run may take, as on a smaller card.
    """
    device = pick_device(options.device)
    if device.type == "cuda" and options.fraction < 1:
        torch.cuda.set_per_process_memory_fraction(options.fraction)  # of the current device
    with ready(options, count=8) as (adapter, known):
        facts |= from_files(adapter, known, options, batch_size=options.batch_size or None)
    facts |= {"fraction": options.fraction, "peak_bytes": peak_bytes(device)}


PARTS: dict[str, Callable[[argparse.Namespace, Facts], None]] = {
    "machine": machine,
    "profile": profile,
    "choices": choices,
    "files": files,
}


@contextmanager
def ready(
    options: argparse.Namespace, *, count: int | None = None
) -> Iterator[tuple[Adapter, list[Prepared]]]:
    """A model with random weights, and inputs for it."""
    bench = Bench(device=options.device, random_weights=True)
    with tempfile.TemporaryDirectory(prefix="trimtok-first-") as name:
        adapter = load(bench, options.model, lambda line: None)
        samples = samples_of(Grid(image=options.image), Path(name), bench.seed)
        yield adapter, prepared(adapter, samples[:count], PROMPT)[0]


def _profiled(adapter: Adapter, inputs: Sequence[Prepared], options: argparse.Namespace) -> Facts:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    pruner = make_pruner("trimtokenator", options.keep, {}, 0)
    loop = Loops(adapter, decode="continuous", new_tokens=9, batch=len(inputs)).of(None)
    first = run_batch(adapter, pruner, inputs, loop)  # pays for kernels and caches
    activities = [ProfilerActivity.CPU]
    if adapter.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with waits_said(adapter.device) as said:
        run_batch(adapter, pruner, inputs, loop)
    with profiler(activities=activities) as seen:
        spent = run_batch(adapter, pruner, inputs, loop)
    on_device = adapter.device.type == "cuda"
    events = [each for each in seen.events() if (each.device_type.name == "CUDA") == on_device]
    kernels: Counter[str] = Counter(each.name for each in events)
    longest: Counter[str] = Counter()
    for each in events:
        longest[each.name] += each.device_time_total if on_device else each.self_cpu_time_total
    busy = longest.total()
    names = Counter(each.name for each in seen.events())
    return {
        "first": times([first]),
        "sample": times([spent]),
        "kernels": dict(kernels.most_common(60)),
        "kernel_seconds": {name: value / 1e6 for name, value in longest.most_common(60)},
        "launches": sum(kernels.values()),
        "busy_share": busy / 1e6 / spent.wall,
        "allocations": sum(count for name, count in names.items() if "cudaMalloc" in name),
        "waits": dict(said.most_common(40)),
        "recordings": recordings(adapter, inputs, options),
    }


@contextmanager
def waits_said(device: torch.device) -> Iterator[Counter[str]]:
    """A block in which torch says where the host waits for the device: places by their count."""
    places: Counter[str] = Counter()
    if device.type != "cuda":
        yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places.update("/".join(Path(each.filename).parts[-3:]) + f":{each.lineno}" for each in said)


def recordings(adapter: Adapter, inputs: Sequence[Prepared], options: argparse.Namespace) -> Facts:
    """Seconds and bytes of recording the first decode step, as more than a run without one."""
    if adapter.device.type != "cuda":
        return {}
    pruner = make_pruner("trimtokenator", options.keep, {}, 0)
    loop = Loops(adapter, decode="continuous", new_tokens=13, batch=len(inputs)).of(None)
    found = []
    for _ in range(3):
        before, start = torch.cuda.memory_reserved(adapter.device), time.perf_counter()
        spent = run_batch(adapter, pruner, inputs, loop)
        found.append(
            {
                "wall": time.perf_counter() - start,
                "more_reserved": torch.cuda.memory_reserved(adapter.device) - before,
                "replayed": spent.replayed,
                "eager": spent.eager,
            }
        )
    return {"rounds": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one part, and writes its JSON.

    A part that fails or is interrupted writes what it has, and why, and ends with 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="llava-1.5-7b")
    parser.add_argument("--image", default="640x480")
    parser.add_argument("--keep", default="64")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", help="the choices to hold beside; all if none")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=0, help="0 is what memory allows")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--fraction", type=float, default=1.0)
    options = parser.parse_args(arguments)
    start, facts = time.perf_counter(), Facts()
    document: Facts = {"part": options.part, "error": "", "facts": facts}
    try:
        PARTS[options.part](options, facts)
    except KeyboardInterrupt:
        document["error"] = "interrupted"
    except Exception as error:
        document["error"] = f"{type(error).__name__}: {sentence(error)}"
    document["seconds"] = time.perf_counter() - start
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"{options.part}: {document['error'] or 'done'}, {document['seconds']:.0f} s")
    sys.exit(1 if document["error"] else 0)


if __name__ == "__main__":
    main()
