"""What a prompt tells of its images and videos, where somebody else's processor made it.

The pictures themselves are not there: their number and their sizes follow from the placeholders,
from the tensors beside them, and from the words around them. Knows no family by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtok_cli.errors import UsageError
from trimtok_cli.models.inputs import Inputs, Visual

# Tensors with a row for each image, and for each video.
OF_IMAGES = ("image_sizes", "image_grid_thw")
OF_VIDEOS = ("video_grid_thw", "second_per_grid_ts")


def runs_of(is_visual: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of every run of placeholders, from a mask (S,)."""
    edges = F.pad(is_visual.int(), (1, 1)).diff()
    starts, stops = ((edges == step).nonzero().flatten().tolist() for step in (1, -1))
    return list(zip(starts, stops, strict=True))


def runs_and_text(tokenizer: Any, ids: Tensor, is_visual: Tensor) -> Iterator[tuple[int, int, str]]:
    """Every run of placeholders, with the text between it and the run before, marks included."""
    behind = 0
    for start, stop in runs_of(is_visual):
        yield start, stop, tokenizer.decode(ids[behind:start].tolist())
        behind = stop


def with_frame(visuals: Sequence[Visual], *, first: bool) -> list[Visual]:
    """The visuals with one more frame of the last video, or with a new video."""
    *before, last = visuals or [Visual("image", (0, 0))]
    if first or last.kind != "video":
        return [*visuals, Visual("video", (0, 0), times=(0.0,))]
    return [*before, replace(last, times=(*last.times, float(len(last.times))))]


def by_counts(
    adapter: Any, ids: Tensor, tensors: Mapping[str, Tensor], images: int, videos: int
) -> tuple[Visual, ...]:
    """The visuals whose tokens are as many as the placeholders; see `Family.shown`."""
    config = adapter.model.config
    video_id = getattr(config, "video_token_id", None)
    is_video = ids[adapter.is_visual(ids)] == (-1 if video_id is None else video_id)
    num_of_images = int((~is_video).sum())
    pictures: list[Visual] = []
    if num_of_images:
        pictures = _pictures(adapter, ids, tensors, images, num_of_images)
    if not bool(is_video.any()):
        return tuple(pictures)
    own = rows_of(tensors, images, len(pictures), videos, 1)
    counts = _counts(adapter, ids, own, pictures)
    video = _video(tensors)
    layout = adapter.video_layout(Inputs(own, ids, ids.new_empty(0), (video,), ""), video)
    if len(layout.box) != int(is_video.sum()):
        raise UsageError(
            f"the prompt has {int(is_video.sum())} placeholders of videos, and its video has "
            f"{len(layout.box)} visual tokens: show one video in a prompt."
        )
    # Placeholders of images in front of the video: its own are one after the other.
    first = int(is_video.nonzero()[0])
    place = next(i for i in range(len(counts) + 1) if sum(counts[:i]) >= first)
    return (*pictures[:place], video, *pictures[place:])


def _pictures(
    adapter: Any, ids: Tensor, tensors: Mapping[str, Tensor], images: int, wanted: int
) -> list[Visual]:
    """The fewest images from number `images` on that have `wanted` tokens together."""
    sizes = adapter.image_sizes(tensors)[images:]
    for number in range(1, len(sizes) + 1):
        pictures = [Visual("image", size) for size in sizes[:number]]
        own = rows_of(tensors, images, number, 0, 0)
        if sum(_counts(adapter, ids, own, pictures)) == wanted:
            return pictures
    raise UsageError(
        f"the prompt has {wanted} placeholders of images, and no number of its {len(sizes)} images "
        "has as many visual tokens: give the model what its own processor returns."
    )


def _counts(
    adapter: Any, ids: Tensor, tensors: dict[str, Tensor], pictures: Sequence[Visual]
) -> list[int]:
    inputs = Inputs(tensors, ids, ids.new_empty(0), tuple(pictures), "")
    return [len(adapter.image_layout(inputs, i, each).box) for i, each in enumerate(pictures)]


def _video(tensors: Mapping[str, Tensor]) -> Visual:
    """A video with as many frames as its tensor has; a grid tells its layers by itself."""
    pixels = tensors["pixel_values_videos"]
    return Visual("video", (0, 0), times=tuple(map(float, range(pixels.shape[1]))))


def rows_of(
    tensors: Mapping[str, Tensor], images: int, num_images: int, videos: int, num_videos: int
) -> dict[str, Tensor]:
    """A prompt's own rows of its batch's tensors; those without a row for each are whole."""
    own = dict(tensors)
    for names, start, count in (
        (OF_IMAGES, images, num_images),
        (OF_VIDEOS, videos, num_videos),
    ):
        own |= {name: tensors[name][start : start + count] for name in names if name in tensors}
    return {name: tensor for name, tensor in own.items() if len(tensor)}


def as_batch(
    adapter: Any,
    ids: Tensor,
    mask: Tensor,
    tensors: Mapping[str, Tensor],
    text: Mapping[str, Tensor],
) -> list[Inputs]:
    """The samples of a padded batch: ids and mask (B, S), tensors of its images and videos.

    text: further tensors (B, S). The samples have no padding, and their instruction is empty.
    """
    found: list[Inputs] = []
    images = videos = 0
    if bool(adapter.is_visual(ids).any()) and not any("pixel_values" in name for name in tensors):
        raise UsageError(
            "the prompt has places for images, and no images come with it: give the model all that "
            "its processor returns, in one piece."
        )
    for row, real in enumerate(mask.bool()):
        own = ids[row][real]
        visuals = adapter.shown(own, tensors, images, videos)
        num_videos = sum(visual.kind == "video" for visual in visuals)
        num_images = len(visuals) - num_videos
        rows = rows_of(tensors, images, num_images, videos, num_videos)
        rows |= {name: values[row][real][None] for name, values in text.items()}
        found.append(Inputs(rows, own, torch.empty(0, dtype=torch.long), visuals, ""))
        images += num_images
        videos += num_videos
    return found
