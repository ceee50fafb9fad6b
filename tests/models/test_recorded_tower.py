"""Recorded vision towers: what a replay gives is what the tower gives, signals and all."""

import threading

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli import cuda_graphs
from trimtok_cli.cuda_graphs import CudaGraphs
from trimtok_cli.models.loading import load_model
from trimtok_cli.models.vision import recorded_tower
from trimtok_cli.models.vision.recorded_tower import MOST_CROPS, copied

KINDS = {
    "llava": tiny.llava,
    "siglip": tiny.siglip,
    **{name: FAMILIES[name] for name in ("llava_next", "llava_onevision")},
}


class Recording(CudaGraphs):
    """Recordings on a CPU: a replay runs the pass again, into the tensors of the first run."""

    def exactly(self, step, shape):
        self.step = step
        return super().exactly(step, shape)

    def _try(self, step, shape):
        kept, graphs = step(*shape), self

        class Graph:
            def replay(self):
                for old, new in zip(tensors(kept), tensors(graphs.step(*shape)), strict=True):
                    old.copy_(new)

        self.recorded[shape] = Graph(), kept


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [each for item in value for each in tensors(item)] if type(value) in (list, tuple) else []
    )


def everything(adapter, inputs):
    """Tokens and every signal of them, read once all samples have been through the tower."""
    encoded = [adapter.encode_many([each])[0] for each in inputs]
    found = []
    for tokens in encoded:
        found.append(tokens.embeds)
        signals = tokens.signals
        for name in ("saliency", "keys", "last_saliency", "last_keys", "features"):
            if signals.offers(name):
                found.append(getattr(signals, name))
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_replayed_tower_gives_what_the_tower_gives(kind, tmp_path, monkeypatch):
    adapter = load_model(str(KINDS[kind](tmp_path / kind)), device="cpu")
    inputs = [adapter.prepare([picture(n, 90, 70)], "What?") for n in range(5)]
    wanted = everything(adapter, inputs)
    assert len(wanted) > len(inputs), "no signals"
    monkeypatch.setattr(cuda_graphs, "PAYS", 1)
    vars(adapter).pop("_recorded_tower")
    monkeypatch.setattr(recorded_tower, "CudaGraphs", Recording)
    adapter._recorded_tower.graphs.used = True
    found = everything(adapter, inputs)
    graphs = adapter._recorded_tower.graphs
    assert graphs.replayed >= 3 and graphs.eager >= 1
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    # Without signals the recording is another.
    plain = [adapter.encode_many([each], signals=False)[0].embeds for each in inputs]
    first = [tokens for tokens in wanted if tokens.shape == plain[0].shape]
    assert len(graphs.recorded) == 2 and torch.equal(plain[0], first[0])
    assert "forward" not in vars(adapter.model.model.vision_tower)


@torch.inference_mode()
def test_many_crops_and_further_tensors_are_not_recorded(tmp_path):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    takes = adapter._recorded_tower._takes
    assert takes(torch.zeros(MOST_CROPS, 3, 8, 8), {"return_dict": True})
    assert not takes(torch.zeros(MOST_CROPS + 1, 3, 8, 8), {})
    assert not takes(torch.zeros(1, 2, 3, 8, 8), {})
    assert not takes(torch.zeros(1, 3, 8, 8), {"mask": torch.zeros(1)})
    assert not takes(None, {})
    found = []
    thread = threading.Thread(target=lambda: found.append(takes(torch.zeros(1, 3, 8, 8), {})))
    thread.start()
    thread.join()
    assert found == [False], "the main thread's launches would spoil it"


def test_copies_share_no_memory():
    given = {"": [(torch.zeros(2), {"mask": None})], "name": torch.ones(1)}
    found = copied(given)
    found[""][0][0].fill_(5)
    assert given[""][0][0].sum() == 0 and found[""][0][1] == {"mask": None}
    assert found["name"] is not given["name"] and torch.equal(found["name"], given["name"])
