"""A question and its images as chat messages, and where the user's words are among the tokens. Knows no family."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import SampleError

IMAGE, VIDEO = "<image>", "<video>"  # what a question may hold to say where each goes


def message_parts(question: str, num_images: int, has_video: bool) -> list[dict]:
    """The user's message. Without placeholders in the question, images and then the video stand in front of the words."""
    parts = re.split(f"({IMAGE}|{VIDEO})", question)
    for mark, there in ((IMAGE, num_images), (VIDEO, int(has_video))):
        asked = parts.count(mark)
        if asked not in (0, there):
            raise SampleError(f"the question has {asked} {mark} placeholders for {there} {mark[1:-1]}s: make them equal.")
    content: list[dict] = [] if IMAGE in parts else [{"type": "image"}] * num_images
    content += [{"type": "video"}] if has_video and VIDEO not in parts else []
    for part in parts:
        if part in (IMAGE, VIDEO):
            content.append({"type": part[1:-1]})
        elif part.strip():
            content.append({"type": "text", "text": part.strip()})
    return content


def has_start(tokenizer, text: str) -> bool:
    """Some templates write the start token themselves; it must not come twice."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def instruction_rows(tokenizer, text: str, parts: Sequence[str], ids: Tensor) -> Tensor:
    """The rows of `ids` (S,) that hold the user's `parts` of `text`, in whose gaps the processor let placeholders grow.

    Rows in front of the first image are the same with and without images, and so, counted from the end, are those behind
    the last one; what stands between two images is looked for between them.
    """
    if not parts or not tokenizer.is_fast:
        return torch.empty(0, dtype=torch.long)
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not has_start(tokenizer, text))
    short, long = coded.input_ids, ids.tolist()
    head, tail = _same(short, long), _same(short[::-1], long[::-1])
    rows, end, cursor = [], len(text), len(long) - tail
    for words in reversed(parts):
        at = text.rfind(words, 0, end)
        if at < 0:
            break
        between, end = [], at
        for i, (start, stop) in enumerate(coded.offset_mapping):
            if not (start < at + len(words) and stop > at and stop > start):
                continue
            if len(short) - i <= tail:
                rows.append(len(long) - len(short) + i)
            elif i < head:
                rows.append(i)
            else:
                between.append(short[i])
        place = _rfind(long, between, cursor) if between else -1
        if place >= 0:
            rows += range(place, place + len(between))
            cursor = place
    return torch.tensor(sorted(rows), dtype=torch.long)


def _same(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _rfind(long: list[int], short: list[int], end: int) -> int:
    """Where `short` stands last in long[:end], or -1."""
    return next((i for i in range(end - len(short), -1, -1) if long[i : i + len(short)] == short), -1)
