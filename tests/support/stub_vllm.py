"""A stand-in for vLLM's engine: its `add_request` and `step`, backed by the plain loop.

It answers as vLLM does: one token a step for each running request, the stop token among them, the
prompt's own step giving the first. It is as careless, too: rows of another width end it, and rows
that are no numbers spoil the answers behind them.
"""

from types import SimpleNamespace
from typing import Any

import torch

from tests.support.generating import generate
from trimtok_cli.on_vllm.loop import Shape, VllmLoop
from trimtok_cli.on_vllm.rules import sampling_of
from trimtok_cli.tokens import Prompt


class StubCore:
    """slots: the requests that run at once. refuses, breaks: numbers of calls that raise."""

    def __init__(self, adapter, *, slots: int = 2, refuses=(), breaks=0, nan_at=None) -> None:
        self.adapter, self.slots, self.refuses, self.breaks = adapter, slots, refuses, breaks
        self.nan_at = nan_at  # (request, token): from there on its scores are no numbers
        self.left: dict[str, list[tuple[int, str | None]]] = {}
        self.seen: list[str] = []
        self.most = self.steps = 0
        self.spoilt = False

    def add_request(self, request_id: str, prompt: Any, params: dict) -> str:
        self.seen.append(request_id)
        if int(request_id) in self.refuses:
            raise ValueError("the prompt is too long\nand more")
        rows = prompt["prompt_embeds"]
        if rows.shape[1] != self.adapter.config.hidden_size:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        self.spoilt |= not bool(rows.isfinite().all())
        none = torch.empty(0, dtype=torch.long)
        asked = Prompt(rows, torch.arange(len(rows)), none, none, none)
        (said,), _ = generate(
            self.adapter, [asked], max_new_tokens=params["max_tokens"], stop=False
        )
        ends = [i for i, token in enumerate(said.ids) if token in params["stop_token_ids"]]
        ids = said.ids[: ends[0] + 1] if ends else said.ids
        finish: list[str | None] = [None] * (len(ids) - 1)
        finish.append("stop" if ends else "length")
        self.left[request_id] = list(zip(ids, finish, strict=True))
        self.most = max(self.most, len(self.left))
        return f"{request_id}-0a1b"

    def step(self) -> list[Any]:
        self.steps += 1
        if self.steps == self.breaks:
            raise RuntimeError("EngineCore encountered an issue")
        outputs = []
        for name in list(self.left)[: self.slots]:
            token, finish = self.left[name].pop(0)
            if not self.left[name]:
                del self.left[name]
            bad = self.spoilt or (self.nan_at == (name, len(self.left.get(name, ()))))
            said = SimpleNamespace(
                token_ids=[token],
                finish_reason=finish,
                cumulative_logprob=float("nan") if bad else -0.5,
            )
            outputs.append(SimpleNamespace(request_id=f"{name}-0a1b", outputs=[said]))
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self.left.pop(name)

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def mend(self) -> None:
        self.spoilt = False
        self.nan_at = None


def loop_over(
    core: StubCore, rules, *, batch_limit: int = 2, length: int = 4097, short: bool = False
) -> VllmLoop:
    return VllmLoop(
        core,
        rules,
        shape=Shape(int(core.adapter.config.hidden_size), length, short),
        batch_limit=batch_limit,
        as_input=lambda prompt: {"prompt_embeds": prompt.embeds},
        params=lambda prompt: sampling_of(rules, prompt),
        mend=core.mend,
    )
