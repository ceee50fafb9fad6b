"""A worker process of pool.py: reads samples from standard input, writes prepared ones to output.

Both are plain pickles with tensors as numpy arrays. Bytes through a pipe need no shared memory, of
which containers have little, and no file handle for each tensor. Knows no model, and nothing of the
parent but the messages.
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
import transformers

from trimtok_cli.data import Failed
from trimtok_cli.errors import ModelError, SampleError, sentence
from trimtok_cli.prepare.sample import attempt

# Parts of the library that every processor is made of.
OF_PROCESSORS = (
    "ProcessorMixin",
    "PreTrainedTokenizerFast",
    "BaseVideoProcessor",
    "TorchvisionBackend",
)


def packed(value: Any) -> bytes:
    """The bytes of a message; an error in pickling comes before any byte is in the pipe."""
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
    """Answers messages until the process ends with its parent.

    inbox: that of `child_process.inbox`, which ends this process.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's prints must not get between the replies
    torch.set_num_threads(1)
    # These imports take seconds, and the task may still be on its way.
    for part in OF_PROCESSORS:
        getattr(transformers, part)
    try:
        _serve(inbox, out)
    except BrokenPipeError:  # the parent no longer reads
        pass
    except BaseException:
        sys.excepthook(*sys.exc_info())
    # At once: decoders have crashed while they tidied up, and a thread still reads the inbox.
    os._exit(1)


def _send(out: BinaryIO, message: bytes) -> None:
    """Writes a message behind its length in 8 bytes."""
    out.write(len(message).to_bytes(8, "big"))
    out.write(message)
    out.flush()


def _serve(inbox: SimpleQueue[bytes], out: BinaryIO) -> None:
    """Sends None when it is ready, then one reply for each sample.

    A reply is a Prepared, a Failed, a ModelError, or None for a sample that it cannot read.
    """
    try:
        level, preprocessor, ask = pickle.loads(inbox.get())
    # A class that only the parent's own script has.
    except (AttributeError, ModuleNotFoundError) as error:
        refusal = (
            f"the workers cannot load the preprocessor ({error}): define its class in a "
            "module, or use 0 workers."
        )
        return _send(out, packed(ModelError(refusal)))
    if level <= logging.DEBUG:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("trimtok").setLevel(level)
    _send(out, packed(None))
    while True:
        _send(out, _reply(inbox.get(), preprocessor, ask))


def _reply(message: bytes, preprocessor: Any, ask: Any) -> bytes:
    try:
        sample = pickle.loads(message)
    except Exception:  # a script's own sample, of a class that only the parent has
        return packed(None)
    try:
        return packed(attempt(preprocessor, sample, ask))
    except ModelError as error:
        return packed(error)
    except Exception as error:
        problem = (
            f"what a worker process prepared cannot be handed over ({sentence(error)}): use "
            "0 workers"
        )
        return packed(Failed(sample, SampleError(problem)))
