"""The pictures of a benchmark: files from disk, or made JPEG files as heavy as photographs.

Knows no model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.paths import read_images


def pictures(image: str, folder: Path, *, seed: int, count: int = 8) -> list[Path]:
    """The files that `image` names: a file itself, a folder's images, or files made in `folder`.

    `WIDTHxHEIGHT` makes `count` different JPEG files. Raises UsageError for a folder without
    images.
    """
    path = Path(image)
    if path.exists():
        files = [sample.images[0] for sample in read_images([image]).samples if sample.images]
        if not files:
            raise UsageError(f"image {image} holds no images.")
        return files
    width, height = map(int, image.split("x"))
    files = [folder / f"{image}-{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        if not file.exists():
            Image.fromarray(scene(width, height, seed + number)).save(file, quality=90)
    return files


def scene(width: int, height: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: colour fields of every scale, as in a photograph.

    Each field is half as strong as the next larger one.
    """
    generator = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for level in range(1, 9):
        shape: Sequence[int] = (min(2**level, width), min(2**level, height))
        small = generator.normal(0, 2.0**-level, (shape[1], shape[0], 3)).astype(np.float32)
        fields = [
            Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        picture += np.stack([np.asarray(field) for field in fields], -1)
    return np.clip(128 + 150 * picture, 0, 255).astype(np.uint8)
