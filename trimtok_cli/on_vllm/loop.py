"""The loop over vLLM: prompts go in as rows, and their tokens come out as they end.

What stands behind it is vLLM's engine, or anything that has its `add_request` and `step`. vLLM
looks neither at the width of rows nor at what they hold, and a bad prompt would take others along:
both are checked here. Imports no vLLM.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch

from trimtok_cli.data import Seconds
from trimtok_cli.errors import ModelError, SampleError, sentence
from trimtok_cli.generation.rules import Answer, Rules
from trimtok_cli.generation.types import Finished, Generated
from trimtok_cli.tokens import Prompt

# Requests wait in vLLM beside those that run, so that a free place is taken in the next step. They
# are added so many at a time, which share a run of the vision tower: a quarter, up to FILLS.
FILLS = 8

NOT_NUMBERS = (
    "its prompt holds NaN or infinity: damaged weights, or a --dtype that is too small; try float32"
)


class Core(Protocol):
    """vLLM's engine, as far as the loop needs it. An output has the form of vLLM's."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> Any:
        """Takes a request. Raises ValueError for one that it cannot take."""

    def step(self) -> list[Any]:
        """The new tokens of the requests that this step ran for."""

    def abort_request(self, request_ids: list[str]) -> Any:
        """Drops requests."""

    def has_unfinished_requests(self) -> bool:
        """Whether there is anything to run."""


@dataclass(frozen=True)
class Shape:
    """What a prompt has to be like.

    width: of its rows. length: the most tokens of a prompt and its answer, the last of which is not
    read. short: whether the model has positions for more.
    """

    width: int
    length: int
    short: bool = False

    def refusal(self, prompt: Prompt) -> SampleError | None:
        """The error of a prompt that vLLM must not be given; None for a good one."""
        rows, width = prompt.embeds.shape
        if width != self.width:
            return SampleError(
                f"its rows are {width} wide, and the language model reads rows of {self.width}."
            )
        if rows + 1 > self.length:
            return SampleError(
                f"its prompt has {rows:,} tokens, and vLLM has room for {self.length - 1:,}: a "
                "smaller --keep makes it fit, or --vllm-args max_model_len=N makes room."
            )
        if not bool(torch.isfinite(prompt.embeds).all()):
            return SampleError(f"{NOT_NUMBERS}.")
        return None


@dataclass
class _UnderWay:
    """A request in vLLM: its answer so far, and its share of the steps' time."""

    request: Any
    answer: Answer
    prefill: float = 0.0
    decode: float = 0.0
    peak: int = 1
    read: bool = field(default=False)  # whether its prompt was

    def take(self, new_tokens: Sequence[int], finish: str | None) -> None:
        self.answer.ids += new_tokens
        self.answer.finish = finish or ""


class VllmLoop:
    """Runs answers in vLLM, at most `batch_limit` at a time.

    The tokens equal those of the continuous loop in float32, where answers are greedy; where they
    are sampled they are other draws of the same distribution. as_input: a prompt in vLLM's form.
    params: the sampling parameters of an answer. mend: clears NaN out of vLLM's cache.
    """

    def __init__(
        self,
        core: Core,
        rules: Rules,
        *,
        shape: Shape,
        batch_limit: int,
        as_input: Callable[[Prompt], Mapping[str, Any]],
        params: Callable[[Prompt], Any],
        mend: Callable[[], None],
    ) -> None:
        self.core, self.rules, self.shape = core, rules, shape
        self.batch_limit, self.as_input, self.params, self.mend = (
            batch_limit,
            as_input,
            params,
            mend,
        )
        self.numbers = count()
        self.under_way: dict[str, _UnderWay] = {}
        self.finished: list[Finished] = []
        self.unshared = 0.0  # seconds of steps that ran for parts of prompts alone

    @property
    def busy(self) -> bool:
        return bool(self.under_way or self.finished)

    def room(self) -> int:
        """The number of requests that may be added now; 0 while it is too small to be worth it."""
        free = 2 * self.batch_limit - len(self.under_way)
        worth = min(max(self.batch_limit // 4, 1), FILLS)
        return free if free >= worth else 0

    def add(self, requests: Sequence[Any]) -> None:
        for request in requests:
            prompt = request.prompt
            if refused := self.rules.refusal(prompt) or self.shape.refusal(prompt):
                self.finished.append(Finished(request, None, error=refused))
                continue
            name = str(next(self.numbers))
            try:
                self.core.add_request(name, self.as_input(prompt), self.params(prompt))
            except ValueError as error:  # vLLM's own word about this request alone
                refused = SampleError(f"vLLM does not take it: {sentence(error)}")
                self.finished.append(Finished(request, None, error=refused))
            except Exception as error:
                raise ended(error) from error
            else:
                answer = Answer(self.rules, torch.empty(0), (), None, self.rules.limit(prompt))
                self.under_way[name] = _UnderWay(request, answer)

    def step(self) -> list[Finished]:
        """Runs a step of vLLM. Raises ModelError if its engine has ended."""
        if self.under_way:
            self._take(*self._run())
        finished, self.finished = self.finished, []
        return finished

    def _run(self) -> tuple[dict[str, Any], float]:
        """The outputs of a step by the numbers of their requests, and its seconds."""
        start = time.perf_counter()
        try:
            outputs = self.core.step()
            stuck = not outputs and not self.core.has_unfinished_requests()
        except Exception as error:
            raise ended(error) from error
        if stuck:
            raise ended(RuntimeError("it lost requests that it was given"))
        seconds = time.perf_counter() - start
        return {output.request_id.partition("-")[0]: output for output in outputs}, seconds

    def _take(self, outputs: Mapping[str, Any], seconds: float) -> None:
        """Notes the tokens of a step; its time is shared by the tokens that it read."""
        rows = {name: self.under_way[name] for name in outputs if name in self.under_way}
        tokens = {name: 1 if row.read else len(row.request.prompt) for name, row in rows.items()}
        self.unshared += seconds
        if not rows:
            return
        second = self.unshared / sum(tokens.values())
        self.unshared = 0.0
        for name, row in rows.items():
            if row.read:
                row.decode += second * tokens[name]
            else:
                row.prefill += second * tokens[name]
            row.read, row.peak = True, max(row.peak, len(rows))
            said = outputs[name].outputs[0]
            row.take(said.token_ids, said.finish_reason)
            self._judge(name, row, said.cumulative_logprob)

    def _judge(self, name: str, row: _UnderWay, logprob: float | None) -> None:
        """Ends a request that is over, or whose scores are no numbers."""
        if logprob is not None and not math.isfinite(logprob):
            if not row.answer.finish:
                self.core.abort_request([name])
            # Its keys and values stay in blocks that other prompts would be given.
            self.mend()
            row.answer.finish = "error"
        if not row.answer.finish:
            return
        del self.under_way[name]
        seconds = Seconds(prefill=row.prefill, decode=row.decode)
        if error := self._error(row):
            self.finished.append(Finished(row.request, None, seconds, row.peak, error))
        else:
            generated = Generated.of(row.answer)
            self.finished.append(Finished.of(row.request, generated, seconds, row.peak))

    def _error(self, row: _UnderWay) -> SampleError | None:
        """The error of an answer that did not end as it should."""
        answer, rows = row.answer, len(row.request.prompt)
        if answer.finish not in ("stop", "length"):
            return answer.error or SampleError(f"vLLM ended the answer: {answer.finish}.")
        cut = answer.finish == "length" and len(answer.ids) < answer.limit
        if cut and self.shape.short and rows + len(answer.ids) >= self.shape.length:
            return SampleError(
                f"its prompt and answer fill the {self.shape.length - 1:,} tokens that vLLM has "
                "room for: --vllm-args max_model_len=N makes more."
            )
        return None


def ended(error: Exception) -> ModelError:
    """The error of a run whose vLLM engine can answer no more."""
    return ModelError(
        f"vLLM's engine has ended ({sentence(error).rstrip('.')}): what is answered is kept, and "
        "the same command goes on; a smaller --batch-size or another --vllm-args "
        "gpu_memory_utilization may help if its memory ran out, and --engine local answers "
        "without it."
    )
