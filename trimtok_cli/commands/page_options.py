"""The options of a comparison: what is there already, and pictures made beside its page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.commands.options import Existing, RunOptions, check_existing
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import OUTPUT
from trimtok_cli.data import Comparison
from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.earlier import OVERWRITE, RESUME
from trimtok_cli.wording import brief

Overlays = Annotated[
    Path | None,
    typer.Option(
        "--overlays",
        rich_help_panel=OUTPUT,
        help="A folder for PNG files: each picture under each setting, what was dropped darkened.",
        show_default=False,
    ),
]

Figure = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        rich_help_panel=OUTPUT,
        help="A PNG file: the first three samples as in the paper's Figure 2.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class PageOptions:
    """Pictures beside the page. Raises UsageError for a figure that is no .png."""

    overlays: Overlays = None
    figure: Figure = None

    def __post_init__(self) -> None:
        if self.figure is not None and self.figure.suffix.lower() != ".png":
            raise UsageError(f"--figure {brief(str(self.figure))}: name a file that ends in .png.")

    def check(self, overwrite: bool, reads: Iterable[Path | str | int] = ()) -> None:
        """Raises UsageError if a file would be replaced, or a file of the input written over."""
        if self.overlays is not None and self.overlays.exists():
            if not self.overlays.is_dir():
                raise UsageError(f"--overlays {self.overlays} is a file: name a folder.")
            if any(self.overlays.iterdir()) and not overwrite:
                raise UsageError(
                    f"--overlays: {self.overlays} is not empty; add --overwrite to replace files "
                    "of the same names, or choose another folder."
                )
        if self.figure is None or not self.figure.exists():
            return
        if self.figure.is_dir():
            raise UsageError(f"--figure {self.figure} is a folder: name a file in it.")
        paths = (Path(each) for each in reads if not isinstance(each, int))
        if any(path.exists() and path.samefile(self.figure) for path in paths):
            raise UsageError(f"--figure: {self.figure} is an input of this run; choose another.")
        if not overwrite:
            raise UsageError(
                f"--figure: {self.figure} is already there; add --overwrite to replace it, or "
                "choose another file."
            )


@dataclass(frozen=True)
class ComparisonOptions(RunOptions):
    """The options of a comparison that a later one of the same command goes on with."""

    existing: Existing = RESUME

    def __post_init__(self) -> None:
        check_existing(self.existing, self.overwrite)

    @property
    def if_there(self) -> str:
        """What to do with answers that are already there."""
        return OVERWRITE if self.overwrite else self.existing


class Pictures:
    """Makes what PageOptions ask for. loader: reads pictures again."""

    def __init__(self, options: PageOptions, loader) -> None:
        self.options, self.loader, self.count = options, loader, 0
        self.drawn: set[int] = set()

    def add(self, number: int, comparison: Comparison) -> None:
        """Writes the overlays of a sample. Raises TrimtokError if the disk fails."""
        folder = self.options.overlays
        if folder is None:
            return
        self.drawn.add(number)
        from trimtok_cli.outputs.overlay_files import write_overlays

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.count += write_overlays(folder, number, comparison, self.loader)
        except OSError as error:
            raise TrimtokError(
                f"--overlays: {error.filename or folder} cannot be written "
                f"({error.strerror or error}); make room, or choose another folder."
            ) from error

    def add_missing(self, comparisons: Sequence[Comparison]) -> None:
        """Writes the overlays of the samples that an earlier process answered."""
        for number, comparison in enumerate(comparisons, start=1):
            if number not in self.drawn:
                self.add(number, comparison)

    def finish(self, comparisons: Sequence[Comparison], screen: Screen) -> None:
        """Writes the figure, and says what was made."""
        if self.options.overlays is not None:
            screen.say(f"{self.count} overlays in {self.options.overlays}", "dim")
        figure = self.options.figure
        if figure is None:
            return
        from trimtok_cli.outputs.figure import write_figure

        try:
            figure.parent.mkdir(parents=True, exist_ok=True)
            shown = write_figure(figure, comparisons, self.loader)
        except OSError as error:
            raise TrimtokError(
                f"--figure: {figure} cannot be written ({error.strerror or error}); make room, or "
                "choose another file."
            ) from error
        said = (
            f"{shown} samples in {figure}" if shown else "no sample was answered, so none is made"
        )
        screen.say(f"figure: {said}", "dim")
