"""What methods that read the vision tower share: its signals for a stage's tokens, who is a
candidate, parts into one choice.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import share_out
from trimtok_cli.tokens import Selection


def take(rows: Tensor, places: Tensor) -> Tensor:
    """rows (B, N, F) at places (B, K) -> (B, K, F)."""
    return rows.gather(-2, places[..., None].expand(*places.shape, rows.shape[-1]))


def candidates(stage: Stage, rows: Tensor, count: int) -> tuple[Tensor, bool]:
    """The places of an image that a method chooses `count` from, ascending, and whether they all
    stay.

    Tokens that show no place (an all-zero box) are no candidates, unless no token of the image
    shows one. Where the others do not exceed the budget they all stay, and the first of those
    without a place fill it up.
    """
    if count >= len(rows):
        return rows, True
    box = stage.tokens.box.to(rows.device)[stage.prompt.alive[rows]]
    placed = (box != 0).any(-1)
    shown, blank = rows[placed], rows[~placed]
    if not len(shown):
        return rows, False
    if len(shown) > count:
        return shown, False
    return torch.cat([shown, blank[: count - len(shown)]]).sort().values, True


def parts(stage: Stage, images: Iterable[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, int, bool]]:
    """(candidates, how many stay, whether that is all of them) for every image, or for every tile
    of those cut in tiles.

    As published for LLaVA-NeXT, each tile has a budget of its own: its share, by size, of the
    image's.
    """
    for rows, count in images:
        rows, all_stay = candidates(stage, rows, count)
        groups = [rows]
        if not all_stay and stage.tokens.signals.offers("tile"):
            tile = stage.tokens.signals.tile.to(rows.device)[stage.prompt.alive[rows]]
            groups = [rows[tile == number] for number in tile.unique().tolist()]
        sizes = [len(group) for group in groups]
        if all_stay or count < len(
            groups
        ):  # fewer tokens than tiles: then the image is one after all
            yield rows, count, all_stay
            continue
        for group, share in zip(groups, share_out(count, sizes, sizes), strict=True):
            yield group, share, share >= len(group)


def signal(stage: Stage, method: str, name: str) -> Tensor:
    """What the vision tower offers under `name`, (N, ...) for this stage's visual tokens;
    UsageError if it does not.
    """
    require(stage, method, name)
    values = getattr(stage.tokens.signals, name)
    return values[stage.prompt.alive.to(values.device)].to(stage.prompt.alive.device)


def require(stage: Stage, method: str, *names: str) -> None:
    """UsageError unless the vision tower offers all these."""
    missing = [name for name in names if not stage.tokens.signals.offers(name)]
    if missing:
        needed = f"{' and '.join(missing)} of the vision tower"
        raise UsageError(
            f"{method} needs {needed}, which this model family does not offer for such an input."
        )


def answer(
    stage: Stage,
    kept: Sequence[Tensor],
    merged: Sequence[tuple[Tensor, Tensor]] = (),
    extra: Sequence[Tensor] = (),
) -> Selection:
    """The images' parts as one choice: places kept, (places, values (., D)) that merging changed,
    added rows (., D).
    """
    places = torch.cat([stage.no_tokens, *kept]).sort().values
    embeds = None
    if merged:
        embeds = stage.visual_embeds.clone()
        for rows, values in merged:
            embeds[rows] = values.to(embeds)
        embeds = embeds[places]
    added = torch.cat([rows.to(stage.hidden) for rows in extra]) if extra else None
    return Selection(places, embeds, added)
