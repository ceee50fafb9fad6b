"""Loops and their rules in one call, as most tests want them."""

from collections.abc import Iterable, Sequence
from typing import Any

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


def generate(
    adapter: Any, prompts: Sequence[Prompt], *, keep_logits: bool = False, **options: Any
) -> tuple[list[Generated], Seconds]:
    """The oracle of the loops: one batch by the plain one."""
    made = rules(adapter, **options)
    return plain_loop.generate(adapter, prompts, made, keep_logits=keep_logits)


def loop_of(kind: type, adapter: Any, *, batch_limit: int | None = 1, **options: Any) -> Any:
    """A loop of this kind; options of `rules` and of the loop alike."""
    own = {name: options.pop(name) for name in ("keep_logits", "prefill_tokens") if name in options}
    return kind(adapter, rules(adapter, **options), batch_limit=batch_limit, **own)


def continuous(adapter: Any, **options: Any) -> Continuous:
    return loop_of(Continuous, adapter, **options)


def plain(adapter: Any, **options: Any) -> Plain:
    return loop_of(Plain, adapter, **options)


def requests(prompts: Iterable[Prompt]) -> list[Request]:
    return [Request(prompt, number) for number, prompt in enumerate(prompts)]


def run_all(loop: Loop, prompts: Iterable[Prompt]) -> dict[int, Finished]:
    """What became of each prompt, by its place; each ends once."""
    finished = list(run(loop, requests(prompts)))
    by_number = {each.request.number: each for each in finished}
    assert len(by_number) == len(finished), "a prompt ended twice"
    return by_number


def finish(
    adapter: Any, pruner: Pruner | None, encoded: Sequence[Encoded], ask: Ask
) -> list[Result]:
    """A batch through the loop that a run would take for it."""
    loop = loop_for(
        adapter, pruner, rules_for(adapter, ask), decode=ask.decode, batch_limit=len(encoded)
    )
    return answer.finish(adapter, pruner, encoded, loop)
