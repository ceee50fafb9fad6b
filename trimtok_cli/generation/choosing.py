"""Chooses tokens from logits, for all answers under way at once.

The rules' processors run first. Then the likeliest token is taken, or a token is drawn. Knows no
cache, no prompt's embeddings and no setting by name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.generation.rules import Answer, Rules

# These processors run once for all rows: they read scores alone, and one reads which ids there are.
# Any other processor runs row by row.
OF_SCORES = {
    "TemperatureLogitsWarper",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "LogitNormalization",
    "InfNanRemoveLogitsProcessor",
    "SuppressTokensLogitsProcessor",
}

OF_WHICH_IDS = {"RepetitionPenaltyLogitsProcessor"}


class Chooser:
    """Chooses a token for each answer under way; answer i is row i of the logits.

    A call waits for the device only if a processor waits.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.clear()

    def clear(self) -> None:
        self.answers: list[Answer] = []
        self.lengths: list[int] = []
        self.seen = torch.zeros(0, 0, dtype=torch.long, device=self.rules.device)

    def admit(self, answers: Sequence[Answer]) -> None:
        """Appends answers as new rows."""
        first, lengths = len(self.answers), [len(answer.prompt) for answer in answers]
        self.answers += answers
        self.lengths += lengths
        if not self.rules.processor_names:
            return
        self._room(len(self.answers), max(lengths) + 1)
        for row, (answer, length) in enumerate(zip(answers, lengths, strict=True), first):
            # The places behind the last id repeat the first id, so that no foreign id is seen.
            self.seen[row] = answer.prompt[0] if length else 0
            self.seen[row, :length] = answer.prompt

    def remove(self, row: int) -> None:
        """Removes a row whose answer has ended; the last row takes its place."""
        last = len(self.answers) - 1
        self.answers[row], self.lengths[row] = self.answers[last], self.lengths[last]
        if self.rules.processor_names:
            self.seen[row] = self.seen[last]
        self.answers.pop()
        self.lengths.pop()

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        """Token ids (B,) for logits (B, V) of the rows from `first` on.

        The id is -1 for a row in which no score is a number.
        """
        answers = self.answers[first : first + len(logits)]
        scores = (
            logits
            if self.rules.plain
            else self._processed(logits.to(torch.float32, copy=True), first)
        )
        if self.rules.samples:
            chosen, top = (
                draw(scores.softmax(-1), [answer.generator for answer in answers]),
                scores.amax(-1),
            )
        else:
            chosen = scores.argmax(-1)
            top = scores.gather(-1, chosen[:, None]).squeeze(-1)
        chosen = chosen.where(top.isfinite(), -1)
        if self.rules.processor_names:
            self._note(chosen.clamp(min=0), first)
        return chosen

    def _processed(self, scores: Tensor, first: int) -> Tensor:
        rows = range(first, first + len(scores))
        longest = max(self.lengths[row] for row in rows)
        seen, known = (
            self.seen[first : first + len(scores), :longest],
            all(self.lengths[row] for row in rows),
        )
        for column in zip(*(self.answers[row].processors for row in rows), strict=True):
            kind = type(column[0]).__name__
            if kind in OF_SCORES or (kind in OF_WHICH_IDS and known):
                scores = column[0](seen, scores)
            else:
                alone = [
                    each(self.seen[row : row + 1, : self.lengths[row]], scores[i : i + 1])
                    for i, (row, each) in enumerate(zip(rows, column, strict=True))
                ]
                scores = torch.cat(alone)
        return scores

    def _note(self, tokens: Tensor, first: int) -> None:
        rows = range(first, first + len(tokens))
        self._room(len(self.answers), max(self.lengths[row] for row in rows) + 1)
        places = torch.tensor([self.lengths[row] for row in rows]).to(
            self.seen.device, non_blocking=True
        )
        self.seen[first : first + len(tokens)].scatter_(1, places[:, None], tokens[:, None])
        for row in rows:
            self.lengths[row] += 1

    def _room(self, rows: int, length: int) -> None:
        have_rows, have = self.seen.shape
        if rows <= have_rows and length <= have:
            return
        more = self.seen.new_zeros(
            max(rows, have_rows), max(length + 64, have) if length > have else have
        )
        if have:
            more[:have_rows] = self.seen[:, :1]
            more[:have_rows, :have] = self.seen
        self.seen = more


def draw(shares: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Draws one id of each row (B,) from shares (B, V), each row by its own generator.

    The draw equals that of torch.multinomial, which checks its shares on the host and so waits.
    """
    times = torch.stack(
        [
            torch.empty_like(row).exponential_(generator=generator)
            for row, generator in zip(shares, generators, strict=True)
        ]
    )
    return (shares / times).argmax(-1)
