"""Answers under way, and launched steps whose tokens the host has not read yet.

Knows no model, no cache and no sampling.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.data import Seconds
from trimtok_cli.generation.on_the_way import OnTheWay
from trimtok_cli.generation.rules import Answer
from trimtok_cli.generation.types import Finished, Generated
from trimtok_cli.tokens import Prompt


@dataclass
class Row:
    """One answer under way. Its slot is its index in the list of answers under way.

    launched: the tokens that the device was asked for, at least as many as the answer has.
    """

    request: Any
    answer: Answer
    launched: int = 0
    logits: list[Tensor] = field(default_factory=list)
    prefill: float = 0.0
    decode: float = 0.0
    peak_batch: int = 1

    @property
    def prompt(self) -> Prompt:
        return self.request.prompt

    @property
    def finish(self) -> str:
        return self.answer.finish

    @property
    def length(self) -> int:
        """The filled places of its slot, without the last token: the next step writes its keys."""
        return len(self.prompt) + self.launched - 1

    @property
    def left(self) -> int:
        """The number of tokens that the device may still be asked for; below 0 past the end."""
        return self.answer.limit - self.launched

    def finished(self) -> Finished:
        generated = Generated.of(self.answer, torch.stack(self.logits) if self.logits else None)
        seconds = Seconds(prefill=self.prefill, decode=self.decode)
        return Finished.of(self.request, generated, seconds, self.peak_batch)


@dataclass(frozen=True)
class Launched:
    """A prefill or a decode step that the device was asked for; token i belongs to rows[i].

    logits (B, V): None unless they are kept.
    """

    rows: Sequence[Row]
    tokens: OnTheWay
    logits: Tensor | None
    prefill: bool

    @property
    def needed(self) -> bool:
        """Whether any of its answers had not ended before this step."""
        return not all(row.finish for row in self.rows)

    def take(self, since: float) -> None:
        """Waits for the tokens, and adds them to the answers that have not ended.

        The seconds that passed since `since` are shared among the step's answers.
        """
        tokens = self.tokens.here().tolist()
        share = (time.perf_counter() - since) / len(self.rows)
        for number, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if row.finish:
                continue
            row.answer.take(token)
            if self.prefill:
                row.prefill += share
            else:
                row.decode += share
            if self.logits is not None:
                row.logits.append(self.logits[number])
