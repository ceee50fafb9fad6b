"""The rows of a prompt that hold the question, where only its token ids are known.

The engine knows who wrote which character. Of a prompt that somebody else made, the question is
looked for in the user's last turn: it is what stands behind the last visual token there, up to
where the chat template closes the turn; if nothing stands there, it is what stands in front of the
turn's first visual token. Knows no family.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.errors import SampleError
from trimtok_cli.models.chat import has_start
from trimtok_cli.models.preprocessor import Preprocessor

# Texts that share no token, neither at the beginning nor at the end.
PROBES = ("When?", "For 7 of us!")


class Question:
    """Where a family's chat template has a question, told by what it writes around others."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self.preprocessor = preprocessor
        self.tokenizer = preprocessor.processor.tokenizer

    def rows(self, ids: Tensor, is_visual: Tensor) -> Tensor:
        """(M,) rows of ids (S,) that hold the question, without marks, and blanks at its ends."""
        if not is_visual.any():
            return torch.empty(0, dtype=torch.long)
        listed = ids.tolist()
        head, tail = self._around
        start, end = 0, len(listed)
        if tail and listed[-len(tail) :] == tail:
            end -= len(tail)
        if listed[: len(head)] == head:
            start = len(head)
        start = _behind_last(self._between, listed, end) or start
        visual = [row for row in is_visual.nonzero().flatten().tolist() if row >= start]
        behind = self._words(listed, range(max([start - 1, *visual]) + 1, end))
        before = self._words(listed, range(start, min([end, *visual])))
        return torch.tensor(behind or before, dtype=torch.long)

    def _words(self, ids: list[int], rows: range) -> list[int]:
        marks = self.preprocessor.mark_ids
        words = [row for row in rows if ids[row] not in marks]
        blank = [self._is_blank(ids[row]) for row in words]
        if all(blank):
            return []
        return words[blank.index(False) : len(words) - blank[::-1].index(False)]

    def _is_blank(self, id: int) -> bool:
        return not self.tokenizer.decode([id]).strip()

    def _trimmed(self, ids: list[int]) -> list[int]:
        """The ids without blanks at their end: some words of a vocabulary begin with a blank."""
        while ids and self._is_blank(ids[-1]):
            ids = ids[:-1]
        return ids

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens in front of a question that stands first, and behind one that stands last."""
        image = {"type": "image"}
        starts: list[list[int]] = []
        ends: list[list[int]] = []
        for probe in PROBES:
            text = {"type": "text", "text": probe}
            starts.append(self._written([text, image]))
            ends.append(self._written([image, text])[::-1])
        return self._trimmed(_shared(*starts)), _shared(*ends)[::-1]

    @cached_property
    def _between(self) -> list[int]:
        """The tokens between an answer and the words of the next turn; none where they vary."""
        first, other = PROBES
        chats = [
            self._written(
                [{"type": "image"}, {"type": "text", "text": first}],
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                {"role": "user", "content": [{"type": "text", "text": question}]},
            )
            for answer, question in ((first, first), (first, other), (other, first))
        ]
        stop = len(_shared(chats[0], chats[1]))
        start = len(chats[0]) - len(_shared(chats[0][::-1], chats[2][::-1]))
        return self._trimmed(chats[0][start:stop])

    def _written(self, content: list[dict[str, Any]], *later: dict[str, Any]) -> list[int]:
        """The ids of the template's prompt for a user's turn and later ones.

        None where the template refuses them.
        """
        chat = [{"role": "user", "content": content}, *later]
        try:
            text = self.preprocessor.apply_template(chat)
        except SampleError:
            return []
        return self.tokenizer(
            text, add_special_tokens=not has_start(self.tokenizer, text)
        ).input_ids


def _shared(first: list[int], second: list[int]) -> list[int]:
    """The items that both lists begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    stop = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    return first[:stop]


def _behind_last(pattern: list[int], ids: list[int], end: int) -> int:
    """The row behind the last place in ids[:end] where a pattern stands; 0 if it stands nowhere."""
    starts = range(end - len(pattern), -1, -1) if pattern else ()
    found = (at + len(pattern) for at in starts if ids[at : at + len(pattern)] == pattern)
    return next(found, 0)
