"""The demo's little world: random scenes, drawn with Pillow, with the truth about every object and
every patch.

A scene has one to five coloured shapes, sometimes a printed label of three characters, sometimes a
small bar chart, on a pale background with grey clutter. `layout` draws the lots, `render` paints,
`patch_truth` says what covers each of the 24 x 24 patches of 14 px, `questions` asks, with answers.
Miniatures of the paper's benchmarks: caption (COCO, NoCaps), exist (POPE), count, color, side (MME,
GQA), read (TextVQA, OCRBench), bar (ChartQA).

Knows nothing of models or tokens. Run it to look at scenes: `python scenes.py FOLDER --count 8`.
`python samples/demo/scenes.py FOLDER --tasks 2000 --seed 30000001` writes held-out questions, 2,000 of
every task in a file of its own, for `trimtok evaluate`. What samples/ holds was made from the project's root by `python samples/demo/scenes.py
samples/images --questions samples/questions.jsonl --each 5 --film samples/video.mp4`.
"""

import argparse
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE, PATCH = 336, 14
GRID = SIZE // PATCH
COLORS = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 30),
    "purple": (125, 50, 160),
    "orange": (242, 130, 30),
    "pink": (245, 130, 180),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
BACKGROUNDS = {
    "white": (250, 250, 250),
    "gray": (200, 200, 204),
    "beige": (240, 228, 200),
    "mint": (205, 240, 220),
}
CHARACTERS = "0123456789CEFHKLMPRTXY"
MAX_VALUE, UNIT = 6, 13  # bar chart: the tallest bar, and pixels for one
COLOR_NAMES, BACKGROUND_NAMES = tuple(COLORS), tuple(BACKGROUNDS)
COUNTS = ("no", "one", "two", "three", "four", "five")
TASKS = ("caption", "exist", "count", "color", "side", "read", "bar")
KINDS = ("background", "shape", "character", "bar")

CAPTION_PROMPTS = (
    "Describe the image in one sentence.",
    "Describe the image.",
    "Describe this image.",
    "What is in the image?",
    "Provide a one-sentence caption for the provided image.",
    "What do you see?",
)


@dataclass(frozen=True)
class Thing:
    """A shape, a printed character or a bar; `name` is the shape, the character or the bar's value.
    Box in pixels.
    """

    kind: str
    name: str
    color: str
    box: tuple[float, float, float, float]
    size: float = 0.0
    angle: float = 0.0

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        # A bar is known by its top: that is where its value is read.
        return ((x0 + x1) / 2, y0 + 1) if self.kind == "bar" else ((x0 + x1) / 2, (y0 + y1) / 2)

    @property
    def patch(self) -> int:
        """The number of the patch that holds the center, in raster order."""
        x, y = self.center
        return int(y // PATCH) * GRID + int(x // PATCH)


@dataclass
class Scene:
    """What is in one picture; `shapes`, `characters` and `bars` in raster order of their centers'
    patches.
    """

    seed: int
    background: str
    shapes: list[Thing] = field(default_factory=list)
    characters: list[Thing] = field(default_factory=list)
    bars: list[Thing] = field(default_factory=list)
    panels: list[tuple[float, float, float, float]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(thing.name for thing in self.characters)

    @property
    def things(self) -> list[Thing]:
        return [*self.shapes, *self.characters, *self.bars]


def layout(
    rng: Random, size: int = SIZE, max_shapes: int = 5, label: float = 0.6, chart: float = 0.5
) -> Scene:
    """A random scene inside the upper left `size` x `size` pixels; nothing overlaps. label, chart:
    how often there is one.

    There is at least one shape, unless `max_shapes` is 0.
    """
    while not (scene := _try_layout(rng, size, max_shapes, label, chart)).shapes and (
        max_shapes or not scene.things
    ):
        pass
    return scene


def _try_layout(rng: Random, size: int, max_shapes: int, label: float, chart: float) -> Scene:
    scene = Scene(rng.randrange(1 << 30), rng.choice(BACKGROUND_NAMES))
    taken: list[tuple[float, float, float, float]] = []

    def place(width: float, height: float) -> tuple[float, float] | None:
        for _ in range(30):
            x, y = rng.uniform(3, size - 3 - width), rng.uniform(3, size - 3 - height)
            box = (x - 4, y - 4, x + width + 4, y + height + 4)
            if all(
                box[2] <= o[0] or o[2] <= box[0] or box[3] <= o[1] or o[3] <= box[1] for o in taken
            ):
                taken.append(box)
                return x, y
        return None

    if rng.random() < label:
        _add_label(scene, rng, place)
    if rng.random() < chart:
        _add_chart(scene, rng, place)
    for _ in range(rng.randint(min(1, max_shapes), max_shapes)):
        radius = rng.uniform(12, 17) if rng.random() < 0.6 else rng.uniform(20, 32)
        at = place(2 * radius, 2 * radius)
        if at:
            box = (at[0], at[1], at[0] + 2 * radius, at[1] + 2 * radius)
            angle = rng.uniform(-0.2, 0.2)
            scene.shapes.append(
                Thing("shape", rng.choice(SHAPES), rng.choice(COLOR_NAMES), box, radius, angle)
            )
    scene.shapes.sort(key=lambda thing: thing.patch)
    return scene


def _add_label(scene: Scene, rng: Random, place) -> None:
    height = rng.uniform(26, 34)
    step = height * 0.68
    at = place(3 * step + 8, height + 4)
    if at:
        scene.panels.append((at[0], at[1], at[0] + 3 * step + 8, at[1] + height + 4))
        for i in range(3):
            x = at[0] + 4 + i * step
            box = (x, at[1] + 2, x + step, at[1] + 2 + height)
            scene.characters.append(
                Thing("character", rng.choice(CHARACTERS), "black", box, height)
            )


def _add_chart(scene: Scene, rng: Random, place) -> None:
    count = rng.randint(2, 4)
    width, step, height = rng.uniform(13, 16), rng.uniform(20, 24), MAX_VALUE * UNIT
    at = place(count * step + 8, height + 12)
    if at:
        scene.panels.append((at[0], at[1], at[0] + count * step + 8, at[1] + height + 12))
        base = at[1] + height + 8
        for i, color in enumerate(rng.sample(COLOR_NAMES, count)):
            x, value = at[0] + 7 + i * step, rng.randint(1, MAX_VALUE)
            scene.bars.append(
                Thing("bar", str(value), color, (x, base - value * UNIT, x + width, base))
            )


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """The polygon of a shape, around its center; circles and rings are drawn as ellipses
    instead.
    """
    r, turn = thing.size, thing.angle
    if thing.name == "square":
        points = [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    elif thing.name == "triangle":
        points = [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]
    elif thing.name == "diamond":
        points = [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)]
    elif thing.name == "cross":
        w = 0.34
        points = [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
    elif thing.name == "star":
        radii = [1 if i % 2 == 0 else 0.42 for i in range(10)]
        points = [
            (k * math.sin(i * math.pi / 5), -k * math.cos(i * math.pi / 5))
            for i, k in enumerate(radii)
        ]
    else:  # heart
        steps = [2 * math.pi * i / 40 for i in range(40)]

        def curve(t):
            return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)

        points = [(16 * math.sin(t) ** 3 / 17, -(curve(t) + 2.5) / 16) for t in steps]
    x, y = thing.center
    cos, sin = math.cos(turn), math.sin(turn)
    return [(x + r * (px * cos - py * sin), y + r * (px * sin + py * cos)) for px, py in points]


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, scale: float, fill, hole) -> None:
    """One thing onto a canvas `scale` times as large; `hole` is what shows through a ring."""
    if thing.kind == "bar":
        draw.rectangle([c * scale for c in thing.box], fill=fill)
    elif thing.kind == "character":
        x, y = thing.center
        font = ImageFont.load_default(size=thing.size * scale)
        draw.text(
            (x * scale, y * scale),
            thing.name,
            fill=fill,
            font=font,
            anchor="mm",
            stroke_width=scale / 2,
            stroke_fill=fill,
        )
    elif thing.name in ("circle", "ring"):
        draw.ellipse([c * scale for c in thing.box], fill=fill)
        if thing.name == "ring":
            x, y = thing.center
            r = thing.size * 0.52
            draw.ellipse([c * scale for c in (x - r, y - r, x + r, y + r)], fill=hole)
    else:
        draw.polygon([(x * scale, y * scale) for x, y in _outline(thing)], fill=fill)


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """The picture of a scene, RGB; the same scene gives the same pixels."""
    rng, scale = Random(scene.seed), 2

    def jitter(color, by):
        return tuple(max(0, min(255, c + rng.randint(-by, by))) for c in color)

    ground = jitter(BACKGROUNDS[scene.background], 5)
    image = Image.new("RGB", (size * scale, size * scale), ground)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 14)):  # clutter: grey lines and specks, never a shape
        x, y, grey = rng.uniform(0, size), rng.uniform(0, size), rng.randint(140, 185)
        dx, dy = (rng.uniform(-60, 60), rng.uniform(-60, 60)) if rng.random() < 0.5 else (2, 2)
        draw.line(
            [c * scale for c in (x, y, x + dx, y + dy)], fill=(grey,) * 3, width=rng.choice((2, 3))
        )
    for panel in scene.panels:
        draw.rectangle(
            [c * scale for c in panel], fill=(253, 253, 253), outline=(120, 120, 120), width=2
        )
    if scene.bars:
        x0, _, x1, y1 = scene.panels[-1]
        base = y1 - 4
        for i in range(MAX_VALUE + 1):
            y = (base - i * UNIT) * scale
            draw.line(
                [(x0 + 3) * scale, y, (x1 - 2) * scale, y],
                fill=(60, 60, 60) if i == 0 else (205, 205, 205),
                width=2,
            )
    for thing in scene.things:
        if (
            thing.kind == "shape"
        ):  # what lies under it, clutter included, is wiped so that edges stay clean
            _draw(draw, thing, scale, jitter(COLORS[thing.color], 12), ground)
        else:
            _draw(draw, thing, scale, jitter(COLORS[thing.color], 8), None)
    image = image.resize((size, size), Image.Resampling.BOX)
    noise = np.random.default_rng(scene.seed).normal(0, rng.uniform(0, 4), (size, size, 1))
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))


def patch_truth(scene: Scene, size: int = SIZE) -> dict[str, np.ndarray]:
    """What covers each patch, (g, g) int arrays, g = size / 14: kind, shape, color, character,
    order, value, center; -1 is none.

    A patch belongs to the thing that covers most of it, from an eighth upward; the patch of a
    thing's center always belongs to it. `value` is set at a bar's top only, and `background` is the
    same everywhere.
    """
    grid = size // PATCH
    truth = {
        name: np.full((grid, grid), -1, np.int64)
        for name in ("shape", "color", "character", "order", "value")
    }
    truth |= {name: np.zeros((grid, grid), np.int64) for name in ("kind", "center")}
    truth["background"] = np.full((grid, grid), BACKGROUND_NAMES.index(scene.background), np.int64)
    best = np.full((grid, grid), 1 / 8)
    for thing in scene.things:
        if thing.kind == "shape":
            mask = Image.new("L", (size, size), 0)
            _draw(ImageDraw.Draw(mask), thing, 1, 255, 0)
            cover = (
                np.asarray(mask, np.float32).reshape(grid, PATCH, grid, PATCH).mean((1, 3)) / 255
            )
        else:
            x0, y0, x1, y1 = thing.box
            edges = np.arange(grid) * PATCH
            wide = np.clip(np.minimum(edges + PATCH, x1) - np.maximum(edges, x0), 0, None) / PATCH
            tall = np.clip(np.minimum(edges + PATCH, y1) - np.maximum(edges, y0), 0, None) / PATCH
            cover = tall[:, None] * wide[None, :]
        row, column = divmod(thing.patch, GRID)
        cover = cover.copy()
        cover[row, column] = 2  # the center always wins, also over a neighbour's edge
        mine = cover > best
        best[mine] = cover[mine]
        truth["kind"][mine] = KINDS.index(thing.kind)
        truth["color"][mine] = COLOR_NAMES.index(thing.color)
        truth["shape"][mine] = SHAPES.index(thing.name) if thing.kind == "shape" else -1
        truth["character"][mine] = CHARACTERS.index(thing.name) if thing.kind == "character" else -1
        truth["order"][mine] = (
            scene.characters.index(thing) if thing.kind == "character" else -1
        )  # place in the label
        truth["value"][mine] = -1
        truth["center"][mine] = 0
        truth["center"][row, column] = 1
        if thing.kind == "bar":
            truth["value"][row, column] = int(thing.name) - 1
    return truth


def caption(scene: Scene) -> str:
    """One sentence that names every shape, in the order of COLORS and then SHAPES, then the text
    and the chart.
    """
    found = Counter((COLOR_NAMES.index(s.color), SHAPES.index(s.name)) for s in scene.shapes)
    parts = []
    for (color, shape), count in sorted(found.items()):
        phrase = f"{COLOR_NAMES[color]} {SHAPES[shape] if count == 1 else plural(SHAPES[shape])}"
        parts.append(f"{article(phrase) if count == 1 else COUNTS[count]} {phrase}")
    if scene.text:
        parts.append(f"the text {scene.text}")
    if scene.bars:
        parts.append("a bar chart")
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"{listed[0].upper()}{listed[1:]} on a {scene.background} background."


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(word: str) -> str:
    return f"{word}es" if word == "cross" else f"{word}s"


def questions(
    scene: Scene, rng: Random, dense: bool = False, left: int = 0
) -> list[tuple[str, str, str]]:
    """(task, question, answer) for one scene, several of each task that it allows; yes and no
    balanced.

    `dense` asks for every color and every bar there is, and for more sides: a lesson rather than a
    test. left: where the scene begins, in pixels from the picture's left edge, if it is only a part
    of one.
    """
    asked = _about_shapes(scene, rng, dense, left) if scene.shapes else []
    if scene.text:
        ways = ("What is the text in the image?", "What does the text say?")
        asked += [("read", way, scene.text) for way in (ways if dense else (rng.choice(ways),))]
    for bar in scene.bars if dense else rng.sample(scene.bars, min(2, len(scene.bars))):
        asked.append(("bar", f"What is the value of the {bar.color} bar?", bar.name))
    return asked


def _about_shapes(scene: Scene, rng: Random, dense: bool, left: int) -> list[tuple[str, str, str]]:
    asked = [("caption", rng.choice(CAPTION_PROMPTS), caption(scene))]
    present = {(s.color, s.name) for s in scene.shapes}
    for yes in (True, False, rng.random() < 0.5, rng.random() < 0.5):
        if yes:
            color, shape = rng.choice(sorted(present))
        else:  # two of three share a color or a shape with something that is there
            while True:
                color, shape = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
                near = rng.choice(scene.shapes)
                color, shape = rng.choice(((near.color, shape), (color, near.name), (color, shape)))
                if (color, shape) not in present:
                    break
        asked.append(
            (
                "exist",
                f"Is there {article(color)} {color} {shape} in the image?",
                "yes" if yes else "no",
            )
        )
    if rng.random() < 0.3:
        asked.append(("exist", "Is there any text in the image?", "yes" if scene.text else "no"))
    if rng.random() < 0.3:
        asked.append(("exist", "Is there a bar chart in the image?", "yes" if scene.bars else "no"))
    shapes, colors = [s.name for s in scene.shapes], [s.color for s in scene.shapes]
    shape = rng.choice(shapes) if rng.random() < 0.8 else rng.choice(SHAPES)
    color = rng.choice(colors) if rng.random() < 0.8 else rng.choice(COLOR_NAMES)
    asked.append(("count", f"How many {plural(shape)} are there?", str(shapes.count(shape))))
    asked.append(("count", f"How many {color} shapes are there?", str(colors.count(color))))
    asked.append(("count", "How many shapes are there?", str(len(shapes))))
    single = [s for s in scene.shapes if shapes.count(s.name) == 1]
    for thing in single if dense else rng.sample(single, min(2, len(single))):
        asked.append(("color", f"What color is the {thing.name}?", thing.color))
    named = [
        s
        for s in scene.shapes
        if [(o.color, o.name) for o in scene.shapes].count((s.color, s.name)) == 1
    ]
    for thing in named if dense else named[:1]:
        middle = left + thing.center[0] - SIZE / 2
        if abs(middle) > 20:
            ask = (
                f"Is the {thing.color} {thing.name} on the left or on the right side of the image?"
            )
            asked.append(("side", ask, "left" if middle < 0 else "right"))
    for _ in range(5 if dense else 2):
        if len(named) > 1:
            one, two = rng.sample(named, 2)
            if abs(one.center[0] - two.center[0]) > 20:
                ask = (
                    f"Is the {one.color} {one.name} to the left or to the right of the "
                    f"{two.color} {two.name}?"
                )
                asked.append(("side", ask, "left" if one.center[0] < two.center[0] else "right"))
    return asked


def words() -> list[str]:
    """Every word and mark that a question or an answer can hold, besides single characters,
    sorted.
    """
    rng, found = Random(0), set(COLOR_NAMES) | set(SHAPES) | set(BACKGROUND_NAMES)
    for _ in range(2000):
        for task, question, answer in questions(layout(rng), rng):
            text = question if task == "read" else f"{question} {answer}"
            found.update(w for w in text.replace("?", "").replace(".", "").replace(",", "").split())
    found.update(COUNTS, map(plural, SHAPES))
    return sorted(w for w in found if w.isalpha() and not all(c in CHARACTERS for c in w))


def held_out(folder: Path, count: int, seed: int) -> None:
    """Writes `count` questions of every task, at most one of each task about a scene.

    TASK.jsonl has rows with `answers`, and the pictures lie in scenes/. A scene's numbers are drawn
    from the seed and its own number, so that fewer questions are the first ones of more.
    """
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict]] = {task: [] for task in TASKS}
    number = 0
    while any(len(found) < count for found in rows.values()):
        number += 1
        rng = Random(f"{seed}/{number}")
        scene = layout(rng)
        asked = questions(scene, rng)
        path = f"scenes/{number:05d}.png"
        wanted = {task for task, *_ in asked if len(rows[task]) < count}
        for task in sorted(wanted):
            _, question, answer = rng.choice([each for each in asked if each[0] == task])
            row = {"question_id": f"{task}-{number:05d}", "image": path, "text": question}
            rows[task].append({**row, "answers": [answer], "task": task})
        if wanted:
            render(scene).save(folder / path)
    for task, found in rows.items():
        lines = (json.dumps(row) + "\n" for row in found)
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def film(path: Path, rng: Random, seconds: float = 3.0, rate: int = 12) -> None:
    """A short H.264 clip in which a scene's shapes drift over its background. Needs PyAV (`pip
    install av`).
    """
    import av

    scene = Scene(7, "beige")
    for _ in range(3):
        box = (0.0, 0.0, 56.0, 56.0)
        scene.shapes.append(Thing("shape", rng.choice(SHAPES), rng.choice(COLOR_NAMES), box, 28.0))
    starts = [(rng.uniform(20, 250), 30.0 + 90 * i, rng.uniform(-50, 50)) for i in range(3)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(int(seconds * rate)):
            moved = [(min(max(x + speed * number / rate, 4), 276), y) for x, y, speed in starts]
            shapes = [
                replace(t, box=(x, y, x + 56, y + 56))
                for t, (x, y) in zip(scene.shapes, moved, strict=True)
            ]
            frame = av.VideoFrame.from_image(render(replace(scene, shapes=shapes)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write scenes into a folder, and questions about them into a file."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--questions", type=Path, help="question file (default: questions.jsonl in the folder)"
    )
    parser.add_argument(
        "--each", type=int, help="at most so many questions a scene, of as many tasks as there are"
    )
    parser.add_argument(
        "--tasks",
        type=int,
        help="write so many held-out questions of every task instead, each task in its own file",
    )
    parser.add_argument(
        "--film", type=Path, help="write a clip of moving shapes here as well; needs PyAV"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tasks:
        held_out(options.folder, options.tasks, options.seed)
        return
    file = options.questions or options.folder / "questions.jsonl"
    rng = Random(options.seed)
    with file.open("w", encoding="utf-8") as out:
        for i in range(options.count):
            scene = layout(rng)
            path = options.folder / f"scene-{i + 1:02d}.png"
            render(scene).save(path, optimize=True)
            asked = questions(scene, rng)
            if options.each:
                # One of every task, then another of every task, and so on: as many tasks as fit, in
                # the order asked.
                order = rng.sample(range(len(asked)), len(asked))
                rank = {
                    j: sum(asked[k][0] == asked[j][0] for k in order[:at])
                    for at, j in enumerate(order)
                }
                asked = [
                    asked[j] for j in sorted(sorted(order, key=rank.__getitem__)[: options.each])
                ]
            for j, (task, question, answer) in enumerate(asked):
                image = path.relative_to(file.parent).as_posix()
                row = {
                    "question_id": f"{i + 1:02d}-{j + 1:02d}",
                    "image": image,
                    "text": question,
                    "answer": answer,
                    "task": task,
                }
                out.write(json.dumps(row) + "\n")
    if options.film:
        film(options.film, rng)


if __name__ == "__main__":
    main()
