"""The loop's schedule: which steps are recorded, and how much of the slot-steps is useful.

The real loop and the real bookkeeping of recordings run over a model that computes nothing.
"""

import random
from types import SimpleNamespace

import pytest
import torch

from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.generation import slot_steps
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.generation.rules import Answer
from trimtok_cli.generation.types import Request, run
from trimtok_cli.tokens import Prompt

NEW = 128


class Model:
    """A language model of one layer and one number a token, which always says token 1."""

    device, dtype, end_ids = torch.device("cpu"), torch.float32, ()
    plain_prefill, num_positions = True, None
    config = SimpleNamespace(
        num_hidden_layers=1,
        num_key_value_heads=1,
        num_attention_heads=1,
        head_dim=1,
        hidden_size=1,
        intermediate_size=1,
    )

    def embed_ids(self, ids):
        return torch.zeros(*ids.shape, 1)

    def forward(self, embeds, mask, positions, cache, prompts=(), last=None):
        keys = torch.zeros(len(embeds), 1, embeds.shape[1], 1)
        cache.update(keys, keys, 0)
        return torch.tensor([[0.0, 1.0]]).repeat(len(embeds), 1)


class Script:
    """Rules under which an answer ends at a number of tokens that its prompt tells."""

    device, plain, samples, processor_names = torch.device("cpu"), True, False, ()
    ends, most = frozenset(), NEW

    def refusal(self, prompt):
        return None

    def answer(self, prompt):
        return Answer(self, prompt.ids, (), None, NEW)

    def stops(self, answer):
        return len(answer.ids) >= int(answer.prompt)


class Graphs(CudaGraphs):
    """Recordings that are counted and stand for a step."""

    def __init__(self, device, *kind):
        super().__init__(device, *kind)
        self.used, self.slot_steps, self.eager, self.shapes = True, 0, 0, []

    def __call__(self, step, count, span, rows, places):
        def counted(slots, seen):
            self.slot_steps += slots
            return step(slots, seen)

        return super().__call__(counted, count, span, rows, places)

    def _try(self, step, shape):
        self.shapes.append(shape)
        graph = SimpleNamespace()
        logits = torch.tensor([[0.0, 1.0]]).repeat(shape[0], 1)

        def replay():
            self.slot_steps += shape[0]

        graph.replay = replay
        self.recorded[shape] = graph, logits


def caption(lots: random.Random) -> int:
    return max(1, min(NEW, int(lots.gauss(60, 20))))


def schedule(monkeypatch, number: int, rows: int, length, answer) -> dict[str, float]:
    monkeypatch.setattr(slot_steps, "CudaGraphs", Graphs)
    lots = random.Random(0)
    none, requests, useful = torch.arange(0), [], 0
    for each in range(number):
        places, tokens = length(lots), answer(lots)
        useful += tokens - 1  # the first token comes of the prefill
        ids = torch.tensor([tokens])
        prompt = Prompt(torch.zeros(places, 1), torch.arange(places), none, none, none, ids=ids)
        requests.append(Request(prompt, each))
    loop = Continuous(Model(), Script(), batch_limit=rows, lag=1)
    done = list(run(loop, requests))
    assert len(done) == number and not any(each.error for each in done)
    graphs = loop.steps.graphs
    steps = {"recordings": len(graphs.shapes), "eager": graphs.eager}
    assert all(4 * count >= 3 * rows for count, _ in graphs.shapes), "the drain was recorded"
    assert not graphs.shapes or graphs.shapes[0][0] == rows, "the full batch comes first"
    return steps | {"useful": useful / graphs.slot_steps}


def same(lots):
    return 101


def questions(lots):
    return lots.randint(95, 115)


def many_sizes(lots):
    return lots.randint(80, 700)


@pytest.mark.parametrize(
    ("number", "rows", "length", "answer", "recordings", "eager", "useful"),
    [
        (100, 64, same, caption, 1, 66, 0.80),
        (1000, 64, same, caption, 1, 48, 0.91),
        (1000, 256, same, caption, 2, 83, 0.91),
        (100, 1, same, caption, 1, 8, 0.98),
        (1000, 64, questions, lambda lots: 2, 1, 8, 0.48),
        (1000, 64, many_sizes, caption, 2, 90, 0.91),
    ],
)
def test_few_recordings_and_useful_slot_steps(
    monkeypatch, number, rows, length, answer, recordings, eager, useful
):
    """The figures are ceilings, and a floor for the useful share, which may only get better."""
    got = schedule(monkeypatch, number, rows, length, answer)
    assert got["recordings"] <= recordings
    assert got["eager"] <= eager
    assert got["useful"] >= useful
