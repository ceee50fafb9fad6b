"""The child process of video.py: one decoder takes the chosen frames out of one file, and the child
writes them to its standard output. Knows nothing of the parent but its request.
"""

import json
import os
import re
import signal
import sys
from typing import Any

import numpy as np

from trimtok_cli.child_process import end_with_parent
from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media.decoders import decord, pillow, pyav
from trimtok_cli.media.files import machine_fault, unquoted

# name -> read(path, name of the file in messages, rule, last decoder to be asked)
DECODERS = {"decord": decord.read, "pyav": pyav.read, "pillow": pillow.read}


def main() -> None:
    """Answers the request on the command line: a line of JSON, then the bytes of the frames.

    The JSON holds the fields of a Clip, or `final` (a sentence for the user), or `reason` (why
    another decoder should be asked).
    """
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not get between the frames
    request = json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):  # ends even a native loop, should the parent be gone
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
    os.write(out, b"ready\n")  # whatever happens from here on is the file's doing
    answer, frames = _answer(request)
    with os.fdopen(out, "wb") as file:
        file.write(json.dumps(answer).encode() + b"\n")
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)
    os._exit(0)  # decoders have been known to crash while they tidy up


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The answer to a request and the frames (H, W, 3); no frames where the decoder failed."""
    path, name, decoder = request["path"], request["name"], request["decoder"]
    try:
        end_with_parent(lambda: os.read(0, 1))
        rule = FrameRule(**request["rule"])
        answer, frames = DECODERS[decoder](path, name, rule, request["last"])
        height, width = frames[0].shape[:2]
        return answer | {"decoder": decoder, "width": width, "height": height}, frames
    except MediaError as error:
        return {"final": str(error)}, []
    except MemoryError:
        remedy = "ask for fewer frames or make it smaller"
        return {"final": f"{name} does not fit into memory; {remedy}"}, []
    except Exception as error:
        if fault := machine_fault(error):
            return {"final": f"{name} cannot be decoded, as {fault}"}, []
        return {"reason": _reason(error, path)}, []


def _reason(error: Exception, path: str) -> str:
    """A library's first line, without numbers, the path, and anything quoted from the file."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return unquoted(
        re.sub(r"^(\[(Errno )?[\d:]+\] (\S+:\d+: )?)+", "", lines[0]).replace(path, "it")
    )
