"""The encoder that works ahead on a thread of its own, against the one that works in turn."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.device import LAUNCHES
from trimtok_cli.engine import answer, encoder, stream
from trimtok_cli.errors import ModelError
from trimtok_cli.generation.continuous import Continuous
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare import pool
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

ASK = Ask("What is it?", max_new_tokens=5)
PRUNERS = {
    "dense": lambda: None,
    "trimtokenator": lambda: build_pruner("trimtokenator", {"keep": "50%"}),
}


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "gemma3"])
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / request.param
    return load_model(str(FAMILIES.get(request.param, tiny.llava)(folder)), device="cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load_model(str(tiny.llava(tmp_path_factory.mktemp("encoder") / "one")), device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Eleven samples of several shapes; one cannot be opened, and one asks nothing of a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(100, 80), (60, 90), (100, 80)]):
        paths.append(folder / f"{number}.png")
        picture(number, *size).save(paths[-1])
    asked = [Sample(i, images=(paths[i % 3],), question="Why?" * (i % 4 + 1)) for i in range(11)]
    asked[3] = Sample(3, images=(Path("missing.png"),), question="What?")
    asked[6] = Sample(6, question="Who?")
    return asked


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("trimtok-encoder")]
    assert not LAUNCHES.locked()


def results(adapter, samples, *, ahead: bool, pruner=None, ask=ASK, **options):
    found = stream.answer_all(adapter, pruner, samples, ask, encode_ahead=ahead, **options)
    return [replace(each, seconds=Seconds()) for each in found]


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("decode", ["continuous", "simple"])
def test_results_are_those_of_the_encoder_in_turn(family, samples, method, decode):
    ask = replace(ASK, decode=decode)
    for size in (1, 3, None):
        want = results(
            family, samples, ahead=False, pruner=PRUNERS[method](), ask=ask, batch_size=size
        )
        got = results(
            family, samples, ahead=True, pruner=PRUNERS[method](), ask=ask, batch_size=size
        )
        assert got == want
        assert [each.sample.id for each in got if each.error] == [3]
    assert len({each.answer for each in want}) > 1


def test_sampled_answers_are_the_same(llava, samples):
    hot = replace(ASK, sampling=Sampling(temperature=1.5, seed=3))
    want = results(llava, samples, ahead=False, ask=hot, batch_size=4)
    assert results(llava, samples, ahead=True, ask=hot, batch_size=4) == want
    assert want != results(llava, samples, ahead=False, batch_size=4)


def test_the_next_samples_are_encoded_while_the_loop_is_in_a_step(llava, samples, monkeypatch):
    begun, threads, waited = threading.Semaphore(0), set(), []
    reduce, step = encoder.reduce, Continuous.step

    def noted(*args):
        threads.add(threading.current_thread())
        begun.release()
        return reduce(*args)

    def waits(loop):
        waited.append(begun.acquire(timeout=20))
        return step(loop)

    good = [each for each in samples if each.id != 3][:2]
    monkeypatch.setattr(encoder, "reduce", noted)
    # The first step begins after the first sample was encoded, and waits for the second's.
    begun.acquire(blocking=False)
    monkeypatch.setattr(
        Continuous, "step", lambda loop: waits(loop) if len(waited) < 2 else step(loop)
    )
    assert len(results(llava, good, ahead=True)) == 2
    assert waited == [True, True] and threading.main_thread() not in threads


def test_seconds_count_no_waiting(llava, samples):
    """While somebody holds the device the thread waits, and the times of its samples do not."""
    threading.Timer(2.0, LAUNCHES.release).start()
    LAUNCHES.acquire()
    started = time.perf_counter()
    found = list(stream.answer_all(llava, None, samples[:1], ASK, encode_ahead=True))
    assert time.perf_counter() - started > 1.5
    assert 0 < found[0].seconds.encode < 1.5


def test_an_error_of_the_model_comes_behind_the_answers_before_it(llava, samples, monkeypatch):
    real_attempt, real_reduce = pool.attempt, encoder.reduce

    def in_preparing(preprocessor, sample, ask):
        if sample.id == 4:
            raise ModelError("this model cannot.")
        return real_attempt(preprocessor, sample, ask)

    def in_encoding(adapter, pruner, group, *more):
        if any(each.sample.id == 4 for each in group):
            raise ModelError("this model cannot.")
        return real_reduce(adapter, pruner, group, *more)

    def until_error(ahead):
        found = []
        with pytest.raises(ModelError, match="this model cannot"):
            for each in stream.answer_all(
                llava, None, samples, ASK, batch_size=2, encode_ahead=ahead
            ):
                found.append(each.sample.id)
        return found

    for module, name, breaks in (
        (pool, "attempt", in_preparing),
        (encoder, "reduce", in_encoding),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, breaks)
            assert until_error(True) == until_error(False) == [0, 1, 2, 3]


def test_a_batch_that_does_not_fit_is_encoded_in_halves(llava, samples, monkeypatch):
    real, sizes = answer.encode, []

    def small(adapter, prepared, **options):
        sizes.append(len(prepared))
        if len(prepared) > 1 or prepared[0].sample.id == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(adapter, prepared, **options)

    want = results(llava, samples, ahead=False)
    monkeypatch.setattr(answer, "encode", small)
    got = results(llava, samples, ahead=True, batch_size=4)
    assert max(sizes) == 4 and [each.sample.id for each in got if each.error] == [3, 5]
    assert [each.answer for each in got if not each.error] == [
        each.answer for each in want if each.sample.id not in (3, 5)
    ]


@pytest.mark.parametrize("end", ["close", "interrupt", "interrupt while encoding"])
def test_the_thread_ends_with_the_run(llava, samples, monkeypatch, end):
    found = stream.answer_all(llava, None, samples, ASK, batch_size=2, encode_ahead=True)
    next(found)
    assert any(thread.name.startswith("trimtok-encoder") for thread in threading.enumerate())
    if end == "close":
        found.close()
    else:

        def interrupted(*_):
            raise KeyboardInterrupt

        owner, name = (Continuous, "step") if end == "interrupt" else (encoder.Ahead, "_receive")
        monkeypatch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(found)
    assert not any(thread.name.startswith("trimtok-encoder") for thread in threading.enumerate())


def test_on_a_cpu_and_inside_the_decoder_nothing_is_encoded_ahead(llava, samples, monkeypatch):
    def refuse(*_):
        raise AssertionError("a thread was started")

    monkeypatch.setattr(encoder.Ahead, "__init__", refuse)
    assert len(list(stream.answer_all(llava, None, samples, ASK))) == len(samples)
    inside = build_pruner("fastv", {"keep": 5})
    assert len(results(llava, samples, ahead=True, pruner=inside)) == len(samples)
