"""The grid: in every cell dense and pruned take turns, in one process, on the same prepared inputs.

A round runs every setting once; the next round runs them in the opposite order (ABBA), so that a
drift of the machine's speed falls on all alike. A setting that fails is a row that says so, and the
others go on. Knows no YAML file.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from trimtok_cli.bench.batch import STAGES, Loops, Spent, make_pruner, run_batch
from trimtok_cli.bench.hardware import most_resident
from trimtok_cli.bench.images import pictures
from trimtok_cli.bench.roofline import Ceilings, Text, Vision
from trimtok_cli.bench.spec import Bench, Grid, Task
from trimtok_cli.data import Sample, Setting
from trimtok_cli.device import free_bytes, out_of_memory, release, reset_peak
from trimtok_cli.errors import sentence
from trimtok_cli.generation.capacity import cache_bytes
from trimtok_cli.generation.types import Loop
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.prepare.sample import Ask, Prepared, prepare
from trimtok_cli.pruners.base import Pruner

Row = dict[str, Any]

# Runs of each setting before it is measured, at most. They go on until every decode step of every
# setting, and every prefill that is recorded, is replayed: a round that runs kernel by kernel
# measures something else.
MOST_WARMUPS = 32


@dataclass(frozen=True)
class Cell:
    """The conditions that dense and pruned share."""

    task: Grid
    batch: int
    new_tokens: int
    decode: str

    def key(self, model: str) -> str:
        """The name of the cell in tables and in bench.json."""
        tokens = f"{self.new_tokens} new {'token' if self.new_tokens == 1 else 'tokens'}"
        return f"{model}, {self.task.image}, batch {self.batch}, {tokens}, {self.decode} decode"


def pruners(task: Grid, seed: int) -> list[Pruner | None]:
    """Dense, then every method with every budget, each once."""
    built = (
        make_pruner(method, keep, task.params, seed)
        for method, keep in product(task.method, task.keep)
    )
    pruned = {pruner.setting.name: pruner for pruner in built if pruner is not None}
    return [None, *pruned.values()]


def grid_rows(
    adapter: Adapter, task: Grid, bench: Bench, ceilings: Ceilings, folder: Path
) -> Iterator[Row]:
    """A row for every setting of every cell of this model.

    Raises the errors of reading the pictures.
    """
    samples = samples_of(task, folder, bench.seed)
    for batch, new_tokens, decode in product(task.batch, task.new_tokens, task.decode):
        cell = Cell(task, batch, new_tokens, decode)
        yield from _measure(adapter, cell, samples, bench, ceilings)


def samples_of(task: Task, folder: Path, seed: int) -> list[Sample]:
    """The task's pictures as samples; made pictures lie in `folder`."""
    files = pictures(task.image, folder, seed=seed)
    return [Sample(number, images=(file,), names=(file.name,)) for number, file in enumerate(files)]


def prepared(
    adapter: Adapter, samples: Sequence[Sample], prompt: str
) -> tuple[list[Prepared], float]:
    """The samples' inputs, prepared one by one in this process, and a sample's mean seconds."""
    start = time.perf_counter()
    inputs = [prepare(adapter.preprocessor, sample, Ask(prompt)) for sample in samples]
    return inputs, (time.perf_counter() - start) / len(samples)


def filled(known: Sequence[Prepared], batch: int) -> list[Prepared]:
    """A batch of `batch` inputs, which repeats the known ones where they are fewer."""
    return [replace(known[number % len(known)], number=number) for number in range(batch)]


def _measure(
    adapter: Adapter, cell: Cell, samples: list[Sample], bench: Bench, ceilings: Ceilings
) -> list[Row]:
    """All rows of a cell."""
    known, _ = prepared(adapter, samples[: cell.batch], cell.task.prompt)
    inputs = filled(known, cell.batch)
    loops = Loops(adapter, decode=cell.decode, new_tokens=cell.new_tokens, batch=cell.batch)
    pairs = [
        (pruner, _row(adapter, cell, Setting.of(pruner)))
        for pruner in pruners(cell.task, bench.seed)
    ]

    for pruner, row in pairs if adapter.device.type == "cuda" else ():
        if pruner is None and (reason := too_large(adapter, cell, inputs)):
            row["error"] = reason

    def once(pruner: Pruner | None, row: Row, loop: Loop | None = None) -> Spent | None:
        try:
            return run_batch(adapter, pruner, inputs, loop or loops.of(pruner))
        except Exception as error:
            row["error"] = in_words(error)
        # The handler has ended, and so the failed run's tensors are not held any more.
        loops.renew()
        release(adapter.device)
        return None

    cuda = adapter.device.type == "cuda"
    # The first run pays for kernels and caches of the process, the second is watched.
    for watched in (False, True) if cuda else ():
        for pruner, row in pairs:
            release(adapter.device)
            reset_peak(adapter.device)
            if not row["error"] and once(pruner, row, loops.new(pruner)) and watched:
                row["memory"] = peaks(adapter.device)
    passes, eager = 0, True
    while passes < bench.warmups or (bench.warmups > 0 and eager and passes < MOST_WARMUPS):
        passes, eager = passes + 1, False
        for pruner, row in pairs:
            if not row["error"] and (spent := once(pruner, row)) is not None:
                eager |= spent.eager + spent.prefills_eager > 0
                if not cuda:
                    row["memory"] = peaks(adapter.device)
    preparing = []
    for number in range(cell.task.rounds or bench.rounds):
        preparing.append(prepared(adapter, samples[: cell.batch], cell.task.prompt)[1])
        for pruner, row in pairs if number % 2 == 0 else pairs[::-1]:
            if not row["error"] and (spent := once(pruner, row)) is not None:
                _note(row, spent, adapter, [sample.inputs for sample in inputs], ceilings)
    return [row | {"prepare": preparing} for _, row in pairs]


def too_large(adapter: Adapter, cell: Cell, inputs: Sequence[Prepared]) -> str:
    """Why dense cannot run in this cell: its keys and values alone are larger than free memory.

    Empty where they are not. A pruned cache is smaller, and is tried.
    """
    length = max(len(each.inputs.input_ids) for each in inputs) + cell.new_tokens
    needed = cell.batch * length * cache_bytes(adapter.config, adapter.dtype)
    free = free_bytes(adapter.device)
    if needed <= free:
        return ""
    return f"left out: its cache needs {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"


def _row(adapter: Adapter, cell: Cell, setting: Setting) -> Row:
    key = cell.key(adapter.name)
    return {
        "key": f"{key}: {setting.name}",
        "cell": key,
        "setting": setting.name,
        "model": adapter.name,
        "method": setting.method,
        "keep": setting.keep,
        "baseline": setting == Setting(),
        "batch": cell.batch,
        "new_tokens": cell.new_tokens,
        "decode": cell.decode,
        "image": cell.task.image,
        "reference": _reference(cell, setting),
        "error": "",
        "memory": {},
        "tokens": {},
        "work": {},
        "steps": {"replayed": [], "eager": []},
        "prefills": {"replayed": [], "eager": []},
        "seconds": {name: [] for name in (*STAGES, "wall")},
    }


def _reference(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Published figures for a setting, with their source."""
    figures = cell.task.reference.get("rows", {}).get(setting.method_keep)
    return {"source": cell.task.reference.get("source", ""), **figures} if figures else {}


def _note(
    row: Row, spent: Spent, adapter: Adapter, inputs: Sequence[Inputs], ceilings: Ceilings
) -> None:
    """Adds one round's seconds to the row; the first round also its token counts and work."""
    seconds = asdict(spent)
    for name, values in row["seconds"].items():
        values.append(seconds[name])
    for name, counts in row["steps"].items():
        counts.append(seconds[name])
    for name, counts in row["prefills"].items():
        counts.append(seconds[f"prefills_{name}"])
    if not row["tokens"]:
        count = len(spent.visual)
        row["tokens"] = {
            name: sum(getattr(spent, name)) / count for name in ("visual", "kept", "text")
        }
        lengths = [text + kept for text, kept in zip(spent.text, spent.kept, strict=True)]
        row["work"] = work(adapter, inputs, lengths, row["new_tokens"], ceilings)


def work(
    adapter: Adapter,
    inputs: Sequence[Inputs],
    lengths: Sequence[float],
    new_tokens: int,
    ceilings: Ceilings,
) -> dict[str, Any]:
    """FLOPs of a batch's stages, and their roofline: the fewest seconds (`floor`) they can take.

    lengths: the pruned prompts' tokens, as means over decoder layers. Empty where the tower is not
    known.
    """
    config = adapter.model.config
    size = torch.finfo(adapter.dtype).bits // 8
    text = Text.of(config.get_text_config())
    vision = Vision.of(config, has_cls=adapter.tower().has_cls)
    if vision is None:
        return {}
    patch = config.vision_config.patch_size
    patches = [count for sample in inputs for count in tower_patches(sample, patch)]
    return {
        "flops": {"encode": vision.encode(patches), "prefill": sum(map(text.prefill, lengths))},
        "floor": {
            "encode": vision.encode_seconds(ceilings, patches, size),
            "prefill": text.prefill_seconds(ceilings, lengths, size),
            "decode": text.decode_seconds(ceilings, lengths, new_tokens, size),
        },
    }


def tower_patches(inputs: Inputs, patch: int) -> list[int]:
    """The number of patches of every tile or frame that the tower sees as one."""
    grids = inputs.tensors.get("image_grid_thw")
    if grids is not None:
        return [
            int(rows * columns) for frames, rows, columns in grids.tolist() for _ in range(frames)
        ]
    pixels = inputs.tensors["pixel_values"]
    height, width = pixels.shape[-2:]
    return [(height // patch) * (width // patch)] * (pixels.numel() // (3 * height * width))


def peaks(device: torch.device) -> dict[str, int]:
    """Peak bytes: on a GPU allocated and reserved since the last reset, else this process's."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
        }
    return {"process": most_resident()}


def in_words(error: Exception) -> str:
    """An error in one sentence."""
    return "out of memory" if out_of_memory(error) else sentence(error)
