"""Whole runs from files to answers: the share of them that is no arithmetic, and their memory.

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
from trimtok_cli.data import Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask

EVERY = 100  # inputs between looks at the memory in use


def overhead_rows(
    adapter: Adapter, task: OverheadPart, bench: Bench, folder: Path
) -> Iterator[dict[str, Any]]:
    """Whole runs from files to answers. model: seconds in which the model's modules were at work
    (see `ModuleTime`).
    """
    files = samples_of(task, folder, bench.seed)
    pruners = {
        method: make_pruner(method, task.keep, task.params, bench.seed) for method in task.method
    }
    ask = Ask(task.prompt, max_new_tokens=task.new_tokens)
    for batch in task.batch:
        found = {method: {"wall": [], "model": []} for method in pruners}
        for number in range(-1, bench.rounds):  # one run of each to warm up
            for method in list(pruners) if number % 2 == 0 else list(pruners)[::-1]:
                samples = stream(
                    files, min(2 * batch, task.samples) if number < 0 else task.samples
                )
                wall, model = _whole_run(adapter, pruners[method], samples, ask, batch)
                if number >= 0:
                    found[method]["wall"].append(wall)
                    found[method]["model"].append(model)
        for method, seconds in found.items():
            yield {
                "key": f"{adapter.name}, {method}, batch {batch}, {task.new_tokens} new tokens, "
                f"{task.samples} samples",
                "model": adapter.name,
                "method": method,
                "batch": batch,
                "samples": task.samples,
                "seconds": seconds,
                "error": "",
            }


def _whole_run(
    adapter: Adapter, pruner, samples: Iterator[Sample], ask: Ask, batch: int
) -> tuple[float, float]:
    """Seconds of the run, and of the model in it.

    On a device with a queue of its own a module's call returns early: there the model's seconds are
    those of the run's own clock.
    """
    start, stages = time.perf_counter(), 0.0
    with (
        ModuleTime(adapter) if adapter.device.type == "cpu" else contextlib.nullcontext() as modules
    ):
        for result in answer_all(adapter, pruner, samples, ask, batch_size=batch):
            if result.error:
                raise ModelError(result.error)
            stages += result.seconds.encode + result.seconds.prefill + result.seconds.decode
    wall = time.perf_counter() - start
    return wall, stages if modules is None else modules.seconds


class ModuleTime:
    """Seconds spent inside the modules of the tower, the projector, the decoder and the head, in
    this thread. A context manager.

    Layers are watched as well as what holds them, so that it does not matter who calls them; only
    the outermost counts.
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
            # The tower's run ends in front of the decoder by an exception: the hook behind must be
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
    """Resident memory of one run over as many inputs as the largest of `inputs`, which read the
    same few files again.
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
    """So many samples over the same files, made one at a time."""
    for number, sample in enumerate(islice(cycle(files), count)):
        yield Sample(number, images=sample.images, names=sample.names)
