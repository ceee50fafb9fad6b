"""Loops and their rules in one call, with the defaults that most tests want."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Result, Seconds
from trimtok_cli.engine import answer
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import loop_for, rules_for
from trimtok_cli.generation import plain as plain_loop
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.plain import Plain
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import Finished, Generated, Loop, Request, run
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.sampling import Sampling
from trimtok_cli.tokens import Prompt


def rules(
    adapter: Any,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: bool = True,
) -> Rules:
    return Rules(
        adapter.model,
        adapter.processor.tokenizer,
        name=adapter.name,
        end_ids=adapter.end_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
    )


def generated_by_library(model: Any, steps: int, **inputs: Any) -> tuple[Tensor, Tensor]:
    """(sequences, logits (B, steps, V)) of the library's own greedy `generate`, past any end."""
    out = model.generate(
        max_new_tokens=steps,
        **{"do_sample": False, "eos_token_id": None, **inputs},
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences, torch.stack(out.logits, 1)


def generate(
    adapter: Any, prompts: Sequence[Prompt], *, keep_logits: bool = False, **options: Any
) -> tuple[list[Generated], Seconds]:
    """One batch by the plain loop: the oracle of the other loops."""
    return plain_loop.generate(adapter, prompts, rules(adapter, **options), keep_logits=keep_logits)


def loop_of(loop_class: type, adapter: Any, *, batch_limit: int | None = 1, **options: Any) -> Any:
    """A loop of this class; options are those of `rules` and of the loop."""
    own = {
        name: options.pop(name)
        for name in ("keep_logits", "prefill_tokens", "lag")
        if name in options
    }
    return loop_class(adapter, rules(adapter, **options), batch_limit=batch_limit, **own)


def continuous(adapter: Any, **options: Any) -> Continuous:
    return loop_of(Continuous, adapter, **options)


def plain(adapter: Any, **options: Any) -> Plain:
    return loop_of(Plain, adapter, **options)


def requests(prompts: Iterable[Prompt]) -> list[Request]:
    return [Request(prompt, number) for number, prompt in enumerate(prompts)]


def run_all(loop: Loop, prompts: Iterable[Prompt]) -> dict[int, Finished]:
    """Each prompt's end by its number; each ends once."""
    finished = list(run(loop, requests(prompts)))
    by_number = {end.request.number: end for end in finished}
    assert len(by_number) == len(finished), "a prompt ended twice"
    return by_number


def finish(
    adapter: Any, pruner: Pruner | None, encoded: Sequence[Encoded], ask: Ask
) -> list[Result]:
    """The results of a batch through the loop that a run would choose for it."""
    loop = loop_for(
        adapter, pruner, rules_for(adapter, ask), decode=ask.decode, batch_limit=len(encoded)
    )
    return answer.finish(adapter, pruner, encoded, loop)
