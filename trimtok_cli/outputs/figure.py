"""A figure like the paper's case study: for each sample its prompt and reference, then the dense
answer and each setting's, with the kept tokens of each over the picture.

Drawn with Pillow. A character that the font lacks is a box. Knows no model.
"""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from trimtok_cli.data import Comparison, Result
from trimtok_cli.outputs.overlay_files import overlaid
from trimtok_cli.outputs.pictures import Loader, pictures_of
from trimtok_cli.outputs.whole_files import put, writing
from trimtok_cli.wording import shortened, shown

SAMPLES = 3  # as many as the paper shows
ACROSS = 4  # cells in a row
CELL, GAP, MARGIN = 420, 24, 32  # pixels
TALLEST = 420  # pixels of a picture
SIZE, LINE = 18, 25  # pixels of the text, and from one line to the next
LONGEST = 400  # characters of a prompt or an answer
INK, SOFT, GOOD, BAD = (28, 30, 34), (95, 100, 109), (20, 115, 79), (154, 74, 6)
FONTS = ("DejaVuSans", "NotoSans-Regular", "Arial")
BOLD = ("DejaVuSans-Bold", "NotoSans-Bold", "Arial Bold")

Line = tuple[str, Any, tuple[int, int, int]]  # text, font, colour


def write_figure(path: Path, comparisons: Sequence[Comparison], loader: Loader) -> int:
    """Writes the figure of the first samples that dense answered; returns how many it shows."""
    found = [each for each in comparisons if each.results and not each.results[0].error][:SAMPLES]
    if found:
        content = BytesIO()
        _figure(found, loader).save(content, "PNG")
        with writing(path) as file:
            put(file, content.getvalue())
    return len(found)


def _figure(comparisons: Sequence[Comparison], loader: Loader) -> Any:
    from PIL import Image

    across = min(max(len(each.results) for each in comparisons), ACROSS)
    width = 2 * MARGIN + across * CELL + (across - 1) * GAP
    blocks = [
        block
        for letter, each in zip("abcdefgh", comparisons, strict=False)
        for block in _blocks(letter, each, width - 2 * MARGIN, loader)
    ]
    height = 2 * MARGIN + sum(block.height + GAP for block in blocks) - GAP
    figure = Image.new("RGB", (width, height), "white")
    top = MARGIN
    for block in blocks:
        figure.paste(block, (MARGIN, top))
        top += block.height + GAP
    return figure


def _blocks(letter: str, comparison: Comparison, width: int, loader: Loader) -> Iterator[Any]:
    """The head of a sample, then its cells, ACROSS in a row."""
    plain, bold = _font(FONTS), _font(BOLD)
    head = [
        (line, bold, INK)
        for line in _wrapped(f"({letter})  {_text(comparison.results[0].question)}", bold, width)
    ]
    if comparison.sample.answers:
        reference = " / ".join(dict.fromkeys(comparison.sample.answers))
        head += [
            (line, plain, SOFT) for line in _wrapped(f"Reference: {_text(reference)}", plain, width)
        ]
    yield _lines(head, width)
    cells = [_cell(comparison, result, loader) for result in comparison.results]
    for start in range(0, len(cells), ACROSS):
        yield _beside(cells[start : start + ACROSS], width)


def _cell(comparison: Comparison, result: Result, loader: Loader) -> Any:
    """The picture with the kept tokens of a setting, its name, and its answer."""
    plain, bold, dense = _font(FONTS), _font(BOLD), comparison.results[0]
    tokens = result.tokens
    name = "Dense model" if result is dense else _text(result.setting.name)
    counts = (
        f"{tokens.visual} visual tokens" if result is dense else f"{tokens.visual} → {tokens.kept}"
    )
    color = (
        INK if result is dense else GOOD if result.answer.strip() == dense.answer.strip() else BAD
    )
    said, color = (result.answer, color) if not result.error else (f"failed: {result.error}", BAD)
    lines: list[Line] = [(line, bold, INK) for line in _wrapped(name, bold, CELL)]
    lines += [(counts, plain, SOFT)]
    lines += [(line, plain, color) for line in _wrapped(_text(said) or "(no text)", plain, CELL)]
    drawn = [overlaid(comparison, result, each, loader) for each in pictures_of(comparison)]
    pictures = [image for image in drawn if image is not None]
    return _stacked([*_row(pictures), _lines(lines, CELL)])


def _row(pictures: Sequence[Any]) -> list[Any]:
    """The pictures of a cell, side by side and small enough; none for no pictures."""
    if not pictures:
        return []
    each = (CELL - GAP // 4 * (len(pictures) - 1)) // len(pictures)
    small = []
    for picture in pictures:
        copy = picture.copy()
        scale = min(max(each, 1) / copy.width, TALLEST / copy.height)
        small.append(
            copy.resize((max(round(copy.width * scale), 1), max(round(copy.height * scale), 1)))
        )
    return [_beside(small, CELL, gap=GAP // 4)]


def _beside(images: Sequence[Any], width: int, gap: int = GAP) -> Any:
    from PIL import Image

    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _stacked(images: Sequence[Any]) -> Any:
    from PIL import Image

    column = Image.new("RGB", (CELL, sum(image.height + 8 for image in images)), "white")
    top = 0
    for image in images:
        column.paste(image, (0, top))
        top += image.height + 8
    return column


def _lines(lines: Sequence[Line], width: int) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, max(len(lines), 1) * LINE), "white")
    draw = ImageDraw.Draw(image)
    for number, (text, font, color) in enumerate(lines):
        draw.text((0, number * LINE), text, fill=color, font=font)
    return image


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """The text in lines that fit; a word that is wider than a line is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _text(text: str) -> str:
    """Foreign text on one line, without what a font cannot draw."""
    line = shown(shortened(" ".join(text.split()), LONGEST))
    return line.encode("utf-8", "replace").decode("utf-8")


def _font(names: Sequence[str]) -> Any:
    """The first font of these names that is installed, or Pillow's own."""
    from PIL import ImageFont

    for name in names:
        try:
            return ImageFont.truetype(f"{name}.ttf", SIZE)
        except OSError:
            continue
    return ImageFont.load_default(SIZE)
