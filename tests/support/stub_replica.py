"""Replicas without a model: real processes that answer at once, and do the harm that a picture asks
for. All else is the program itself. Loads no torch.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.support import stub_engine
from trimtok_cli.data import Result, Sample
from trimtok_cli.errors import ModelError

REPLICA = (
    "from trimtok_cli.child_process import inbox; messages = inbox(); from "
    "tests.support.stub_replica import main; main(messages)"
)


def first_time(name: str) -> bool:
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def harmed(sample: Sample) -> Sample:
    """The sample, once the harm is done that its file asks for."""
    file = Path(sample.images[0])
    words = file.read_text().split() if file.exists() else []
    match words:
        case ["die", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["once", name, *_] if first_time(name):
            os.kill(os.getpid(), signal.SIGKILL)
        case ["orphan", name, *_] if first_time(name):  # the actor of Ray whose process this is
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case ["leave", name, *_] if first_time(name):
            os._exit(7)
        case ["slow", seconds, *_]:
            time.sleep(float(seconds))
        case ["starts", number, *_]:  # until so many were started, and some seconds more
            while not Path("numbers", str(int(number) - 1)).exists():
                time.sleep(0.05)
            time.sleep(4)
        case ["noise", *_]:
            os.write(1, b"a library's words")
        case ["unreadable", name, *_] if first_time(name):
            from trimtok_cli.commands import replica

            replica.packed = lambda message: b"this is no pickle"
        case ["cuda", name, *_] if first_time(name):
            Path("lost").touch()
            return replace(sample, images=(Path("nowhere"),))
        case ["refuse", *_]:
            raise ModelError("the model does not fit its processor")
    return sample


def answer_all(adapter, pruner, samples, ask, **options) -> Iterator[Result]:
    yield from stub_engine.answer_all(adapter, pruner, map(harmed, samples), ask, **options)


def main(messages: SimpleQueue[bytes]) -> None:
    """What `commands.replica.main` is, with the stub in the engine's place."""
    for folder in ("numbers", "starts"):
        Path(folder).mkdir(exist_ok=True)
    number = next(each for each in count() if first_time(f"numbers/{each}"))
    Path("starts", f"{number}-{os.getpid()}").touch()
    begin = os.environ.get("STUB_START", "").split()
    if begin[:1] == ["die"] and number >= int(begin[1]):
        os._exit(9)
    if begin[:1] == ["wait"]:
        time.sleep(60)
    from trimtok_cli.commands import replica, run

    patch = pytest.MonkeyPatch()
    stub_engine.install(patch, answer_all)
    if begin[:1] == ["dtype"] and number == 1:
        other = {"name": "m", "commit": "local", "dtype": "float16"}
        patch.setattr(run, "describe", lambda _: other)
    if begin[:1] == ["refuse"] and number >= int(begin[1]):
        patch.setattr(run, "check_video", refuse)
    patch.setattr(replica, "check_gpu", lambda device: None)
    patch.setattr(replica, "device_answers", device_answers)
    replica.main(messages)


def refuse(*_: object) -> None:
    raise ModelError("this model cannot be loaded: \x1b[31m a file is missing")


def device_answers(device: str) -> bool:
    """Whether no picture has broken the device."""
    if lost := Path("lost").exists():
        Path("lost").unlink()
    return not lost


def program() -> None:
    """The command line of this process, with such replicas."""
    from trimtok_cli.commands import replicated

    replicated.REPLICA = REPLICA
    from trimtok_cli.__main__ import main as start

    start()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    program()
