"""The record of one answer, which LLaVA's own scorers can read.

The scorers read the first keys and ignore the rest. Every record has the same keys, failed or not.
Knows no model and no file.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trimtok_cli.data import Media, Result
from trimtok_cli.outputs.flags import loops


def record(result: Result, *, model: str, run: str) -> dict[str, Any]:
    """The record of one result.

    Further columns of the input follow ours; the name of one that clashes gets `input_` before it.
    """
    sample, tokens, seconds = result.sample, result.tokens, result.seconds
    media = result.media[0] if result.media else Media()
    names, frames = list(sample.names), sum(len(each.times) or 1 for each in result.media)
    ms = {name: round(1000 * value, 3) for name, value in asdict(seconds).items()}
    row: dict[str, Any] = {
        "question_id": sample.id,
        "prompt": result.question,
        "text": result.answer,
        "answer_id": _answer_id(f"{run}/{sample.id}/{names}/{result.question}"),
        "model_id": model,
        "image": names[0] if len(names) == 1 else names if names else "",
        "metadata": {
            "status": "error" if result.error else "ok",
            "error": result.error,
            "error_class": result.error_class,
            "finish_reason": result.finish,
            "flags": {"cut_off": result.finish == "length", "loops": loops(result.answer)},
            "method": result.method,
            "setting": {
                "name": result.setting.name,
                "keep": result.setting.keep,
                "changes": result.setting.changes,
            },
            "usage": {
                "prompt_tokens": tokens.text + tokens.kept,
                "prompt_tokens_dense": tokens.text + tokens.visual,
                "completion_tokens": tokens.generated,
            },
            "visual": {
                "tokens": tokens.visual,
                "kept": tokens.kept,
                "grid": list(result.grid),
                "frames": max(frames, 1),
                "layer_mean": round(tokens.layer_mean, 3),
                "stages": [list(stage) for stage in tokens.stages],
            },
            "timing_ms": {**ms, "batch_size": result.batch_size},
            "media": {
                "width": media.width,
                "height": media.height,
                "mode": media.mode,
                "exif_orientation": media.exif_orientation,
            },
            "video": _video(result.media),
            "prompt_sent": result.prompt_sent,
            "warnings": list(result.warnings),
            "run": run,
            "key": sample.key,
        },
    }
    for key, value in sample.extra.items():
        row[key if key not in row else f"input_{key}"] = value
    return row


def _answer_id(text: str) -> str:
    """uuid5 of the text, which may hold lone surrogates, from a file name that is not UTF-8."""
    named = uuid.NAMESPACE_URL.bytes + text.encode("utf-8", "surrogatepass")
    return uuid.UUID(bytes=hashlib.sha1(named).digest()[:16], version=5).hex


def _video(media: Sequence[Media]) -> dict[str, Any]:
    """Decoder, length in seconds, frames of the file, and times of the frames that were read.

    The keys are the same if there is no video.
    """
    found = next((each for each in media if each.times), Media(frames=0))
    times = [round(time, 4) for time in found.times]
    return {
        "decoder": found.decoder,
        "duration": round(found.duration, 4),
        "frames": found.frames,
        "frame_times": times,
    }
