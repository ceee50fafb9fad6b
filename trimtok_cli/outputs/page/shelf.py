"""The shelf of a page: every picture once, however many questions and settings show it."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from trimtok_cli.errors import MediaError
from trimtok_cli.outputs.pictures import Loader, Picture

LONGEST_SIDE = 640  # pixels of a picture on the page
JPEG_QUALITY = 85
FLAT_COLORS = 256  # a picture of at most so many colors may be smaller as PNG


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture on the shelf, under the HTML id `id`; or, if it cannot be read, the `problem`."""

    id: str
    width: int = 4
    height: int = 3
    uri: str = ""
    problem: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class Shelf:
    """The pictures that a page shows, by file and frame."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._shown: dict[tuple[Any, int | None], Shown] = {}

    def put(self, picture: Picture) -> Shown:
        key = (picture.medium, picture.frame)
        if key not in self._shown:
            self._shown[key] = self._read(picture, f"picture-{len(self._shown) + 1}")
        return self._shown[key]

    @property
    def all(self) -> list[Shown]:
        return [shown for shown in self._shown.values() if shown.uri]

    def _read(self, picture: Picture, name: str) -> Shown:
        try:
            image = self._loader.image(picture).copy()
        except (MediaError, OSError, ValueError) as error:
            return Shown(name, problem=str(error))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        width, height = image.size
        return Shown(name, width, height, data_uri(image))


def data_uri(image: Any) -> str:
    """The data URI of an image, as JPEG, or as PNG if a flat drawing comes out smaller."""
    best, kind = BytesIO(), "jpeg"
    image.save(best, "JPEG", quality=JPEG_QUALITY, optimize=True)
    if image.getcolors(FLAT_COLORS):
        drawing = BytesIO()
        image.save(drawing, "PNG", optimize=True)
        if drawing.tell() < best.tell():
            best, kind = drawing, "png"
    return f"data:image/{kind};base64,{b64encode(best.getvalue()).decode()}"
