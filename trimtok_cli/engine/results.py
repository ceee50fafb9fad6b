"""From what the language model said, or from an error, to a Result: the counts, the times, and what
the record is to note.
"""

import logging
from dataclasses import replace

from trimtok_cli.data import Result, Sample, Setting, TokenCounts
from trimtok_cli.device import out_of_memory, peak_bytes
from trimtok_cli.engine.prompt_stage import layer_mean
from trimtok_cli.errors import SampleError, sentence
from trimtok_cli.generation.types import Done
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.positions import shortage, steps_that_fit
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.tokens import Prompt

NO_MEMORY = (
    "the memory does not hold it, even alone; fewer or smaller pictures (--max-pixels), or a "
    "smaller --keep, may fit"
)

log = logging.getLogger("trimtok")


def result_of(adapter: Adapter, pruner: Pruner | None, done: Done) -> Result:
    """An answer ends where the model's positions end, as at the most new tokens that it may
    have.
    """
    each, said, limit, notes = done.key, done.said, adapter.num_positions, []
    text, left = len(each.prompt) - len(each.prompt.visual), len(each.kept[-1].tokens)
    dense = text + each.num_visual if adapter.renumbers else each.positions
    if shortage(limit, dense, visual=each.num_visual):
        notes.append(
            f"not pruned, the prompt takes {dense:,} positions and the model has {limit:,}: "
            "dense cannot answer it"
        )
    steps = steps_that_fit(limit, each.positions, said.steps)
    if steps < said.steps:
        said = replace(said, ids=said.ids[:steps], steps=steps, finish="length")
        notes.append(f"the answer was cut off where the model's {limit:,} positions end")
    counts = TokenCounts(
        text, each.num_visual, left, layer_mean(each.kept, adapter.num_layers), said.steps
    )
    return Result(
        each.prepared.sample,
        each.prepared.question,
        adapter.decode(said.ids),
        setting_of(pruner),
        counts,
        replace(each.seconds, prefill=done.times.prefill, decode=done.times.decode),
        peak_bytes(adapter.device),
        each.kept,
        each.grid,
        said.finish,
        "",
        each.prepared.inputs.text,
        each.prepared.media,
        done.beside,
        tuple(notes),
    )


def failure(sample: Sample, pruner: Pruner | None, ask: Ask, error: Exception) -> Result:
    """The row of a sample that could not be answered."""
    log.debug("sample %s failed", sample.id, exc_info=error)
    said = NO_MEMORY if out_of_memory(error) else sentence(error)
    return Result(sample, question_of(sample, ask), setting=setting_of(pruner), error=said)


def positions_used(adapter: Adapter, prompt: Prompt) -> int:
    """Up to a prompt's last position. The ids of M-RoPE are not its tokens' numbers, and pruning
    does not change them.
    """
    return len(prompt) if adapter.renumbers else int(prompt.positions.max()) + 1


def too_long(adapter: Adapter, each) -> SampleError | None:
    """The error of a sample (an engine's `Waiting`) whose prompt, pruned, is longer than the
    model's positions.
    """
    said = shortage(adapter.num_positions, each.positions, visual=len(each.prompt.visual))
    return SampleError(said) if said else None


def question_of(sample: Sample, ask: Ask) -> str:
    return ask.prompt if sample.question is None else sample.question


def setting_of(pruner: Pruner | None) -> Setting:
    return Setting() if pruner is None else pruner.setting
