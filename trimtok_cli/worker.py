"""What runs in a worker process of ahead.py: samples come in by its standard input, prepared ones leave by its standard output.

Both are plain pickles, tensors in them as numpy arrays: bytes through a pipe need no shared memory, of which containers have
little, and no file handle each. Knows no model and nothing of the parent but what it is sent.
"""

import copyreg
import logging
import os
import pickle
import signal
from contextlib import suppress
from typing import Any, BinaryIO

import torch

from trimtok_cli.errors import ModelError
from trimtok_cli.prepare import attempt


def send(file: BinaryIO, value: Any) -> None:
    pickler = pickle.Pickler(file, protocol=5)
    pickler.dispatch_table = copyreg.dispatch_table | {torch.Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}
    pickler.dump(value)
    file.flush()


def main() -> None:
    """Answers samples until standard input closes, as it does when the parent is gone, however that ended."""
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints shall not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        _serve(source, out)
    os._exit(0)  # decoders have been known to crash while they tidy up


def _serve(source: BinaryIO, out: BinaryIO) -> None:
    """Says None when it is ready; then a Prepared, a Failed or a ModelError for every sample."""
    task = source.read(int.from_bytes(source.read(8), "big"))
    try:
        level, limit, preprocessor, ask = pickle.loads(task)
    except Exception as error:  # a class that only the parent's own script knows
        said = f"the workers cannot load the preprocessor ({error}): define its class in a module, or use 0 workers."
        return send(out, ModelError(said))
    if level <= logging.DEBUG:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("trimtok").setLevel(level)
    send(out, None)
    while True:
        sample = pickle.load(source)
        _alarm(limit)
        try:
            found = attempt(preprocessor, sample, ask)
        except ModelError as error:
            found = error
        _alarm(0)
        send(out, found)


def _alarm(seconds: float) -> None:
    """Ends the process then, also in a native loop; the parent says so. 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
