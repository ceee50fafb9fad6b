"""A video file -> a few upright RGB frames, evenly spaced in time, and when each of them is shown.

A child process decodes, as a broken file can hang or crash a decoder's native code. decord is asked
first; where decord is missing, fails, or cannot be shown to find the right frame, PyAV takes over.
The child's side is decoder_child.py. Knows no model, no reader and no command line.
"""

import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from trimtok_cli.blobs import Medium
from trimtok_cli.child_process import python_command
from trimtok_cli.data import FrameRule
from trimtok_cli.errors import MediaError
from trimtok_cli.media.blob_files import medium_of, saved
from trimtok_cli.media.containers import missing_part
from trimtok_cli.media.files import as_media_error, machine_fault, refuse_irregular
from trimtok_cli.media.frames import DECODER_PACKAGES, Clip
from trimtok_cli.media.kinds import HEAD, container, looks_like, picture

# Suffixes that a search of a folder takes for videos. A file that is named may have any suffix.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx"}
    | {".wmv", ".asf", ".flv", ".ogv", ".ogm", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob"}
    | {".ts", ".m2ts", ".mts", ".m2t", ".mxf", ".rm", ".rmvb", ".ivf", ".y4m"}
)

# The program of the child process.
_CHILD = "from trimtok_cli.media.decoder_child import main; main()"


def load_video(path: Medium | str, rule: FrameRule) -> Clip:
    """The frames that `rule` asks for.

    The content tells what the file is: an animated GIF, WebP or PNG gives its frames too, a still
    picture gives one. MediaError where the file or the span of the rule holds no frame, or no
    decoder is installed.
    """
    medium, name = medium_of(path)
    with as_media_error(name), saved(medium) as path:
        if not _is_video(path, name):
            return _decode(path, name, rule, ["pillow"])
        wanted = [rule.backend] if rule.backend != "auto" else list(DECODER_PACKAGES)
        decoders = [decoder for decoder in wanted if find_spec(DECODER_PACKAGES[decoder])]
        if not decoders:
            commands = " or: ".join(
                f"pip install {DECODER_PACKAGES[decoder]}" for decoder in wanted
            )
            raise MediaError(f"{name} is a video, which needs one more package; run: {commands}")
        return _decode(path, name, rule, decoders)


def _is_video(path: Path, name: str) -> bool:
    """True for a video, False for a picture, by an allow-list of kinds.

    MediaError for any other file, and for a video that was cut short.
    """
    status = path.stat()
    refuse_irregular(status, name, "video")
    with path.open("rb") as file:
        head = file.read(HEAD)
        if picture(head)[0]:
            return False
        kind = container(head)
        if not kind:
            raise MediaError(
                f"{name} is not a video of a known kind (it looks like {looks_like(head)}); "
                "save it as MP4"
            )
        if reason := missing_part(file, head, kind, status.st_size):
            raise MediaError(f"{name} is damaged or cut short ({reason}); fetch or save it again")
    return True


def _decode(path: Path, name: str, rule: FrameRule, decoders: list[str]) -> Clip:
    """The frames from the first of the decoders that can read the file."""
    deadline = time.monotonic() + rule.timeout
    reason = ""
    for number, decoder in enumerate(decoders):
        # A decoder may hang, so each gets an equal share of the time that is left.
        num_left = len(decoders) - number
        request = {
            "path": os.path.abspath(path),
            "name": name,
            "decoder": decoder,
            "last": num_left == 1,
            "rule": asdict(rule),
        }
        answer = _ask_child(request, (deadline - time.monotonic()) / num_left)
        if isinstance(answer, Clip):
            return answer
        if "final" in answer:
            raise MediaError(answer["final"])
        reason = answer["reason"]
    if reason == "timeout":
        limit = f"{rule.timeout:g} seconds"
        raise MediaError(
            f"{name} was not decoded within {limit}; raise --video-timeout, ask for fewer --frames "
            "or save it again"
        )
    if decoders == ["decord"]:
        remedy = "let PyAV read it" if find_spec("av") else "PyAV may read it, run: pip install av"
        raise MediaError(f"{name} cannot be read by decord ({reason}); {remedy}")
    raise MediaError(f"{name} is damaged or cut short ({reason}); fetch or save it again")


def _ask_child(request: dict[str, Any], seconds: float) -> Clip | dict[str, str]:
    """The Clip, or why there is none.

    `final` is a sentence for the user; `reason` leaves the file to the next decoder.
    """
    name = request["name"]
    late = threading.Event()
    process = timer = None
    pipe: tuple[int, ...] = ()
    try:
        # The pipe closes with this process, however that ends, and the child ends with the pipe.
        pipe = os.pipe()
        process = subprocess.Popen(
            python_command(_CHILD, json.dumps(request | {"seconds": seconds})),
            # numpy computes nothing in the child.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=pipe[0],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for this process, which then ends the child.
            start_new_session=True,
        )
        timer = threading.Timer(max(seconds, 0.001), lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        return _read_answer(process, name, late)
    except (OSError, RuntimeError) as error:  # RuntimeError: no further thread
        reason = getattr(error, "strerror", None) or error
        fault = machine_fault(error) or f"{reason}; free what the machine is short of"
        raise MediaError(
            f"{name} cannot be decoded, as no decoder process can be started: {fault}"
        ) from error
    finally:
        if timer is not None:
            timer.cancel()
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
        for end in pipe:
            os.close(end)


def _read_answer(
    process: subprocess.Popen, name: str, late: threading.Event
) -> Clip | dict[str, str]:
    """The answer that the child writes, or why there is none. late: the child was ended."""
    out = process.stdout
    ready = out.readline() == b"ready\n"
    with suppress(ValueError):  # no JSON, or fewer pixels than announced
        answer = json.loads(out.readline())
        if "times" not in answer:
            return answer
        size = width, height = answer["width"], answer["height"]
        frames = [
            Image.frombytes("RGB", size, out.read(width * height * 3)) for _ in answer["times"]
        ]
        lists = {
            "frames": tuple(frames),
            "times": tuple(answer["times"]),
            "warnings": tuple(answer["warnings"]),
        }
        return Clip(**answer | lists)
    code = process.wait()
    if late.is_set():
        return {"reason": "timeout"}
    if hasattr(signal, "SIGKILL") and code == -signal.SIGKILL:
        return {
            "final": f"{name} was not decoded: its decoder was killed, as the system does when "
            "memory is short; free some"
        }
    if not ready:
        short_of = "as where memory, processes or disk are short; free some"
        return {
            "final": f"{name} was not decoded (the decoder crashed before it opened the file), "
            f"{short_of}"
        }
    return {"reason": "the decoder crashed"}
