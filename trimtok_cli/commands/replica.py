"""What runs in a process of replicas/: loads the run's model, asks for samples, and answers them.

Writes no file. Knows nothing of the parent but the messages.
"""

import os
import pickle
import sys
from collections.abc import Iterator
from itertools import chain
from queue import SimpleQueue
from typing import Any, BinaryIO

from rich.text import Text

from trimtok_cli.child_process import framed
from trimtok_cli.commands.terminal.exit import quieten
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.data import Sample
from trimtok_cli.errors import UsageError
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.replicas.messages import ASK, Ready, Refusal, Task, Turn, packed

LOST = 70  # the exit code of a process whose device answers no more


class Notes(Screen):
    """A screen that keeps what it is to say: the parent says it, once for all replicas."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []

    def say(self, text: str | Text = "", style: str = "") -> None:
        self.notes.append(str(text))


class Replica:
    """Answers the samples that the parent sends. inbox: that of `child_process.inbox`."""

    def __init__(self, inbox: SimpleQueue[bytes], out: BinaryIO) -> None:
        self.inbox, self.out = inbox, out
        self.task: Task = pickle.loads(inbox.get())
        self.task.config.sources.update(self.task.sources)
        quieten(self.task.debug)

    def run(self) -> None:
        try:
            self._run()
        except BrokenPipeError:
            raise
        except Exception as error:
            if self.task.debug:
                sys.excepthook(*sys.exc_info())
            self._send(Refusal.of(error))

    def _run(self) -> None:
        from trimtok_cli.commands.run import load_here

        config, notes = self.task.config, Notes()
        check_gpu(config.device)
        loaded = load_here(config, None, notes, Processes())
        said = tuple(notes.notes[1:])  # the first is that the model is being loaded
        self._send(Ready(loaded.setting, loaded.engine, loaded.model, loaded.generation, said))
        while True:
            first = self._turn()
            if first.sample is None:
                continue
            # One that may end the process is prepared here, and no other process is started for it.
            options: dict[str, Any] = {"workers": 0} if first.alone else {}
            for result in loaded.answer(chain([first.sample], self._samples()), **options):
                if result.error and not device_answers(config.device):
                    os._exit(LOST)
                self._send(result)

    def _samples(self) -> Iterator[Sample]:
        while (turn := self._turn()).sample is not None:
            yield turn.sample

    def _turn(self) -> Turn:
        self._send(ASK)
        turn: Turn = pickle.loads(self.inbox.get())
        return turn

    def _send(self, message: Any) -> None:
        data = framed(packed(message))
        self.out.write(data)
        self.out.flush()


def check_gpu(device: str) -> None:
    """Raises UsageError if the GPU that this process was given is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "torch finds no GPU in this process, which was given one: `trimtok env` shows what "
            "there is, and --device cpu --processes N runs without."
        )


def device_answers(device: str) -> bool:
    """Whether the device still does work: after some errors a GPU fails at all that follows."""
    import torch

    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main(inbox: SimpleQueue[bytes]) -> None:
    """Answers until the process ends with its parent."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not get between the messages
    try:
        Replica(inbox, out).run()
    except BrokenPipeError:  # the parent no longer reads
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # At once: decoders have crashed while they tidied up, and a thread still reads the inbox.
    os._exit(1)
