"""The records of generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.tokens import Prompt


@dataclass(frozen=True)
class Generated:
    """ids without the end token; steps counts it. finish: stop, length or error. logits (steps, V)
    only where asked for.
    """

    ids: tuple[int, ...]
    steps: int
    finish: str
    logits: Tensor | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Times:
    prefill: float
    decode: float


@dataclass(frozen=True)
class Done:
    """One answer, or the error that a prompt ends in even alone. beside: the most answers that ran
    with it, itself counted.
    """

    key: Any
    said: Generated | None
    times: Times
    beside: int
    error: Exception | None = None


Take = Callable[[int], Sequence[tuple[Any, Prompt | Exception]]]

"""take(count) hands over up to `count` prompts, each with a key to know it by, or what became of
one instead; none at the end.
"""


def apart(
    taken: Sequence[tuple[Any, Prompt | Exception]], rules: Rules | None = None
) -> tuple[list[tuple[Any, Prompt]], list[Done]]:
    """The prompts, and those that are lost already, or by `rules` leave no room for an answer."""
    prompts, lost = [], []
    for key, found in taken:
        try:
            if isinstance(found, Exception):
                raise found
            if rules is not None:
                rules.limit(found)
            prompts.append((key, found))
        except Exception as error:
            lost.append(Done(key, None, Times(0.0, 0.0), 1, error))
    return prompts, lost


def done_of(key: Any, said: Generated, times: Times, beside: int) -> Done:
    """What became of a prompt: its answer, or what kept it from one."""
    return Done(key, None if said.error else said, times, beside, said.error)


def generated(answer: Answer, logits: Tensor | None = None) -> Generated:
    """logits: (at least so many steps, V); what a finished answer went on to say beside its batch
    does not count.
    """
    steps = len(answer.ids)
    return Generated(
        answer.said, steps, answer.finish, None if logits is None else logits[:steps], answer.error
    )
