"""A question and its images as chat messages, the prompt that a template writes of them, and which
of its tokens are whose.

A user's text is never a mark: the template alone writes those. The characters of one that stands in
a user's text reach the model as characters: a stand-in within it, whose tokens are dropped again,
hides it from the processor and the tokenizer. A text without marks is tokenized exactly as the
library does it. Knows no family.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtok_cli.errors import SampleError

IMAGE, VIDEO = "<image>", "<video>"  # what a question may hold to say where each goes

TEMPLATE, SYSTEM, USER, MEDIA, BREAK = (
    "tsumb"  # who writes a character; BREAK is a stand-in that no model reads
)

_PRIVATE = range(0xE000, 0xF900)  # characters that mean nothing to anybody


def message_parts(question: str, num_images: int, has_video: bool) -> list[dict]:
    """The user's message. Without placeholders in the question, images and then the video stand in
    front of the words.

    Blanks are kept between words and what stands among them, and stripped in front of the first
    word and behind the last one. SampleError where the question names more or fewer places than
    there are images or videos.
    """
    parts = re.split(f"({IMAGE}|{VIDEO})", question)
    for mark, there in ((IMAGE, num_images), (VIDEO, int(has_video))):
        asked = parts.count(mark)
        if asked not in (0, there):
            raise SampleError(
                f"the question has {asked} {mark} placeholders for {there} {mark[1:-1]}s: "
                "make them equal, "
                f"or write {mark} otherwise where no place is meant."
            )
    content: list[dict] = [] if IMAGE in parts else [{"type": "image"}] * num_images
    content += [{"type": "video"}] if has_video and VIDEO not in parts else []
    spoken = [i for i, part in enumerate(parts) if part not in (IMAGE, VIDEO) and part.strip()]
    for i, part in enumerate(parts):
        if part in (IMAGE, VIDEO):
            content.append({"type": part[1:-1]})
        elif part and spoken and spoken[0] <= i <= spoken[-1]:
            part = part.lstrip() if i == spoken[0] else part
            content.append({"type": "text", "text": part.rstrip() if i == spoken[-1] else part})
    return content


@dataclass(frozen=True)
class Written:
    """A prompt as text. by: for every character of it, a letter that says who writes it."""

    text: str
    by: str

    def spliced(self, changes: Iterable[tuple[int, int, str, str]]) -> "Written":
        """With text[start:stop] replaced by a string of one author, for each (start, stop, string,
        author), ascending.
        """
        text, by, last = [], [], 0
        for start, stop, string, author in changes:
            text += [self.text[last:start], string]
            by += [self.by[last:start], author * len(string)]
            last = stop
        return Written("".join([*text, self.text[last:]]), "".join([*by, self.by[last:]]))

    def users(self, start: int, stop: int) -> bool:
        """Whether the user writes any of these characters, as the question or as the system
        prompt.
        """
        return USER in self.by[start:stop] or SYSTEM in self.by[start:stop]


def written(apply: Callable[[list[dict]], str], chat: Sequence[dict]) -> Written:
    """What `apply`, a chat template, writes of a chat, and which characters of it are the user's.

    A text's place is what changes when another stands there: the template is applied once more for
    each text. SampleError where it then writes something else around it as well.
    """
    text = apply(list(chat))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError(
            "the question holds half a character (a lone surrogate), which no tokenizer reads."
        ) from None
    other, changes = _unused(text), []
    for i, message in enumerate(chat):
        for j, part in enumerate(message["content"]):
            if part["type"] == "text":
                content = [
                    *message["content"][:j],
                    part | {"text": other},
                    *message["content"][j + 1 :],
                ]
                around = apply([*chat[:i], message | {"content": content}, *chat[i + 1 :]]).split(
                    other
                )
                author = SYSTEM if message["role"] == "system" else USER
                changes += [
                    (start, stop, text[start:stop], author) for start, stop in _gaps(text, around)
                ]
    return Written(text, TEMPLATE * len(text)).spliced(sorted(changes))


def _gaps(text: str, around: Sequence[str]) -> list[tuple[int, int]]:
    """Where the same string stands between the pieces `around`, which together with it are
    `text`.
    """
    times, left = len(around) - 1, len(text) - sum(map(len, around))
    length = left // times if times else 0
    string = text[len(around[0]) : len(around[0]) + max(length, 0)]
    if string.join(around) != text:
        raise SampleError(
            "the chat template writes another prompt around these words than around others: "
            "ask otherwise."
        )
    starts = np.cumsum([len(piece) + length for piece in around[:-1]]) - length
    return [(start, start + length) for start in starts.tolist()]


def _unused(*texts: str) -> str:
    """A character that stands in none of them."""
    return next(chr(code) for code in _PRIVATE if not any(chr(code) in text for text in texts))


def marks_of(processor) -> dict[str, int]:
    """What the checkpoint reads as one token of its own, and its id: special tokens, and added ones
    that are written like those.

    Other added tokens are words and blanks: with them the vocabulary was made larger.
    """
    tokenizer = processor.tokenizer
    marks = {
        token.content: id
        for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if token.special or re.fullmatch(r"[^\w\s].*\w.*[^\w\s]", token.content)
    }
    for name in (
        "image_token",
        "video_token",
    ):  # which the processor looks for, whatever the tokenizer thinks of them
        if mark := getattr(processor, name, None):
            marks[mark] = tokenizer.convert_tokens_to_ids(mark)
    return {
        mark: id
        for mark, id in marks.items()
        if id is not None and len(mark) > 1 and not mark.isspace()
    }


def guarded(prompt: Written, marks: Collection[str]) -> Written:
    """The prompt with a stand-in within every mark that reaches into a user's text."""
    stand_in = _unused(prompt.text, *marks)
    while there := [mark for mark in marks if mark in prompt.text]:
        pattern = "|".join(re.escape(mark) for mark in sorted(there, key=len, reverse=True))
        ends = [
            found.end() - 1
            for found in re.finditer(pattern, prompt.text)
            if prompt.users(*found.span())
        ]
        if not ends:
            break
        prompt = prompt.spliced((end, end, stand_in, BREAK) for end in ends)
    return prompt


def grown(prompt: Written, replacements: Iterable[Mapping]) -> Written:
    """The prompt with its placeholders as the processor replaced them; it says so as
    `text_replacement_offsets`.
    """
    return prompt.spliced((*each["span"], each["replacement"], MEDIA) for each in replacements)


def token_rows(
    prompt: Written, ids: Tensor, offsets: Tensor, marks: Collection[int]
) -> tuple[Tensor, Tensor]:
    """Rows of `ids` (S,) without those of stand-ins, and rows of those that hold the question's
    words.

    offsets (S, 2): the characters of `prompt` that each token was made of. SampleError where a
    user's characters became one of `marks` all the same.
    """
    start, stop = offsets.T.tolist()
    # Some tokenizers leave blanks out of a token's span; a blank alone then spans nothing, right
    # behind itself.
    start, stop = np.array(start), np.array(stop)
    start = np.where((start == stop) & (stop > 0), stop - 1, start)
    users, question, stand_in = (
        _counted(prompt.by, authors, start, stop) for authors in (USER + SYSTEM, USER, BREAK)
    )
    # One that stands for a single character is no mark there: the byte tokens of some checkpoints.
    is_mark = torch.isin(ids, torch.tensor(sorted(marks), dtype=ids.dtype)).numpy() & (
        stop - start > 1
    )
    if (is_mark & (users > 0) & (users == stop - start)).any():
        raise SampleError(
            "the tokenizer reads a mark of its own in the question or the system prompt: "
            "write it otherwise."
        )
    kept = (stand_in != stop - start) | (stand_in == 0)
    return torch.from_numpy(kept.nonzero()[0]), torch.from_numpy(
        ((question > 0) & ~is_mark)[kept].nonzero()[0]
    )


def _counted(by: str, authors: str, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """How many characters from each start to each stop are one of `authors`'."""
    letters = np.frombuffer(by.encode("ascii"), np.uint8)
    before = np.concatenate([[0], np.isin(letters, list(authors.encode("ascii"))).cumsum()])
    return before[stop] - before[start]


def has_start(tokenizer, text: str) -> bool:
    """Some templates write the start token themselves; it must not come twice."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
