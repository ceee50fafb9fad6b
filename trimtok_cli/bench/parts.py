"""The measurements beside the grid: the pruner alone, the decode loop, a whole run's overhead, its
memory. Knows no YAML file.

Whatever is compared takes turns, as in the grid.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from trimtok_cli.bench.batch import DECODERS, Decoder, make_pruner
from trimtok_cli.bench.grid import prepared, samples_of
from trimtok_cli.bench.hardware import resident
from trimtok_cli.bench.spec import Bench, DecodePart, MemoryPart, OverheadPart, PrunerPart
from trimtok_cli.data import Sample
from trimtok_cli.device import wait
from trimtok_cli.engine.loops import goes_inside
from trimtok_cli.engine.prompt_stage import reduce_prompts
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.generation.padding import pad_left
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.kernels.greedy import repmax
from trimtok_cli.pruners.kernels.reference import literal_repmax
from trimtok_cli.pruners.registry import reads_tower
from trimtok_cli.tokens import Prompt

NARROW = 16  # numbers of a token whose products cost next to nothing: what is left is the loop

EVERY = 100  # inputs between looks at the memory in use


def take_turns(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, bench: Bench
) -> tuple[dict[str, list[float]], dict]:
    """Seconds of every way, round by round, in turn and back again (ABBA); and what each returned
    last.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said = {name: way() for _ in range(bench.warmups) for name, way in ways.items()}
    for number in range(bench.rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            wait(device)
            start = time.perf_counter()
            said[name] = ways[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds, said


@torch.inference_mode()
def pruner_row(
    part: PrunerPart, device: torch.device, dtype: torch.dtype, bench: Bench
) -> dict[str, Any]:
    """The literal greedy stage sample by sample, against ours on the batch; both as loops alone on
    narrow tokens.
    """
    visual, narrow = (
        image_like(part.batch, part.candidates, width, bench.seed).to(device, dtype)
        for width in (part.width, NARROW)
    )
    ways = {
        "literal": lambda: [literal_repmax(each.float(), part.keep) for each in visual],
        "ours": lambda: repmax(visual, part.keep),
        "literal_loop": lambda: [literal_repmax(each.float(), part.keep) for each in narrow],
        "our_loop": lambda: repmax(narrow, part.keep),
    }
    seconds, said = take_turns(ways, device, bench)
    key = f"{part.candidates} candidates of {part.width}, {part.keep} kept, batch {part.batch}"
    return {
        "key": key,
        **vars(part),
        "seconds": seconds,
        "identical": said["ours"].tolist() == said["literal"],
        "error": "",
    }


def image_like(batch: int, count: int, width: int, seed: int) -> Tensor:
    """(batch, count, width) float32: a mean common to all, a smooth field of few dimensions over
    the tokens, and noise.
    """
    dice = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=dice)

    rough = normal(batch, max(count // 12, 2), 24).transpose(1, 2)
    smooth = torch.nn.functional.interpolate(rough, count, mode="linear").transpose(1, 2)
    return (
        0.5 * normal(batch, 1, width)
        + smooth @ normal(batch, 24, width) / 24**0.5
        + 0.7 * normal(batch, count, width)
    )


@torch.inference_mode()
def decode_rows(
    adapter: Adapter, task: DecodePart, bench: Bench, folder: Path
) -> Iterator[dict[str, Any]]:
    """Our loops against transformers' `generate` on the same embeddings: prefill and all new
    tokens.
    """
    pruner = make_pruner(task.method, task.keep, task.params, bench.seed)
    if goes_inside(adapter, pruner):
        raise UsageError(
            f"decode: {task.method} prunes inside the language model, where `generate` "
            "cannot be its equal."
        )
    samples = samples_of(task, folder, bench.seed)
    known, _ = prepared(adapter, samples[: max(task.batch)], task.prompt)
    for batch in task.batch:
        inputs = [known[number % len(known)] for number in range(batch)]
        tokens = adapter.encode_many(inputs, taps=reads_tower(pruner))
        dense = [adapter.embed(each, visual) for each, visual in zip(inputs, tokens, strict=True)]
        prompts, _ = reduce_prompts(
            pruner, dense, tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
        )
        ways = {
            name: lambda decode=make(adapter, task.new_tokens), prompts=prompts: _ids(
                decode, prompts
            )
            for name, make in DECODERS.items()
        }
        with endless(adapter, task.new_tokens):
            ways["generate"] = lambda prompts=prompts: library_ids(adapter, prompts)
            seconds, said = take_turns(ways, adapter.device, bench)
        key = (
            f"{adapter.name}, {task.method}@{task.keep}, batch {batch}, {task.new_tokens} "
            "new tokens"
        )
        same = {name: said[name] == said["generate"] for name in DECODERS}
        yield {
            "key": key,
            "model": adapter.name,
            "method": task.method,
            "keep": task.keep,
            "batch": batch,
            "new_tokens": task.new_tokens,
            "prompt_tokens": [len(prompt) for prompt in prompts],
            "seconds": seconds,
            "identical": same,
            "error": "",
        }


def _ids(decode: Decoder, prompts: Sequence[Prompt]) -> list[list[int]]:
    answers, _ = decode(prompts)
    return [list(answer.ids) for answer in answers]


def library_ids(adapter: Adapter, prompts: Sequence[Prompt]) -> list[list[int]]:
    """By `generate` itself, under `endless`; positions are those that it works out."""
    embeds, mask, _ = pad_left(prompts)
    mask = (
        torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        if mask is None
        else mask
    )
    return adapter.model.generate(inputs_embeds=embeds, attention_mask=mask).tolist()


@contextlib.contextmanager
def endless(adapter: Adapter, new_tokens: int) -> Iterator[None]:
    """`generate` is greedy, and knows no end token, so that it makes exactly so many new ones."""
    before = adapter.model.generation_config
    adapter.model.generation_config = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=before.pad_token_id or 0,
        bos_token_id=before.bos_token_id,
    )
    try:
        yield
    finally:
        adapter.model.generation_config = before


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
