"""The rows of a prompt that hold the question, where only its token ids are known.

The engine knows who wrote which character. Of a prompt that somebody else made, the question is
what stands behind the last visual token, up to where the chat template closes the turn; if nothing
stands there, it is what stands in front of the first visual token. Knows no family.
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
        visual = is_visual.nonzero().flatten().tolist()
        if not visual:
            return torch.empty(0, dtype=torch.long)
        listed = ids.tolist()
        end = len(listed)
        tail = self._around[1]
        if tail and listed[-len(tail) :] == tail:
            end -= len(tail)
        head = self._around[0]
        start = len(head) if listed[: len(head)] == head else 0
        behind = self._words(listed, range(visual[-1] + 1, end))
        return torch.tensor(
            behind or self._words(listed, range(start, visual[0])), dtype=torch.long
        )

    def _words(self, ids: list[int], rows: range) -> list[int]:
        marks = self.preprocessor.mark_ids
        words = [row for row in rows if ids[row] not in marks]
        blank = [not self.tokenizer.decode([ids[row]]).strip() for row in words]
        if all(blank):
            return []
        return words[blank.index(False) : len(words) - blank[::-1].index(False)]

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
        return _shared(*starts), _shared(*ends)[::-1]

    def _written(self, content: list[dict[str, Any]]) -> list[int]:
        """The ids of the template's prompt for a user's turn; none where it refuses the turn."""
        try:
            text = self.preprocessor.apply_template([{"role": "user", "content": content}])
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
