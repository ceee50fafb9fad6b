"""Worker processes: the same results in the same order, a bounded number in flight, no process left."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
import torch

from tests.conftest import picture
from tests.support.clips import make_clip
from tests.support.hooked import Hooked
from tests.support.processes import gone
from trimtok_cli.data import FrameRule, Sample
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import ModelError
from trimtok_cli.prepare.pool import prefetch
from trimtok_cli.prepare.sample import Ask, Failed, Prepared

ROOT = Path(__file__).parents[2]
LIMIT = 8  # seconds for one sample
ASK = Ask("What?", max_new_tokens=2, frames=FrameRule(frames=3, timeout=60), timeout=LIMIT)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        picture(i, 300 + 80 * i, 400 - 60 * i).save(path)
    (folder / "broken.png").write_bytes(b"<html>no</html>")
    clip = make_clip(folder / "clip.mp4")
    (folder / "hangs.mp4").write_bytes(clip.read_bytes())
    asked: list[dict] = [
        {"images": (paths[0],)},
        {"images": (folder / "broken.png",)},
        {"images": (paths[1], paths[2]), "question": "die"},
        {"images": (paths[1], paths[2]), "extra": MappingProxyType({"a": 1})},
        {"problem": "line 4 is not JSON"},
        {"question": "print"},
        {"images": (paths[3],), "question": "sleep"},
        {"video": clip},
        {"images": (paths[3],), "question": "die once"},
        {"images": (paths[2],), "question": "Why?"},
        {},
        {"images": (paths[0],), "question": "<image> or <image>?"},
    ]
    return [Sample(i, **each) for i, each in enumerate(asked)] + [
        Sample(99, video=folder / "hangs.mp4")
    ]


@pytest.fixture(scope="module")
def run(adapter, samples, tmp_path_factory):
    """All samples once, by two workers, from an endless source.

    Closed while a worker waits for a decoder that hangs.
    """
    read: list[int] = []

    def endless():
        for sample in samples:
            read.append(sample.id)
            yield sample
        for number in count(100):
            read.append(number)
            yield Sample(number)

    hooked = Hooked(adapter.processor, "hooked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        stream = prefetch(hooked, endless(), ASK, workers=2, ahead=5)
        found, distance = [], []
        for _ in samples[:-1]:
            found.append(next(stream))
            distance.append(len(read) - len(found))
        mark = samples[-1].video.with_name("hangs.mp4.pid")
        for _ in range(300):
            if mark.is_file() and mark.read_text():
                break
            time.sleep(0.1)
        started = time.monotonic()
        stream.close()
    return SimpleNamespace(
        found=found,
        distance=distance,
        decoder=int(mark.read_text()),
        closing=time.monotonic() - started,
    )


def test_results_come_in_order_and_their_samples_are_the_callers_own(run, samples):
    assert [each.sample for each in run.found] == samples[:-1]
    assert run.found[3].sample.extra == {"a": 1}


def test_what_is_prepared_is_the_same_bit_for_bit(run, adapter, samples):
    harmless = [
        (each, sample)
        for each, sample in zip(run.found, samples, strict=False)
        if isinstance(each, Prepared)
    ]
    assert [each.sample.id for each, _ in harmless] == [0, 3, 5, 7, 8, 9, 10]
    for got, (want,) in (
        (each, prefetch(adapter.preprocessor, [sample], ASK)) for each, sample in harmless
    ):
        assert (got.question, got.media) == (want.question, want.media) and got.seconds.prepare > 0
        assert replace(got.inputs, tensors={}, input_ids=0, instruction=0, words="") == replace(
            want.inputs, tensors={}, input_ids=0, instruction=0, words=""
        )
        assert list(got.inputs.tensors) == list(want.inputs.tensors)
        pairs = [(got.inputs.tensors[name], tensor) for name, tensor in want.inputs.tensors.items()]
        pairs += [
            (got.inputs.input_ids, want.inputs.input_ids),
            (got.inputs.instruction, want.inputs.instruction),
        ]
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
            ours.add_(0)  # memory of our own, that may be written to


def test_what_fails_fails_alone_with_a_sentence(run):
    said = {each.sample.id: str(each.error) for each in run.found if isinstance(each, Failed)}
    assert list(said) == [1, 2, 4, 6, 11]
    assert (
        "is not an image" in said[1]
        and said[4] == "line 4 is not JSON"
        and "2 <image> placeholders for 1" in said[11]
    )
    assert said[2].startswith("the worker process that read it died (signal 9)")
    assert said[6].startswith(f"it was not read and prepared within {LIMIT} seconds")


def test_the_source_is_read_a_bounded_number_ahead(run):
    assert max(run.distance) <= 4 and min(run.distance) >= 0


def test_closing_early_leaves_no_process_not_even_a_videos_decoder(run):
    pids = {int(each.inputs.words) for each in run.found if isinstance(each, Prepared)}
    assert len(pids) >= 2 and os.getpid() not in pids, "the work was shared"
    assert run.closing < 5 and all(gone(pid) for pid in [*pids, run.decoder])


def test_a_model_error_ends_the_run_and_what_cannot_be_sent_is_said(adapter, monkeypatch):
    asked = [Sample(1), Sample(2, question="refuse"), Sample(3)]
    stream = answer_all(adapter, None, asked, ASK, workers=1)
    adapter.preprocessor, before = Hooked(adapter.processor, "hooked"), adapter.preprocessor
    try:
        assert next(stream).sample.id == 1
        with pytest.raises(ModelError, match="this model cannot"):
            next(stream)
    finally:
        adapter.preprocessor = before

    class Local(Hooked):
        pass

    with pytest.raises(ModelError, match="cannot be sent to worker processes"):
        next(prefetch(Local(adapter.processor, "x"), asked, ASK, workers=1))
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    Local.__module__, Local.__qualname__ = "__main__", "Local"
    with pytest.raises(ModelError, match="the workers cannot load the preprocessor"):
        next(prefetch(Local(adapter.processor, "x"), asked, ASK, workers=1))


def test_errors_of_ours_survive_the_border():
    from trimtok_cli import errors

    for kind in (errors.SampleError, errors.MediaError, errors.ModelError, errors.UsageError):
        back = pickle.loads(pickle.dumps(kind("what, where, what to do")))
        assert type(back) is kind and str(back) == "what, where, what to do"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


SCRIPT = """
from itertools import count
from pathlib import Path
from trimtok_cli import Ask, Sample, answer_all, load_model

samples = (Sample(i, images=(Path({image!r}),), question="Why?" * (i % 3 + 1)) for i in count())
for result in answer_all(load_model({model!r}, device="cpu"), None, samples, Ask("What?", max_new_tokens=2), workers=1):
    print(result.answer, flush=True)
"""


def test_a_plain_script_needs_no_main_guard_and_takes_its_workers_along_when_it_is_killed(
    llava_folder, pictures, adapter
):
    """The workers hold stderr: its end is reached when none of them is left."""
    Path("plain.py").write_text(SCRIPT.format(model=str(llava_folder), image=str(pictures[0])))
    process = subprocess.Popen(
        [sys.executable, "plain.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    samples = [Sample(i, images=(pictures[0],), question="Why?" * (i % 3 + 1)) for i in range(5)]
    try:
        answers = [process.stdout.readline().rstrip("\n") for _ in samples]
        process.kill()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert answers == [
        result.answer for result in answer_all(adapter, None, samples, Ask(max_new_tokens=2))
    ]
    assert said == ""


def test_ctrl_c_leaves_no_process(llava_folder, pictures):
    """As a terminal sends Ctrl-C: to the whole group, while the input goes on."""
    options = ["-m", str(llava_folder), "--workers", "2", "--max-new-tokens", "2", "-q", "-o", "-"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtok_cli", "caption", "-", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        process.stdin.write("".join(f"{path}\n" for path in [*pictures, *pictures]))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["image"] == str(pictures[0])
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, said.strip()) == (130, "error: interrupted")
