"""The interface of a pruner: values in (Stage), values out (Selection).

Knows tensors only: no model, hook, cache or file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

import trimtok_cli
from trimtok_cli.data import Setting
from trimtok_cli.pruners.budget import Budget, parse_budget, share_out
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
    """A pruner's view of one sample in front of decoder layer `layer` (0: the prompt itself).

    hidden (S, D) enters the layer. `prompt` says which rows of it are visual, which dense numbers
    these have, and which rows hold the instruction. `tokens` are the dense visual tokens with their
    images, boxes and tower signals. attention(rows, layer) -> (H, R, S) gives rows of attention of
    the layer that has just run, or of the coming one. num_layers counts the whole decoder's.
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

    def visual_rows(self, places: Tensor) -> Tensor:
        """(n, D): the visual rows at ascending places (n,)."""
        rows = self.visual_embeds
        return rows if len(places) == len(rows) else rows[places]

    @property
    def no_tokens(self) -> Tensor:
        """An empty tensor of places."""
        return self.prompt.visual.new_empty(0)

    def images(self) -> list[Tensor]:
        """For each image or video with tokens left, their places (n,) here, ascending.

        A place counts this stage's visual tokens. Tokens that an earlier stage added belong to no
        image.
        """
        index = self.tokens.visual_index
        alive = self.prompt.alive
        if self.layer == 0 and len(alive) == len(index):
            return self.dense_images()
        index = index.to(alive.device)
        owner = torch.where(alive < len(index), index[alive.clamp(max=len(index) - 1)], -1)
        return [
            (owner == number).nonzero().squeeze(1)
            for number in owner.unique().tolist()
            if number >= 0
        ]

    def dense_images(self) -> list[Tensor]:
        """For each image or video, its places (n,) among the dense visual tokens, ascending."""
        index = self.tokens.visual_index
        device = self.prompt.alive.device
        if len(index) and bool((index == index[0]).all()):
            return [torch.arange(len(index), device=device)]
        numbers, sizes = index.unique_consecutive(return_counts=True)
        if len(numbers.unique()) < len(numbers):
            owners = index.unique().tolist()
            return [(index == owner).nonzero().squeeze(1).to(device) for owner in owners]
        # Each image's tokens are a run. The index lies on the host: nothing waits for the device.
        ends = sizes.cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return [
            torch.arange(start, end, device=device) for start, end in zip(starts, ends, strict=True)
        ]

    def text(self, which: str = "instruction") -> Tensor:
        """(M, D): the rows of the user's words, or all text rows for `prompt`.

        Without such words it is all text rows as well.
        """
        if which == "instruction" and len(self.prompt.instruction):
            return self.hidden[self.prompt.instruction]
        is_text = torch.ones(len(self.hidden), dtype=torch.int, device=self.hidden.device)
        is_text.index_fill_(0, self.prompt.visual, 0)
        # A mask as an index would make the host wait for its sum.
        num_text = len(self.hidden) - len(self.prompt.visual)
        return self.hidden[is_text.sort(descending=True, stable=True).indices[:num_text]]


@dataclass(frozen=True)
class Pruner:
    """A method with its parameters, which are fields declared with `param`.

    A pruner holds nothing of any sample. keep is each image's budget. budget says how the images of
    one prompt share the sum of their budgets: `equal` (not at all), `tokens` (by dense counts) or
    `diversity` (by `intra_diversity`).
    """

    # The name in tables and records; by default the class's, in small letters.
    name: ClassVar[str] = ""
    # `trimtok methods` prints these. needs: text, attention (of the language model), or signals of
    # the vision tower.
    where: ClassVar[str] = "prompt"
    needs: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[str] = ""
    licence: ClassVar[str] = "no published code"
    # The remedy on a model whose vision tower does not offer what the method needs.
    instead: ClassVar[str] = "use a method that needs less, `trimtok methods` lists them"
    # Whether survivors close the gaps in their positions, where the family's positions are 1-D;
    # otherwise they keep their ids.
    renumbers: ClassVar[bool] = True

    keep: Budget = ALL
    budget: str = param("equal", choices=BUDGETS)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = vars(cls).get("name") or cls.__name__.lower()

    def __post_init__(self) -> None:
        """Raises ValueError for a parameter, `budget` included, that its field does not allow.

        keep may have any of the forms of --keep: 64, "11%", 0.11, "all".
        """
        if not isinstance(self.keep, Budget):
            object.__setattr__(self, "keep", parse_budget(self.keep))
        check_params(self)

    def __call__(self, model: Any, processor: Any = None) -> Any:
        """A block in which a loaded transformers model is pruned: `with pruner(model): ...`.

        See `trimtok_cli.pruned`, which this is.
        """
        return trimtok_cli.pruned(model, self, processor)

    @property
    def setting(self) -> Setting:
        """The record of this method as it is set; params holds what differs from the defaults."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        defaults = {item.name: item.default for item in fields(self)}
        keep = str(values.pop("keep"))
        budget = values.pop("budget")
        seed = values.pop("seed", 0)
        params = {name: value for name, value in values.items() if value != defaults[name]}
        return Setting(self.name, keep, budget, seed, params)

    @property
    def signals(self) -> tuple[str, ...]:
        """The tower signals that the method, as it is set, cannot do without."""
        return tuple(name for name in self.needs if name not in ("text", "attention"))

    @property
    def reads_tower(self) -> bool:
        """Whether the method reads any tower signal."""
        return bool(self.signals)

    @property
    def keep_decides(self) -> bool:
        """Whether keep has a say, as the method is set: if not, keeping `all` is not dense."""
        return True

    @property
    def reads_keep(self) -> bool:
        """Whether two values of keep, both below `all`, prune differently."""
        return self.keep_decides

    def budgets(
        self, images: Sequence[Tensor], embeds: Callable[[Tensor], Tensor]
    ) -> list[tuple[Tensor, int]]:
        """Each image's places (n,), as they are given, with the number of tokens that stay.

        embeds(places) -> (n, D) gives an image's tokens; it is asked only where `budget` is
        `diversity`.
        """
        sizes = [len(places) for places in images]
        counts = [self.keep.count(size) for size in sizes]
        if self.budget != "equal" and len(images) > 1:
            weights: Sequence[float] = sizes
            if self.budget == "diversity":
                weights = [intra_diversity(embeds(places)) for places in images]
            counts = share_out(sum(counts), weights, sizes)
        return list(zip(images, counts, strict=True))

    def image_budgets(self, stage: Stage) -> list[tuple[Tensor, int]]:
        """For each image with tokens left: its places (n,) at this stage, and how many stay."""
        return self.budgets(
            stage.images(), lambda places: stage.hidden[stage.prompt.visual[places]]
        )

    def stages(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers in front of which this method reduces; 0 is the prompt itself."""
        return (0,)

    def select(self, stage: Stage) -> Selection:
        """The choice at one stage of one sample."""
        return self.select_many([stage])[0]

    def select_many(self, stages: Sequence[Stage]) -> list[Selection]:
        """A batch's choices, equal to one `select` each. A method writes one of the two."""
        if type(self).select is Pruner.select:
            raise TypeError(f"{type(self).__name__} writes neither select nor select_many")
        return [self.select(stage) for stage in stages]


@dataclass(frozen=True)
class ScoringPruner(Pruner):
    """A method that scores every visual token by itself.

    The tokens of each image with the highest scores stay, ties to the lowest index.
    """

    def score(self, stage: Stage) -> Tensor:
        """(N,), higher is better."""
        raise TypeError(f"{type(self).__name__} writes no score")

    def select(self, stage: Stage) -> Selection:
        return Selection(top_places(self.score(stage), self.image_budgets(stage)))


def top_places(score: Tensor, budgets: Iterable[tuple[Tensor, int]]) -> Tensor:
    """The `count` places with the highest score (N,) of every (places, count), together, ascending.

    Ties go to the lowest place.
    """
    kept = [
        places[score[places].sort(descending=True, stable=True).indices[:count]]
        for places, count in budgets
    ]
    return torch.cat([score.new_empty(0, dtype=torch.long), *kept]).sort().values


def intra_diversity(visual: Tensor) -> float:
    """Mean pairwise cosine distance of an image's tokens (n, D), in [0, 2]; 0 for one token.

    The intra-image term of TrimTokenator-LC (arXiv 2512.22748). Only the abstract and this formula
    of that paper are public: its inter-image term, how the two set the budget, and its second,
    global stage are not, and are not here.
    """
    unit = torch.nn.functional.normalize(visual.float(), dim=-1)
    count = len(visual)
    if count < 2:
        return 0.0
    # The sum over i != j of cos(x_i, x_j) is |sum of the unit vectors|^2 - n: no n x n matrix.
    similarity = (unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1))
    return max(float(1 - similarity), 0.0)
