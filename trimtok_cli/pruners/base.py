"""What a pruner is: values in (Stage), values out (Selection). Knows tensors only: no model, hook,
cache or file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor

from trimtok_cli.data import Setting
from trimtok_cli.pruners.budget import Budget, share_out
from trimtok_cli.pruners.params import check_params, param
from trimtok_cli.tokens import Prompt, Selection, VisualTokens

ALL = Budget()

BUDGETS = ("equal", "tokens", "diversity")

TEXTS = ("instruction", "prompt")


def _no_attention(rows: Tensor, layer: int) -> Tensor:
    raise LookupError(
        "there is no attention in front of the language model: ask for it at a stage above 0"
    )


@dataclass(frozen=True)
class Stage:
    """What a pruner sees in front of decoder layer `layer` (0: the prompt itself) of one sample.

    hidden (S, D) enters the layer; `prompt` says which of its rows are visual, which dense numbers
    those have, and which rows hold the instruction; `tokens` are the dense visual tokens, with
    their images, places and the tower's signals. attention(rows, layer) -> (H, R, S) are rows of
    attention of the layer that has just run, or of the one that is to come. num_layers: of the
    whole decoder.
    """

    layer: int
    hidden: Tensor
    prompt: Prompt
    tokens: VisualTokens
    attention: Callable[[Tensor, int], Tensor] = field(default=_no_attention, repr=False)
    num_layers: int = 0

    @property
    def visual_embeds(self) -> Tensor:
        """(N, D): the visual rows of `hidden`."""
        return self.hidden[self.prompt.visual]

    @property
    def no_tokens(self) -> Tensor:
        return self.prompt.visual.new_empty(0)

    def images(self) -> list[Tensor]:
        """For each image or video that has tokens left, their places (n,) among this stage's visual
        tokens, ascending.

        Tokens that an earlier stage added are of no image.
        """
        index, alive = self.tokens.visual_index, self.prompt.alive
        numbers, sizes = index.unique_consecutive(return_counts=True)
        if self.layer == 0 and len(alive) == len(index) and len(numbers.unique()) == len(numbers):
            # The prompt itself: all tokens are alive and each image's are a run. The index lies on
            # the host, and so nothing here waits for the device.
            ends = sizes.cumsum(0).tolist()
            return [
                torch.arange(a, b, device=alive.device)
                for a, b in zip([0, *ends], ends, strict=False)
            ]
        index = index.to(alive.device)
        owner = torch.where(alive < len(index), index[alive.clamp(max=len(index) - 1)], -1)
        return [
            (owner == number).nonzero().squeeze(1)
            for number in owner.unique().tolist()
            if number >= 0
        ]

    def text(self, which: str = "instruction") -> Tensor:
        """(M, D): the rows of the user's words, or with `prompt` (and where there are no such
        words) all text rows.
        """
        if which == "instruction" and len(self.prompt.instruction):
            return self.hidden[self.prompt.instruction]
        is_text = torch.ones(len(self.hidden), dtype=torch.int, device=self.hidden.device)
        is_text[self.prompt.visual] = 0
        count = len(self.hidden) - len(
            self.prompt.visual
        )  # a mask for an index would make the host wait for its sum
        return self.hidden[is_text.sort(descending=True, stable=True).indices[:count]]


@dataclass(frozen=True)
class Pruner:
    """A method with its parameters, which are its fields, declared with `param`; it holds nothing
    of any sample.

    keep is each image's budget. budget says how the images of one prompt share the sum of theirs:
    `equal` (not at all), `tokens` (by their dense counts) or `diversity` (see `intra_diversity`).
    """

    # Under which name it stands in tables and records; by default its class's, in small letters.
    name: ClassVar[str] = ""
    # What `trimtok methods` says of a method. needs: text, attention (of the language model), or an
    # tower's signals.
    where: ClassVar[str] = "prompt"
    needs: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = "no published code"
    # What to do on a model whose vision tower does not offer what the method needs.
    instead: ClassVar[str] = "use a method that needs less, `trimtok methods` lists them"
    # Survivors close the gaps in their positions, where the family's are 1-D; else they keep the
    # ids they had.
    renumbers: ClassVar[bool] = True

    keep: Budget = ALL
    budget: str = param("equal", choices=BUDGETS)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name") or cls.__name__.lower()

    def __post_init__(self) -> None:
        """Raises ValueError for a parameter that is not what its field says."""
        check_params(self)

    @property
    def setting(self) -> Setting:
        """The record of this method as it is set: what differs from its defaults is named."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        keep, budget, seed = str(values.pop("keep")), values.pop("budget"), values.pop("seed", 0)
        params = {name: value for name, value in values.items() if value != usual[name]}
        return Setting(self.name, keep, budget, seed, params)

    @property
    def signals(self) -> tuple[str, ...]:
        """What of the vision tower it cannot do without, as it is set: by default what its `needs`
        name.
        """
        return tuple(name for name in self.needs if name not in ("text", "attention"))

    @property
    def reads_tower(self) -> bool:
        """Whether anything of the vision tower is asked for besides the tokens."""
        return bool(self.signals)

    @property
    def keep_decides(self) -> bool:
        """Whether keep has a say, as the method is set: else keeping `all` does not make it
        dense.
        """
        return True

    def budgets(self, stage: Stage) -> list[tuple[Tensor, int]]:
        """For each image or video with tokens left: their places among the stage's visual tokens,
        and how many stay.
        """
        images = stage.images()
        sizes = [len(rows) for rows in images]
        counts = [self.keep.count(size) for size in sizes]
        if self.budget != "equal" and len(images) > 1:
            visual = stage.visual_embeds if self.budget == "diversity" else None
            weights = (
                sizes if visual is None else [intra_diversity(visual[rows]) for rows in images]
            )
            counts = share_out(sum(counts), weights, sizes)
        return list(zip(images, counts, strict=True))

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers in front of which this method reduces; 0 is the prompt itself."""
        return (0,)

    def select(self, stage: Stage) -> Selection:
        return self.select_many([stage])[0]

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """A batch's choices, equal to one `select` each. A method writes one of the two."""
        if type(self).select is Pruner.select:
            raise TypeError(f"{type(self).__name__} writes neither select nor select_many")
        return [self.select(stage) for stage in stages]


@dataclass(frozen=True)
class ScoringPruner(Pruner):
    """A method that scores every visual token by itself: the best of each image stay, ties to the
    lowest index.
    """

    def score(self, stage: Stage) -> Tensor:
        """(N,), higher is better."""
        raise TypeError(f"{type(self).__name__} writes no score")

    def select(self, stage: Stage) -> Selection:
        score, kept = self.score(stage), [stage.no_tokens]
        for rows, count in self.budgets(stage):
            best = score[rows].sort(descending=True, stable=True).indices[:count]
            kept.append(rows[best])
        return Selection(torch.cat(kept).sort().values)


def select_alike(
    pruner: Pruner,
    stages: Sequence[Stage],
    choose: Callable[[list[tuple[Stage, Tensor]], int], Tensor],
    budgets: Callable[[Stage], list[tuple[Tensor, int]]] | None = None,
) -> list[Selection]:
    """A batch's choices where `choose` answers all images of one size and budget at once: one
    greedy loop for all of them.

    choose([(stage, places of the image's tokens (n,)), ...], keep) -> (images, keep) indices into
    those places. It is not asked about images that keep all. budgets: in place of the pruner's,
    where something else than images has them.
    """
    of = budgets or pruner.budgets
    images = [
        (number, rows, count) for number, stage in enumerate(stages) for rows, count in of(stage)
    ]
    kept: list[list[Tensor]] = [[stage.no_tokens] for stage in stages]
    for size, budget in sorted({(len(rows), count) for _, rows, count in images}):
        group = [
            (number, rows) for number, rows, count in images if (len(rows), count) == (size, budget)
        ]
        chosen = [rows for _, rows in group]
        if budget < size:
            places = choose([(stages[number], rows) for number, rows in group], budget)
            chosen = [rows[place] for rows, place in zip(chosen, places, strict=True)]
        for (number, _), rows in zip(group, chosen, strict=True):
            kept[number].append(rows)
    return [Selection(torch.cat(rows).sort().values) for rows in kept]


def intra_diversity(visual: Tensor) -> float:
    """Mean pairwise cosine distance of an image's tokens (m, D), in [0, 2]; 0 for one token.

    The intra-image term of TrimTokenator-LC (arXiv 2512.22748). Of that paper only the abstract and
    this formula are public: its inter-image term, how the two set the budget, and its second,
    global stage are not, and are not here.
    """
    unit, count = torch.nn.functional.normalize(visual.float(), dim=-1), len(visual)
    if count < 2:
        return 0.0
    # sum over i != j of cos(x_i, x_j) is |sum of the unit vectors|^2 - m: no m x m matrix.
    return max(
        float(1 - (unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))), 0.0
    )


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged (M_i, D) -> (B, M, D) filled up with zeros, and the mask (B, M) of what is real."""
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(r), dtype=torch.bool, device=r.device) for r in rows], batch_first=True
    )
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask
