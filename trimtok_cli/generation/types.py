"""Requests, finished answers, and the two protocols of generation: LanguageModel and Loop."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtok_cli.data import Seconds
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.tokens import Prompt


class LanguageModel(Protocol):
    """The part of a model that a loop needs. An Adapter is a LanguageModel."""

    @property
    def config(self) -> Any:
        """The decoder's config: its layers, heads, widths, windows and positions."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The token ids that end an answer."""

    @property
    def num_positions(self) -> int | None:
        """The positions that the decoder knows; None where that is unknown."""

    @property
    def plain_prefill(self) -> bool:
        """Whether `forward` reads nothing of the prompts but their lengths."""

    device: torch.device
    dtype: torch.dtype

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D)."""

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | dict[str, Tensor] | None,
        positions: Tensor,
        cache: Any,
        prompts: Sequence[Prompt] = (),
        last: Tensor | None = None,
    ) -> Tensor:
        """(B, S, D) -> logits (B, V) of each last row; fills `cache`.

        prompts: those of a prefill, which `embeds` holds padded on the right. last (B,): in their
        place, the number of each prompt's last row, on the device, where `plain_prefill` holds.
        """


@dataclass(frozen=True)
class Request:
    """A prompt on its way through generation. number: the caller's number for the prompt."""

    prompt: Prompt
    number: int = 0


@dataclass(frozen=True)
class Generated:
    """The tokens of a finished answer.

    `ids` leaves out the end token, and `steps` counts it. finish: stop, length or error. logits
    (steps, V) are kept only if asked for.
    """

    ids: tuple[int, ...]
    steps: int
    finish: str
    logits: Tensor | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, answer: Answer, logits: Tensor | None = None) -> "Generated":
        """The tokens of an answer up to its end, without steps that only its batch still took."""
        steps = len(answer.ids)
        logits = None if logits is None else logits[:steps]
        return cls(answer.text_ids, steps, answer.finish, logits, answer.error)


@dataclass(frozen=True)
class Finished:
    """A request that has ended: its tokens, or the error it raised when run by itself.

    seconds: its share of prefill and decode. peak_batch: the most answers that were under way with
    it, itself counted.
    """

    request: Any
    generated: Generated | None
    seconds: Seconds = field(default_factory=Seconds)
    peak_batch: int = 1
    error: Exception | None = None

    @property
    def answer(self) -> Generated:
        """The tokens. Raises the error of a request that has none."""
        if self.generated is None:
            raise self.error or LookupError("nothing was generated")
        return self.generated

    @classmethod
    def of(
        cls, request: Any, generated: Generated, seconds: Seconds, peak_batch: int
    ) -> "Finished":
        """The finished request; an answer whose scores are not numbers becomes an error."""
        if generated.error:
            return cls(request, None, seconds, peak_batch, generated.error)
        return cls(request, generated, seconds, peak_batch)


class Loop(Protocol):
    """Runs requests: plain, continuous, inside the decoder, or by an engine outside this package.

    A request is any object with a `prompt`; its `Finished` holds the same object.
    """

    rules: Rules

    def room(self) -> int:
        """The number of requests that may be added now."""

    def add(self, requests: Sequence[Any]) -> None:
        """Takes requests, at most as many as there is room for."""

    def step(self) -> list[Finished]:
        """Runs a prefill or a decode step; returns the ended requests. Raises ModelError."""

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""


def run(loop: Loop, requests: Iterable[Any]) -> Iterator[Finished]:
    """Runs every request through a loop, and yields each as it ends."""
    left = iter(requests)
    while True:
        if room := loop.room():
            loop.add(list(islice(left, room)))
        if not loop.busy:
            return
        yield from loop.step()
