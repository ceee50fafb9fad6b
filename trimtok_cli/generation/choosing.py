"""From logits to tokens, for all answers under way at once: their rules' processors, then the
likeliest token or a lot.

Knows no cache, no prompt's embeddings and no setting by name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.generation.rules import Answer, Rules

# Processors that read scores alone, and one that reads which ids there are, run once for all rows;
# any other runs row by row.
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
    """Chooses a token for each of the answers under way, answer by answer a row of the logits.
    Waits for nothing by itself.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.clear()

    def clear(self) -> None:
        self.answers: list[Answer] = []
        self.lengths: list[int] = []
        self.seen = torch.zeros(0, 0, dtype=torch.long, device=self.rules.device)

    def admit(self, answers: Sequence[Answer]) -> None:
        """New rows behind those there are."""
        first, lengths = len(self.answers), [len(answer.prompt) for answer in answers]
        self.answers += answers
        self.lengths += lengths
        if not self.rules.kinds:
            return
        self._room(len(self.answers), max(lengths) + 1)
        for row, (answer, length) in enumerate(zip(answers, lengths, strict=True), first):
            # What stands behind the last id is the first one over again, so that no id is seen that
            # is not there.
            self.seen[row] = answer.prompt[0] if length else 0
            self.seen[row, :length] = answer.prompt

    def remove(self, row: int) -> None:
        """The last row takes the place of one that has ended."""
        last = len(self.answers) - 1
        self.answers[row], self.lengths[row] = self.answers[last], self.lengths[last]
        if self.rules.kinds:
            self.seen[row] = self.seen[last]
        self.answers.pop()
        self.lengths.pop()

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        """(B, V) of the rows from `first` on -> (B,) token ids; -1 where no score is a number."""
        answers = self.answers[first : first + len(logits)]
        scores = (
            logits
            if self.rules.plain
            else self._processed(logits.to(torch.float32, copy=True), first)
        )
        if self.rules.samples:
            chosen, top = (
                draw(scores.softmax(-1), [answer.die for answer in answers]),
                scores.amax(-1),
            )
        else:
            chosen = scores.argmax(-1)
            top = scores.gather(-1, chosen[:, None]).squeeze(-1)
        chosen = chosen.where(top.isfinite(), -1)
        if self.rules.kinds:
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


def draw(shares: Tensor, dice: Sequence[torch.Generator | None]) -> Tensor:
    """(B, V) shares -> (B,) one id of each row, by that row's own lot.

    As torch.multinomial draws one, which checks its shares on the host and so waits for the device.
    """
    times = torch.stack(
        [
            torch.empty_like(row).exponential_(generator=die)
            for row, die in zip(shares, dice, strict=True)
        ]
    )
    return (shares / times).argmax(-1)
