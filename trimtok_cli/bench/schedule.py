"""A run's schedule without a model: recordings, shapes, and how much of every step is used.

The run's own continuous loop works on a pretended device. In place of a model stands one whose
tokens count down: a token is the number of tokens that its answer still has, and 0 ends it. Knows
no rule of the loop.
"""

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.bench.pretend_cuda import pretend_cuda
from trimtok_cli.bench.spec import Bench, SchedulePart
from trimtok_cli.bench.tally import WORK_BEHIND, Tally
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import Request, run
from trimtok_cli.tokens import Prompt


class CountingDown:
    """A LanguageModel of one layer, whose next token is its largest input less one."""

    def __init__(self, longest: int, tally: Tally) -> None:
        self.device, self.dtype = torch.device("cuda", 0), torch.float32
        self.longest, self.tally, self.end_ids = longest, tally, (0,)
        self.plain_prefill, self.num_positions = True, None
        self.config = SimpleNamespace(
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=1,
            hidden_size=1,
            intermediate_size=1,
            vocab_size=longest + 1,
        )

    def embed_ids(self, ids: Tensor) -> Tensor:
        return ids[..., None].float()

    def forward(
        self, embeds: Tensor, mask: Any, positions: Tensor, cache: Any, *_: Any, **__: Any
    ) -> Tensor:
        keys, _ = cache.update(embeds[:, None], embeds[:, None], 0)
        count, length = embeds.shape[:2]
        kind = "step" if length == 1 else "prefill"
        notes = self.tally.work.notes
        notes[f"{kind}s"] += 1
        notes[f"{kind} slots"] += count
        notes[f"{kind} of {count} x {length}, {tuple(keys.shape)}, {tuple(keys.stride())}"] += 1
        following = embeds.amax((1, 2)) - 1
        return (torch.arange(self.longest + 1, device=embeds.device) == following[:, None]).float()


def schedule_row(part: SchedulePart, bench: Bench) -> dict[str, Any]:
    """The row of one run: `samples` prompts with answers of random lengths."""
    drawn = random.Random(bench.seed)
    prompts = [drawn.randint(*part.prompt) for _ in range(part.samples)]
    answers = [
        max(1, min(part.longest, round(drawn.gauss(*part.answer)))) for _ in range(part.samples)
    ]
    with pretend_cuda() as tally:
        model = CountingDown(part.longest, tally)
        rules = Rules(model, None, name="", end_ids=(), max_new_tokens=part.longest, stop=False)
        rules.ends = frozenset(model.end_ids)
        loop = Continuous(model, rules, batch_limit=part.batch)
        tally.take()  # what a device is asked once in a process is no part of a run
        requests = _requests(prompts, answers)
        for finished in run(loop, requests):
            steps = finished.answer.steps
            if steps != answers[finished.request.number]:
                raise RuntimeError(f"an answer has {steps} tokens")
        work = tally.take()
        recorded = [each.notes for each in tally.recordings if each.notes["steps"]]
        prefills = loop.steps.prefills.graphs
    notes = work.notes
    shapes = [name for name in notes if " of " in name]
    return {
        "key": part.title,
        "samples": part.samples,
        "batch": part.batch,
        "steps": notes["steps"],
        "replayed": loop.steps.graphs.replayed,
        "prefills": notes["prefills"],
        "prefills_replayed": prefills.replayed,
        "prefill_recordings": len(tally.recordings) - len(recorded),
        "recordings": len(recorded),
        "recorded_shapes": len({name for each in recorded for name in each if " of " in name}),
        "attention_shapes": len(shapes),
        "waits": work.stops,
        "late_reads": work.waits[WORK_BEHIND],
        "useful_slot_steps": (sum(answers) - len(answers)) / max(notes["step slots"], 1),
        "error": "",
    }


def _requests(prompts: Sequence[int], answers: Sequence[int]) -> Iterator[Request]:
    device, nothing = "cuda", torch.zeros(0, dtype=torch.long, device="cuda")
    for number, (length, count) in enumerate(zip(prompts, answers, strict=True)):
        embeds = torch.full((length, 1), float(count), device=device)
        positions = torch.arange(length, device=device)
        yield Request(Prompt(embeds, positions, nothing, nothing, nothing), number)
