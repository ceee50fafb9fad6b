"""Samples that all settings share, against settings that prepare and encode their own."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import picture
from tests.support import tiny
from tests.support.families import FAMILIES
from trimtok_cli.data import Sample, Seconds
from trimtok_cli.engine import shared as module
from trimtok_cli.engine.shared import Shared, picture_of
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.readers.keys import keyed

ASK = Ask("What is it?", max_new_tokens=4)
METHODS = ("dense", "trimtokenator", "divprune", "visionzip", "prumerge", "tome", "fastv", "random")


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl", "llava_onevision"])
def adapter(request, tmp_path_factory):
    build = FAMILIES.get(request.param, tiny.llava)
    folder = build(tmp_path_factory.mktemp("shared") / request.param)
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Nine questions about three pictures, two of one shape; one cannot be opened, one has none."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, size in enumerate([(100, 80), (60, 90), (100, 80)]):
        picture(number, *size).save(paths[number])
    asked = [
        Sample(i, (paths[i % 3],), (paths[i % 3].name,), question=f"Why {i}?") for i in range(9)
    ]
    asked[4] = Sample(4, images=(Path("missing.png"),), names=("missing.png",), question="What?")
    asked[7] = Sample(7, question="Who?")
    return list(keyed(asked))


def timeless(results):
    return [replace(each, seconds=Seconds()) for each in results]


def answered(adapter, name, samples, **options):
    pruner = build_pruner(name, {} if name == "dense" else {"keep": 5})
    return list(answer_all(adapter, pruner, samples, ASK, batch_size=4, **options))


def methods_of(adapter):
    from trimtok_cli.engine.prompt_stage import check_method
    from trimtok_cli.errors import ModelError, UsageError

    for name in METHODS:
        try:
            check_method(adapter, build_pruner(name, {} if name == "dense" else {"keep": 5}))
        except (ModelError, UsageError):
            continue
        yield name


def test_every_method_answers_as_it_does_alone(adapter, samples):
    shared = Shared(adapter)
    names = list(methods_of(adapter))
    assert len(names) >= 5
    for name in [*names, *reversed(names)]:
        own = answered(adapter, name, samples)
        assert timeless(answered(adapter, name, samples, shared=shared)) == timeless(own), name


def test_a_picture_is_encoded_once_for_all_settings_and_questions(adapter, samples, monkeypatch):
    encoded, real = [], adapter.encode_many

    def encode_many(batch, **options):
        encoded.extend(picture_of(inputs, words=False) for inputs in batch)
        return real(batch, **options)

    monkeypatch.setattr(adapter, "encode_many", encode_many)
    shared = Shared(adapter)
    for name in ("dense", "uniform", "trimtokenator"):
        answered(adapter, name, samples, shared=shared)
    # Three pictures, and the one question that has none.
    assert len(encoded) == len({*encoded}) == 4
    assert not any(
        name.startswith("pixel_values")
        for each in shared.prepared.values()
        for name in each.inputs.tensors
    )


def test_the_time_of_the_one_pass_is_that_of_every_setting(adapter, samples):
    shared = Shared(adapter)
    first, second = (answered(adapter, "uniform", samples, shared=shared) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert other.seconds.encode == one.seconds.encode
        assert other.seconds.load == one.seconds.load or one.error
    assert all(each.seconds.encode > 0 for each in first if not each.error)


def test_without_memory_nothing_is_kept_and_answers_are_the_same(adapter, samples, monkeypatch):
    shared = Shared(adapter)
    monkeypatch.setattr(module, "host_bytes", lambda: 1)
    for name in ("dense", "trimtokenator"):
        found = answered(adapter, name, samples, shared=shared)
        assert timeless(found) == timeless(answered(adapter, name, samples))
    assert not shared.tokens and not shared.prepared


def test_the_words_count_where_signals_depend_on_them(adapter, samples):
    first, _, _, again, *_ = list(Shared(adapter).prepare(samples, ASK))
    assert first.sample.images == again.sample.images
    one, other = first.inputs, again.inputs
    assert picture_of(one, words=False) == picture_of(other, words=False)
    assert picture_of(one, words=True) != picture_of(other, words=True)
