"""What only a long run does: garbage collections pass over the model."""

import gc
from itertools import islice

import pytest

from tests.conftest import picture
from tests.support import tiny
from trimtok_cli.data import Sample
from trimtok_cli.engine import stream
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load_model(str(tiny.llava(tmp_path_factory.mktemp("long") / "llava")), device="cpu")


@pytest.fixture
def run(llava, tmp_path, monkeypatch):
    """Answers five samples one by one; a run is long once two have been given."""
    monkeypatch.setattr(stream, "LONG", 2)
    path = tmp_path / "a.png"
    picture(0, 100, 80).save(path)
    samples = [Sample(str(number), images=(path,), names=("a.png",)) for number in range(5)]
    pruner = build_pruner("trimtokenator", {"keep": 4})
    ask = Ask("What?", max_new_tokens=2)
    return lambda count=5: stream.answer_all(llava, pruner, samples[:count], ask)


def test_a_short_run_collects_no_garbage(run, thawed, monkeypatch):
    """A collection takes longer than some answers: whoever asks one by one would pay it for each."""
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *_: collected.append(1))
    assert [len(list(run(1))) for _ in range(3)] == [1, 1, 1] and collected == []
    assert len(list(run(3))) == 3 and collected == [1]


def test_a_long_run_freezes_the_heap(run, thawed):
    frozen = [(gc.get_freeze_count() > 10_000, result.error) for result in run()]
    assert frozen == [(False, ""), (False, ""), (True, ""), (True, ""), (True, "")]
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("taken", [1, 3])
def test_a_run_that_is_left_early_ends_what_it_began(run, thawed, taken):
    results = run()
    assert len(list(islice(results, taken))) == taken
    assert (gc.get_freeze_count() > 0) == (taken == 3)
    results.close()
    assert gc.get_freeze_count() == 0
