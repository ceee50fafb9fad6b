"""What runs in a worker process of ahead.py: samples come in by its standard input, prepared ones
leave by its standard output.

Both are plain pickles, tensors in them as numpy arrays: bytes through a pipe need no shared memory,
of which containers have little, and no file handle each. Knows no model and nothing of the parent
but what it is sent.
"""

import copyreg
import io
import logging
import os
import pickle
import sys
from queue import SimpleQueue
from typing import Any, BinaryIO

import torch

from trimtok_cli.data import Failed
from trimtok_cli.errors import ModelError, SampleError, sentence
from trimtok_cli.prepare.sample import attempt


def packed(value: Any) -> bytes:
    """As a whole, before any of it is sent: what cannot be pickled leaves nothing in the pipe."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = copyreg.dispatch_table | {torch.Tensor: _as_array}
    pickler.dump(value)
    return buffer.getvalue()


def _as_array(tensor: torch.Tensor) -> tuple:
    try:
        return torch.from_numpy, (tensor.numpy(),)
    except (TypeError, RuntimeError):  # numpy knows no bfloat16
        return tensor.__reduce_ex__(5)


def main(inbox: SimpleQueue[bytes]) -> None:
    """Answers the samples of `child.inbox`, which ends this process with its parent."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints shall not get between the answers
    torch.set_num_threads(1)
    try:
        _serve(inbox, out)
    except BrokenPipeError:  # nobody waits for the answer
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(
        1
    )  # at once: decoders have been known to crash while they tidy up, and a thread still listens


def _say(out: BinaryIO, answer: bytes) -> None:
    out.write(len(answer).to_bytes(8, "big"))
    out.write(answer)
    out.flush()


def _serve(inbox: SimpleQueue[bytes], out: BinaryIO) -> None:
    """Says None when it is ready; then a Prepared, a Failed or a ModelError for a sample, None for
    one that it cannot read.
    """
    try:
        level, preprocessor, ask = pickle.loads(inbox.get())
    except (
        AttributeError,
        ModuleNotFoundError,
    ) as error:  # a class that only the parent's own script knows
        said = (
            f"the workers cannot load the preprocessor ({error}): define its class in a "
            "module, or use 0 workers."
        )
        return _say(out, packed(ModelError(said)))
    if level <= logging.DEBUG:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("trimtok").setLevel(level)
    _say(out, packed(None))
    while True:
        _say(out, _answer(inbox.get(), preprocessor, ask))


def _answer(message: bytes, preprocessor: Any, ask: Any) -> bytes:
    try:
        sample = pickle.loads(message)
    except Exception:  # a class that only the parent knows, in a sample that a script made
        return packed(None)
    try:
        return packed(attempt(preprocessor, sample, ask))
    except ModelError as error:
        return packed(error)
    except Exception as error:
        said = (
            f"what a worker process prepared cannot be handed over ({sentence(error)}): use "
            "0 workers"
        )
        return packed(Failed(sample, SampleError(said)))
