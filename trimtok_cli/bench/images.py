"""The pictures that a benchmark shows: files from disk, or JPEG files made for it, as large as
photographs of their size.

Knows no model.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from trimtok_cli.errors import UsageError
from trimtok_cli.readers.paths import read_images


def pictures(image: str, folder: Path, *, seed: int, count: int = 8) -> list[Path]:
    """`WIDTHxHEIGHT` makes `count` different JPEG files in `folder`; a file is itself, a folder its
    images.
    """
    path = Path(image)
    if path.exists():
        found = [sample.images[0] for sample in read_images([image]).samples if sample.images]
        if not found:
            raise UsageError(f"image {image} holds no images.")
        return found
    width, height = map(int, image.split("x"))
    made = [folder / f"{image}-{number}.jpg" for number in range(count)]
    for number, file in enumerate(made):
        if not file.exists():
            Image.fromarray(scene(width, height, seed + number)).save(file, quality=90)
    return made


def scene(width: int, height: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: colour fields of every scale, each half as strong as the next
    larger, like a photograph's.
    """
    dice, picture = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for level in range(1, 9):
        shape: Sequence[int] = (min(2**level, width), min(2**level, height))
        small = dice.normal(0, 2.0**-level, (shape[1], shape[0], 3)).astype(np.float32)
        fields = [
            Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        picture += np.stack([np.asarray(each) for each in fields], -1)
    return np.clip(128 + 150 * picture, 0, 255).astype(np.uint8)
