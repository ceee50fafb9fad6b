"""A worker process that loads no torch, and does the harm that a sample's question asks for.

It answers messages as worker.py does and starts in a moment, so that the tests of the parent's side
may lose many of them.
"""

import os
import pickle
import signal
import time
from pathlib import Path

from trimtok_cli.child_process import inbox
from trimtok_cli.data import Sample, Seconds


class Light:
    """A preprocessor of words."""

    has_video = False

    def prepare(self, images, question: str, **options) -> str:
        return f"prepared {question}"


class Reply:
    """Becomes a Prepared in the parent."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def __reduce__(self):
        return prepared, (self.sample,)


def prepared(sample: Sample):
    from trimtok_cli.prepare.sample import Prepared

    return Prepared(sample, sample.question, Light().prepare([], sample.question), (), Seconds())


def send(answer: bytes, length: int | None = None) -> None:
    data = (len(answer) if length is None else length).to_bytes(8, "big") + answer
    while data:
        data = data[os.write(1, data) :]


def harm(question: str) -> None:
    """Does the harm; returns only where this process goes on."""
    match question.split():
        case ["die", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["leave", *_]:
            os._exit(7)
        case ["once", name]:  # only the first time
            if not Path(name).exists():
                Path(name).touch()
                os.kill(os.getpid(), signal.SIGTERM)
        case ["stop", *_]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["hang", *_]:
            time.sleep(60)
        case ["cut", *_]:
            send(b"half an answer", length=1000)
            os._exit(0)
        case ["cut-and-stop", *_]:
            send(b"half an answer", length=1000)
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["endless", *_]:
            send(b"", length=1 << 62)
        case ["unreadable", *_]:
            send(b"this is no pickle")
        case ["slow", seconds, *_]:
            time.sleep(float(seconds))


def starts() -> int:
    """The number of these processes started in this folder, this one included."""
    Path("starts").mkdir(exist_ok=True)
    Path("starts", str(os.getpid())).touch()
    return len(list(Path("starts").iterdir()))


def main() -> None:
    if starts() > int(os.environ.get("LIGHT_STARTS", "1000000")):
        harm(os.environ.get("LIGHT_END", "die"))
    messages = inbox()
    messages.get()  # the task
    send(pickle.dumps(None))
    while True:
        sample = pickle.loads(messages.get())
        harm(sample.question)
        if sample.question.split()[0] != "unreadable":
            send(pickle.dumps(Reply(sample)))
