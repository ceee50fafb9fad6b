"""Whole runs from files to answers: their time outside the model, and their memory.

Knows no YAML file.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from trimtok_cli.bench.batch import make_pruner
from trimtok_cli.bench.grid import samples_of
from trimtok_cli.bench.hardware import resident
from trimtok_cli.bench.spec import Bench, MemoryPart, OverheadPart
from trimtok_cli.child_process import usual_workers
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask

# Inputs between looks at the memory in use.
EVERY = 100


def overhead_rows(
    adapter: Adapter, task: OverheadPart, bench: Bench, folder: Path
) -> Iterator[dict[str, Any]]:
    """A row for every method and batch: seconds of whole runs, and of the model in them.

    model: the seconds in which the model's modules were at work, see `ModuleTime`.
    """
    files = samples_of(task, folder, bench.seed)
    pruners = {
        method: make_pruner(method, task.keep, task.params, bench.seed) for method in task.method
    }
    ask = Ask(task.prompt, max_new_tokens=task.new_tokens)
    workers = workers_of(task, adapter.device)
    for batch in task.batch:
        seconds: dict[str, dict[str, list[float]]] = {
            method: {"wall": [], "model": []} for method in pruners
        }
        for number in range(-1, bench.rounds):  # one run of each to warm up
            for method in list(pruners) if number % 2 == 0 else list(pruners)[::-1]:
                count = min(2 * batch, task.samples) if number < 0 else task.samples
                samples = stream(files, count)
                wall, model = _whole_run(adapter, pruners[method], samples, ask, batch, workers)
                if number >= 0:
                    seconds[method]["wall"].append(wall)
                    seconds[method]["model"].append(model)
        for method in pruners:
            yield {
                "key": f"{adapter.name}, {method}, batch {batch}, {task.new_tokens} new tokens, "
                f"{task.samples} samples",
                "model": adapter.name,
                "method": method,
                "batch": batch,
                "samples": task.samples,
                "workers": workers,
                "seconds": seconds[method],
                "error": "",
            }


def workers_of(task: OverheadPart, device: torch.device) -> int:
    """The worker processes of a run: `auto` is none on a CPU, which has no core to spare."""
    if task.workers != "auto":
        return int(task.workers)
    return 0 if device.type == "cpu" else usual_workers()


def _whole_run(
    adapter: Adapter, pruner, samples: Iterator[Sample], ask: Ask, batch: int, workers: int
) -> tuple[float, float]:
    """Seconds of the run, and of the model in it.

    On a device with a queue of its own a module's call returns early. There the run's own clock
    gives the model's seconds.
    """
    start, stages = time.perf_counter(), 0.0
    on_cpu = adapter.device.type == "cpu"
    with ModuleTime(adapter) if on_cpu else contextlib.nullcontext() as modules:
        results = answer_all(adapter, pruner, samples, ask, batch_size=batch, workers=workers)
        for result in results:
            if result.error:
                raise ModelError(result.error)
            stages += result.seconds.encode + result.seconds.prefill + result.seconds.decode
    wall = time.perf_counter() - start
    return wall, stages if modules is None else modules.seconds


class ModuleTime:
    """A context manager: seconds inside the tower, projector, decoder and head, in this thread.

    Layers are watched as well as the modules that hold them, so that it does not matter who calls
    them; only the outermost call counts.
    """

    def __init__(self, adapter: Adapter) -> None:
        layers = [
            layer
            for module in adapter.model.modules()
            if isinstance(module, torch.nn.ModuleList)
            for layer in module
        ]
        self.modules = dict.fromkeys(
            [*adapter.model.model.children(), *layers, adapter.model.lm_head]
        )
        self.depth, self.seconds, self.start = 0, 0.0, 0.0

    def __enter__(self) -> "ModuleTime":
        self.hooks = []
        for module in self.modules:
            self.hooks.append(module.register_forward_pre_hook(self._enter))
            # The tower's run ends in front of the decoder by an exception: the second hook must be
            # called all the same.
            self.hooks.append(module.register_forward_hook(self._leave, always_call=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, *_: object) -> None:
        if not self.depth:
            self.start = time.perf_counter()
        self.depth += 1

    def _leave(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self.seconds += time.perf_counter() - self.start


def memory_row(adapter: Adapter, task: MemoryPart, bench: Bench, folder: Path) -> dict[str, Any]:
    """Resident memory of one run over as many inputs as the largest of `inputs`.

    The inputs read the same few files again and again.
    """
    counts = sorted(task.inputs)
    key = f"{adapter.name}, {task.method}@{task.keep}, batch {task.batch}, {counts[-1]} inputs"
    row: dict[str, Any] = {
        "key": key,
        "model": adapter.name,
        "resident": [],
        "most_bytes": 0,
        "error": "",
    }
    if resident() is None:
        return row | {"error": "this system does not say how much memory a process has"}
    pruner = make_pruner(task.method, task.keep, task.params, bench.seed)
    samples = stream(samples_of(task, folder, bench.seed), counts[-1])
    ask, start = Ask(task.prompt, max_new_tokens=task.new_tokens), time.perf_counter()
    for number, result in enumerate(
        answer_all(adapter, pruner, samples, ask, batch_size=task.batch), 1
    ):
        if result.error:
            raise ModelError(result.error)
        if number in counts or (number % EVERY == 0 and number > counts[0]):
            now = resident() or 0
            row["most_bytes"] = max(row["most_bytes"], now)
            if number in counts:
                row["resident"].append({"inputs": number, "bytes": now})
    return row | {"seconds": time.perf_counter() - start}


def stream(files: Sequence[Sample], count: int) -> Iterator[Sample]:
    """`count` samples over the same files, made one at a time."""
    for number, sample in enumerate(islice(cycle(files), count)):
        yield Sample(number, images=sample.images, names=sample.names)
