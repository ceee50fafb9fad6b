"""One time limit for every sample, with and without workers: a slow sample is a failed row."""

import json
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import picture
from tests.support.hooked import ENDLESS, Hooked
from trimtok_cli.cli import app
from trimtok_cli.data import Failed, FrameRule, Sample
from trimtok_cli.engine.results import NO_MEMORY, failed_result
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.evaluation.compare import compare_all
from trimtok_cli.limits import TimeUp, within
from trimtok_cli.prepare import sample as preparing
from trimtok_cli.prepare.pool import prefetch
from trimtok_cli.prepare.sample import Ask, Prepared

LATE = "it was not read and prepared within"


def busy() -> None:
    while True:
        pass


def forgiving() -> None:
    """As libraries do, who go on after any error."""
    while True:
        with suppress(Exception):
            time.sleep(60)


def forgiving_all() -> None:
    for _ in range(3):
        with suppress(BaseException):
            busy()
    time.sleep(60)


def tidying() -> None:
    try:
        busy()
    finally:
        time.sleep(60)


def native() -> None:
    re.match("(a+)+$", "a" * 26 + "b")  # some seconds, not broken off


SLOW = [busy, forgiving, forgiving_all, tidying, native, lambda: time.sleep(60)]


@pytest.mark.parametrize("work", SLOW)
def test_work_that_takes_too_long_is_ended_whatever_it_does_about_it(work):
    started = time.monotonic()
    with pytest.raises(TimeUp):
        within(0.2, work)
    assert time.monotonic() - started < 10
    assert (
        signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    )


@pytest.mark.parametrize("seconds", [1e-6, 0.05, 0.4, 1.0, 2.3])
def test_the_limit_is_neither_early_nor_late(seconds):
    started = time.monotonic()
    with pytest.raises(TimeUp):
        within(seconds, busy)
    assert seconds <= time.monotonic() - started + 0.01 < seconds + 1
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert within(seconds + 1, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(seconds + 1, lambda: {}["no"])


def test_a_limit_within_a_limit_and_a_callers_own_alarm_are_kept():
    rung: list[float] = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    try:
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        with pytest.raises(TimeUp):
            within(0.6, lambda: within(5, busy))
        time.sleep(0.8)
        assert len(rung) == 1 and rung[0] - started == pytest.approx(1.0, abs=0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_other_threads_work_without_a_limit():
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(within(0.01, lambda: time.sleep(0.1) or 7))
    )
    thread.start()
    thread.join()
    assert found == [7]


@pytest.mark.parametrize("work", SLOW)
@pytest.mark.parametrize("place", ["load_image", "load_video", "template"])
def test_without_workers_a_sample_that_takes_too_long_fails_alone(
    adapter, monkeypatch, work, place
):
    path = Path("slow.png")
    picture(1).save(path)
    slow = {
        "load_image": {"images": (path,)},
        "load_video": {"video": path},
        "template": {"question": "slow"},
    }[place]
    if place == "template":
        original = type(adapter.preprocessor).prepare

        def lazy(self, images, question, **options):
            return work() if question == "slow" else original(self, images, question, **options)

        monkeypatch.setattr(type(adapter.preprocessor), "prepare", lazy)
    else:
        monkeypatch.setattr(preparing, place, lambda *_: work())
        # A picture would not be taken for a video, whatever it is called.
        monkeypatch.setattr(preparing, "by_content", lambda sample: sample)
    ask = Ask("What?", frames=FrameRule(timeout=0.1), timeout=0.3)
    found = list(prefetch(adapter.preprocessor, [Sample(1), Sample(2, **slow), Sample(3)], ask))
    assert [type(each) for each in found] == [Prepared, Failed, Prepared]
    assert str(found[1].error).startswith(
        f"{LATE} {ask.timeout + 0.1 * (place == 'load_video'):g} seconds"
    )


@pytest.mark.parametrize(
    "template", [ENDLESS, "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}"]
)
def test_a_chat_template_without_end_is_a_failed_row_in_every_flow(adapter, monkeypatch, template):
    monkeypatch.setattr(adapter.processor, "chat_template", template)
    samples, ask = (
        [Sample(1), Sample(2, problem="not JSON")],
        Ask("What?", max_new_tokens=2, timeout=0.3),
    )
    for flow in (
        lambda: answer_all(adapter, None, samples, ask),
        lambda: compare_all(adapter, [None], samples, ask),
    ):
        results = [getattr(each, "results", [each])[0] for each in flow()]
        assert len(results) == 2 and results[1].error == "not JSON"
        assert results[0].error.startswith((LATE, "the chat template of"))


DOUBLED = (
    "{% set x = namespace(s='ab') %}{% for i in range(45) %}{% set x.s = x.s ~ x.s %}{% "
    "endfor %}{{ x.s }}"
)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system does not say what a process has"
)
@pytest.mark.parametrize(
    "template", [DOUBLED, "{{ 'a' * 10 ** 13 }}", "{{ range(10 ** 4) | list | string * 10 ** 6 }}"]
)
def test_a_chat_template_that_asks_for_all_memory_is_a_failed_row(adapter, monkeypatch, template):
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(adapter.processor, "chat_template", template)
    (result,) = answer_all(adapter, None, [Sample(1)], Ask("What?", max_new_tokens=2))
    assert result.error.startswith("the chat template of") and "more than 1 GB" in result.error
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8_000_000  # kB


def test_the_limit_is_an_option(llava_folder, pictures, monkeypatch):
    monkeypatch.setattr(
        preparing, "load_image", lambda path: busy() if path == pictures[1] else load_image(path)
    )
    from trimtok_cli.media.images import load_image

    for command in ("caption", "compare"):
        options = [
            "-m",
            str(llava_folder),
            "--max-new-tokens",
            "2",
            "--timeout",
            "1",
            "-o",
            command,
        ]
        done = CliRunner().invoke(app, [command, *map(str, pictures[:3]), *options])
        assert done.exit_code == 3, done.stderr
    rows = [json.loads(line) for line in Path("caption/answers.jsonl").read_text().splitlines()]
    assert [row["metadata"]["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["metadata"]["error"].startswith(f"{LATE} 1 seconds")
    assert json.loads(Path("caption/run.json").read_text())["config"]["timeout"] == 1
    for value in ("0", "-1", "nan", "inf"):
        done = CliRunner().invoke(app, ["caption", str(pictures[0]), "--timeout", value])
        assert done.exit_code == 2 and "--timeout must be " in done.stderr


def test_in_a_worker_too_late_too_large_or_not_to_be_sent_is_a_failed_row(adapter):
    asked = ["Why?", "endless", "memory", "local", "half", "Why not?"]
    ask = Ask("What?", timeout=6)
    samples = [Sample(i, question=question) for i, question in enumerate(asked)]
    found = list(prefetch(Hooked(adapter.processor, "hooked"), samples, ask, workers=1))
    assert [each.sample for each in found] == samples
    said = {each.sample.question: str(each.error) for each in found if isinstance(each, Failed)}
    assert list(said) == ["endless", "memory", "local"]
    assert said["endless"].startswith(f"{LATE} 6 seconds")
    assert said["memory"].startswith("there is not enough memory to prepare it")
    assert said["local"].startswith("what a worker process prepared cannot be handed over")
    assert (
        len(
            {
                each.inputs.words
                for each in found
                if isinstance(each, Prepared) and each.sample.question != "half"
            }
        )
        == 1
    ), "none of them cost a worker its life"
    assert torch.equal(found[4].inputs.tensors["extra"], torch.arange(3, dtype=torch.bfloat16))


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_that_together_would_fill_the_memory_fail_their_row_alone(
    adapter, tmp_path, monkeypatch, workers
):
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    picture(1).save(tmp_path / "small.png")
    names = [["large.png"] * 6, ["small.png"], ["small.png"] * 3]
    samples = [
        Sample(i, tuple(tmp_path / name for name in each), question="Same?")
        for i, each in enumerate(names)
    ]
    start = time.perf_counter()
    many, *others = prefetch(adapter.preprocessor, samples, Ask("What?"), workers=workers)
    assert isinstance(
        many, Failed
    ) and "6 pictures have more than 358,000,000 pixels together" in str(many.error)
    assert all(isinstance(each, Prepared) for each in others) and time.perf_counter() - start < 60
    assert isinstance(
        next(prefetch(adapter.preprocessor, samples, Ask("What?", max_pixels=10_000))),
        Prepared,
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no"),
        RuntimeError("[x.cpp:127] can't allocate memory"),
    ],
)
def test_a_sample_that_the_memory_does_not_hold_is_told_in_our_words(error):
    assert failed_result(Failed(Sample("a"), error), None, Ask("What?")).error == NO_MEMORY
    assert (
        failed_result(Failed(Sample("a"), RuntimeError("other")), None, Ask("What?")).error
        == "RuntimeError: other"
    )
