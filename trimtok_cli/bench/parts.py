"""The measurements beside the grid: the pruner alone, and the decode loops.

Compared ways take turns, as in the grid. Knows no YAML file.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from trimtok_cli.bench.batch import Loops, generate_all, make_pruner
from trimtok_cli.bench.grid import filled, prepared, samples_of
from trimtok_cli.bench.spec import Bench, DecodePart, PrunerPart
from trimtok_cli.device import wait
from trimtok_cli.engine.answer import encode, prune
from trimtok_cli.engine.loops import LOOPS, prunes_in_decoder
from trimtok_cli.errors import UsageError
from trimtok_cli.generation.types import Loop, Request
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.pruners.kernels.greedy import repmax
from trimtok_cli.pruners.kernels.reference import repmax_reference
from trimtok_cli.pruners.registry import reads_tower
from trimtok_cli.tokens import Prompt

# Width of tokens whose products cost next to nothing, so that the loop's cost is left.
NARROW = 16


def take_turns(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, bench: Bench
) -> tuple[dict[str, list[float]], dict]:
    """Seconds of every way, round by round, and every way's last result.

    The order of the ways is turned round after every round (ABBA).
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {name: way() for _ in range(bench.warmups) for name, way in ways.items()}
    for number in range(bench.rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            wait(device)
            start = time.perf_counter()
            results[name] = ways[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


@torch.inference_mode()
def pruner_row(
    part: PrunerPart, device: torch.device, dtype: torch.dtype, bench: Bench
) -> dict[str, Any]:
    """The reference of the greedy stage, sample by sample, against the fast form on the batch.

    Both run a second time on narrow tokens, whose cost is the loop alone.
    """
    visual, narrow = (
        image_like(part.batch, part.candidates, width, bench.seed).to(device, dtype)
        for width in (part.width, NARROW)
    )
    ways = {
        "literal": lambda: [repmax_reference(sample.float(), part.keep) for sample in visual],
        "ours": lambda: repmax(visual, part.keep),
        "literal_loop": lambda: [repmax_reference(sample.float(), part.keep) for sample in narrow],
        "our_loop": lambda: repmax(narrow, part.keep),
    }
    seconds, results = take_turns(ways, device, bench)
    key = f"{part.candidates} candidates of {part.width}, {part.keep} kept, batch {part.batch}"
    return {
        "key": key,
        **vars(part),
        "seconds": seconds,
        "identical": results["ours"].tolist() == results["literal"],
        "error": "",
    }


def image_like(batch: int, count: int, width: int, seed: int) -> Tensor:
    """(batch, count, width) float32 tokens that resemble an image's.

    The sum of a common mean, a smooth field of few dimensions over the tokens, and noise.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

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
    """The loops against transformers' `generate` on the same embeddings: prefill and new tokens.

    Raises UsageError for a method that prunes inside the language model.
    """
    pruner = make_pruner(task.method, task.keep, task.params, bench.seed)
    if prunes_in_decoder(adapter, pruner):
        raise UsageError(
            f"decode: {task.method} prunes inside the language model, where `generate` "
            "cannot be its equal."
        )
    samples = samples_of(task, folder, bench.seed)
    known, _ = prepared(adapter, samples[: max(task.batch)], task.prompt)
    for batch in task.batch:
        encoded = encode(adapter, filled(known, batch), signals=reads_tower(pruner))
        requests = prune(adapter, pruner, encoded)
        prompts = [request.prompt for request in requests]
        ways = {}
        for name in LOOPS:
            loops = Loops(adapter, decode=name, new_tokens=task.new_tokens, batch=batch)
            ways[name] = partial(_ids, loops.of(pruner), requests)
        opponents = {
            name: partial(library_ids, adapter, prompts, cache=cache)
            for name, cache in caches(adapter.device).items()
        }
        with endless(adapter, task.new_tokens):
            seconds, results = take_turns(ways | opponents, adapter.device, bench)
        key = (
            f"{adapter.name}, {task.method}@{task.keep}, batch {batch}, {task.new_tokens} "
            "new tokens"
        )
        same = {name: results[name] == results["generate"] for name in results}
        same.pop("generate")
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


def _ids(loop: Loop, requests: Sequence[Request]) -> list[list[int]]:
    return [list(answer.generated.ids) for answer in generate_all(loop, requests)]


def caches(device: torch.device) -> dict[str, str | None]:
    """The library's ways that the loops are compared with, each with its kind of cache.

    On CUDA `generate` compiles and records its steps over a static cache, as the loops record
    theirs; a growing cache alone would be no fair opponent there.
    """
    ways: dict[str, str | None] = {"generate": None}
    return ways | {"generate, static cache": "static"} if device.type == "cuda" else ways


def library_ids(
    adapter: Adapter, prompts: Sequence[Prompt], *, cache: str | None = None
) -> list[list[int]]:
    """The new ids by `generate` itself, under `endless`; `generate` works out positions.

    `generate` wants its prompts padded on the left. cache: the library's name for a kind of cache;
    None is one that grows.
    """
    parts = [prompt.embeds for prompt in prompts]
    embeds = pad_sequence(parts, batch_first=True, padding_side="left")
    ones = [part.new_ones(len(part), dtype=torch.long) for part in parts]
    mask = pad_sequence(ones, batch_first=True, padding_side="left")
    options = {} if cache is None else {"cache_implementation": cache}
    return adapter.model.generate(inputs_embeds=embeds, attention_mask=mask, **options).tolist()


@contextlib.contextmanager
def endless(adapter: Adapter, new_tokens: int) -> Iterator[None]:
    """Makes `generate` greedy and without an end token: exactly `new_tokens` new tokens."""
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
