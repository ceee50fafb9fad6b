"""How sources are read: what the user chose, for every reader. Knows no format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Stored


@dataclass(frozen=True)
class Reading:
    """The choices that readers share; each reader takes those that mean something to it.

    image_root: where names of pictures in rows start, by default the folder of the file.
    limit: the samples that are read, None for all. format: one of `questions.FORMATS`.
    recursive: folders within folders are searched. allow_text_only: rows without a picture are
    asked as they are. allow_outside: names of pictures may leave `image_root`. allow_urls:
    addresses are fetched. settings: those of the run, which rows may ask for.
    """

    image_root: Path | Stored | None = None
    limit: int | None = None
    format: str = "auto"
    recursive: bool = False
    allow_text_only: bool = False
    allow_outside: bool = False
    allow_urls: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
