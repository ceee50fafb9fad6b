"""The parts that methods which read the vision tower share: signals, candidates, tiles, selections.

Knows no method and no model.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.errors import UsageError
from trimtok_cli.pruners.base import Stage
from trimtok_cli.pruners.budget import share_out
from trimtok_cli.tokens import Selection


def gather_rows(values: Tensor, places: Tensor) -> Tensor:
    """values (B, N, F) at places (B, K) -> (B, K, F)."""
    return values.gather(-2, places[..., None].expand(*places.shape, values.shape[-1]))


def candidates(stage: Stage, places: Tensor, count: int) -> tuple[Tensor, bool]:
    """The places of an image that a method chooses `count` from, and whether they all stay.

    Tokens without a box (all zero) are no candidates, unless no token of the image has one. Where
    the tokens with a box do not exceed the budget they all stay, and the first tokens without one
    fill it up. Places ascend.
    """
    if count >= len(places):
        return places, True
    # The boxes lie on the host: where all tokens have one, nothing waits for the device.
    if bool((stage.tokens.box != 0).any(-1).all()):
        return places, False
    box = on_device(stage.tokens.box, places.device)[stage.prompt.alive[places]]
    has_box = (box != 0).any(-1)
    boxed = places[has_box]
    blank = places[~has_box]
    if not len(boxed):
        return places, False
    if len(boxed) > count:
        return boxed, False
    return torch.cat([boxed, blank[: count - len(boxed)]]).sort().values, True


def tile_budgets(
    stage: Stage, images: Iterable[tuple[Tensor, int]]
) -> Iterator[tuple[Tensor, int, bool]]:
    """(candidates, how many stay, whether they all stay) for every image, or for each of its tiles.

    As published for LLaVA-NeXT, each tile of an image that is cut in tiles has a budget of its own:
    its share, by size, of the image's.
    """
    for image, count in images:
        places, all_stay = candidates(stage, image, count)
        tiles = [places]
        if not all_stay and stage.tokens.signals.offers("tile"):
            tile = on_device(stage.tokens.signals.tile, places.device)
            tile = tile[stage.prompt.alive[places]]
            tiles = [places[tile == number] for number in tile.unique().tolist()]
        # An image with fewer tokens to keep than tiles is treated as one.
        if all_stay or count < len(tiles):
            yield places, count, all_stay
            continue
        sizes = [len(tile) for tile in tiles]
        for part, share in zip(tiles, share_out(count, sizes, sizes), strict=True):
            yield part, share, share >= len(part)


def signal(stage: Stage, method: str, name: str) -> Tensor:
    """The tower signal `name`, (N, ...) for this stage's visual tokens.

    Raises UsageError where the vision tower does not offer it.
    """
    require_signals(stage, method, name)
    values = getattr(stage.tokens.signals, name)
    return values[stage.prompt.alive.to(values.device)].to(stage.prompt.alive.device)


def require_signals(stage: Stage, method: str, *names: str) -> None:
    """Raises UsageError unless the vision tower offers all these signals."""
    missing = [name for name in names if not stage.tokens.signals.offers(name)]
    if missing:
        needed = f"{' and '.join(missing)} of the vision tower"
        raise UsageError(
            f"{method} needs {needed}, which this model family does not offer for such an input."
        )


def joined_selection(
    stage: Stage,
    kept: Sequence[Tensor],
    merged: Sequence[tuple[Tensor, Tensor]] = (),
    added: Sequence[Tensor] = (),
) -> Selection:
    """The images' choices as one Selection.

    kept: places; merged: (places, new values (n, D)) of kept tokens that merging changed; added:
    further rows (n, D).
    """
    all_kept = torch.cat([stage.no_tokens, *kept]).sort().values
    embeds = None
    if merged:
        embeds = stage.visual_embeds.clone()
        for places, values in merged:
            embeds[places] = values.to(embeds)
        embeds = embeds[all_kept]
    extra = torch.cat([rows.to(stage.hidden) for rows in added]) if added else None
    return Selection(all_kept, embeds, extra)
