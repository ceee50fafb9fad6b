"""From a question and its images to a prompt, and from the prompt's tokens to their authors.

A mark is a string that the checkpoint reads as one token of its own, such as `<image>`. Only the
template writes marks. A mark in a user's text reaches the model as plain characters: a stand-in
character within it hides the mark from the processor and the tokenizer, and the tokens of the
stand-in are dropped again. A text without marks is tokenized exactly as the library does it. Knows
no family.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtok_cli.errors import SampleError

# Placeholders by which a question may say where its images and its video stand.
IMAGE = "<image>"
VIDEO = "<video>"

# The authors of a prompt's characters, one letter each.
TEMPLATE = "t"
SYSTEM = "s"
USER = "u"
MEDIA = "m"  # placeholders as the processor repeated them
STAND_IN = "b"  # read by no model

_PRIVATE = range(0xE000, 0xF900)  # Unicode's private use area: characters without a meaning


def message_parts(question: str, num_images: int, has_video: bool) -> list[dict]:
    """The content of the user's message: image, video and text parts in the order of the question.

    Images and then the video stand in front of the words where the question has no placeholders.
    Blanks in front of the first word and behind the last word are stripped; all others are kept.
    Raises SampleError where the question has more or fewer placeholders than images or videos.
    """
    parts = re.split(f"({IMAGE}|{VIDEO})", question)
    for placeholder, num_given in ((IMAGE, num_images), (VIDEO, int(has_video))):
        num_written = parts.count(placeholder)
        if num_written not in (0, num_given):
            raise SampleError(
                f"the question has {num_written} {placeholder} placeholders for {num_given} "
                f"{placeholder[1:-1]}s: make them equal, "
                f"or write {placeholder} otherwise where no place is meant."
            )
    content: list[dict] = [] if IMAGE in parts else [{"type": "image"}] * num_images
    if has_video and VIDEO not in parts:
        content.append({"type": "video"})
    with_words = [i for i, part in enumerate(parts) if part not in (IMAGE, VIDEO) and part.strip()]
    for i, part in enumerate(parts):
        if part in (IMAGE, VIDEO):
            content.append({"type": part[1:-1]})
        elif part and with_words and with_words[0] <= i <= with_words[-1]:
            text = part.lstrip() if i == with_words[0] else part
            content.append({"type": "text", "text": text.rstrip() if i == with_words[-1] else text})
    return content


@dataclass(frozen=True)
class PromptText:
    """A prompt as text. authors: one letter for each character, which says who wrote it."""

    text: str
    authors: str

    def spliced(self, changes: Iterable[tuple[int, int, str, str]]) -> "PromptText":
        """The prompt after changes (start, stop, string, author), which ascend.

        Each replaces text[start:stop] by a string of one author.
        """
        text: list[str] = []
        authors: list[str] = []
        done = 0
        for start, stop, string, author in changes:
            text += [self.text[done:start], string]
            authors += [self.authors[done:start], author * len(string)]
            done = stop
        return PromptText(
            "".join([*text, self.text[done:]]), "".join([*authors, self.authors[done:]])
        )

    def has_user(self, start: int, stop: int) -> bool:
        """Whether the user wrote any of these characters, in the question or the system prompt."""
        return USER in self.authors[start:stop] or SYSTEM in self.authors[start:stop]


def write_prompt(apply: Callable[[list[dict]], str], chat: Sequence[dict]) -> PromptText:
    """The prompt that a chat template (`apply`) writes for a chat, with its authors.

    The template is applied once more for each text, with another text in its place: the characters
    that change are the user's. Raises SampleError where the template then changes more than those.
    """
    text = apply(list(chat))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError(
            "the question holds half a character (a lone surrogate), which no tokenizer reads."
        ) from None
    other = _unused(text)
    changes = []
    for i, message in enumerate(chat):
        author = SYSTEM if message["role"] == "system" else USER
        for j, part in enumerate(message["content"]):
            if part["type"] != "text":
                continue
            before, behind = message["content"][:j], message["content"][j + 1 :]
            content = [*before, part | {"text": other}, *behind]
            changed = [*chat[:i], message | {"content": content}, *chat[i + 1 :]]
            around = apply(changed).split(other)
            changes += [
                (start, stop, text[start:stop], author) for start, stop in _gaps(text, around)
            ]
    return PromptText(text, TEMPLATE * len(text)).spliced(sorted(changes))


def _gaps(text: str, around: Sequence[str]) -> list[tuple[int, int]]:
    """(start, stop) of the string that stands between each two of the pieces `around` in `text`.

    It is the same string each time. Raises SampleError where there is no such string.
    """
    num_gaps = len(around) - 1
    num_characters = len(text) - sum(map(len, around))
    length = num_characters // num_gaps if num_gaps else 0
    string = text[len(around[0]) : len(around[0]) + max(length, 0)]
    if string.join(around) != text:
        raise SampleError(
            "the chat template writes another prompt around these words than around others: "
            "ask otherwise."
        )
    starts = np.cumsum([len(piece) + length for piece in around[:-1]]) - length
    return [(start, start + length) for start in starts.tolist()]


def _unused(*texts: str) -> str:
    """A character that stands in none of the texts."""
    return next(chr(code) for code in _PRIVATE if not any(chr(code) in text for text in texts))


def marks_of(processor) -> dict[str, int]:
    """The marks of a checkpoint and their ids: special tokens, and added ones that look like them.

    Other added tokens are words and blanks, by which the vocabulary was made larger.
    """
    tokenizer = processor.tokenizer
    marks = {
        token.content: id
        for id, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if token.special or re.fullmatch(r"[^\w\s].*\w.*[^\w\s]", token.content)
    }
    # The processor looks for these, even where the tokenizer does not list them.
    for name in ("image_token", "video_token"):
        if mark := getattr(processor, name, None):
            marks[mark] = tokenizer.convert_tokens_to_ids(mark)
    return {
        mark: id
        for mark, id in marks.items()
        if id is not None and len(mark) > 1 and not mark.isspace()
    }


def hide_marks(prompt: PromptText, marks: Collection[str]) -> PromptText:
    """The prompt with a stand-in within every mark that the user wrote, in whole or in part."""
    stand_in = _unused(prompt.text, *marks)
    # A stand-in may leave a shorter mark beside it, so the search starts anew.
    while present := [mark for mark in marks if mark in prompt.text]:
        pattern = "|".join(re.escape(mark) for mark in sorted(present, key=len, reverse=True))
        ends = [
            match.end() - 1
            for match in re.finditer(pattern, prompt.text)
            if prompt.has_user(*match.span())
        ]
        if not ends:
            break
        prompt = prompt.spliced((end, end, stand_in, STAND_IN) for end in ends)
    return prompt


def with_replacements(prompt: PromptText, replacements: Iterable[Mapping]) -> PromptText:
    """The prompt with its placeholders as the processor replaced them.

    replacements: the `text_replacement_offsets` of the processor.
    """
    return prompt.spliced((*item["span"], item["replacement"], MEDIA) for item in replacements)


def token_rows(
    prompt: PromptText, ids: Tensor, offsets: Tensor, marks: Collection[int]
) -> tuple[Tensor, Tensor]:
    """The rows of `ids` (S,) that are not stand-ins, and the rows among those of the user's words.

    offsets (S, 2): start and stop of each token's characters in the prompt. marks: ids of the
    checkpoint's marks. Raises SampleError where a user's characters became a mark all the same.
    """
    start, stop = (np.array(column) for column in offsets.T.tolist())
    # Some tokenizers leave blanks out of a token's span: a token of one blank then spans nothing,
    # right behind the blank.
    start = np.where((start == stop) & (stop > 0), stop - 1, start)
    users, question, stand_in = (
        _count_by(prompt.authors, authors, start, stop)
        for authors in (USER + SYSTEM, USER, STAND_IN)
    )
    # A token for a single character is no mark: the byte tokens of some checkpoints.
    is_mark = torch.isin(ids, torch.tensor(sorted(marks), dtype=ids.dtype)).numpy() & (
        stop - start > 1
    )
    if (is_mark & (users > 0) & (users == stop - start)).any():
        raise SampleError(
            "the tokenizer reads a mark of its own in the question or the system prompt: "
            "write it otherwise."
        )
    kept = (stand_in != stop - start) | (stand_in == 0)
    instruction = ((question > 0) & ~is_mark)[kept]
    return torch.from_numpy(kept.nonzero()[0]), torch.from_numpy(instruction.nonzero()[0])


def _count_by(letters: str, authors: str, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The number of characters by any of `authors` between each start and stop."""
    codes = np.frombuffer(letters.encode("ascii"), np.uint8)
    before = np.concatenate([[0], np.isin(codes, list(authors.encode("ascii"))).cumsum()])
    return before[stop] - before[start]


def has_start(tokenizer, text: str) -> bool:
    """Whether the template wrote the start token, which the tokenizer must then not add again."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
