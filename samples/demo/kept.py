"""Which tokens methods throw away, held against the renderer's truth, and what that does to answers.

`python samples/demo/kept.py samples/demo/work/held-out --limit 100 -o samples/results/demo/kept.json`
answers the first questions of every task in many ways, each picture encoded once. A thing is a
shape, a printed character or a bar; its patches are those that it covers by an eighth or more, its
center is the patch that holds its middle. Questions: see scenes.py, with the same seed.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import scenes
import torch

from trimtok_cli.data import Result, Sample
from trimtok_cli.engine.shared import Shared
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.evaluation.datasets.registry import dataset_named
from trimtok_cli.evaluation.statistics import mean_interval, paired, pictures_of
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.kernels.alignment import alignment
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.readers.keys import keyed

Way = tuple[str, dict[str, Any]]

WAYS: dict[str, Way] = {
    "dense": ("dense", {}),
    "trimtokenator": ("trimtokenator", {"keep": 64}),
    "stage 1 alone, 461 left": ("trimtokenator", {"keep": 461, "order": "align-only"}),
    "stage 1 alone": ("trimtokenator", {"keep": 64, "order": "align-only"}),
    "stage 2 alone": ("trimtokenator", {"keep": 64, "order": "diversity-only"}),
    "stage 2 first": ("trimtokenator", {"keep": 64, "order": "diversity-first"}),
    "pool 0.9": ("trimtokenator", {"keep": 64, "pool": 0.9}),
    "pool 0.6": ("trimtokenator", {"keep": 64, "pool": 0.6}),
    "pool 0.4": ("trimtokenator", {"keep": 64, "pool": 0.4}),
    "pool 0.25": ("trimtokenator", {"keep": 64, "pool": 0.25}),
    "pool 0.15": ("trimtokenator", {"keep": 64, "pool": 0.15}),
    "aligned by cosine": ("trimtokenator", {"keep": 64, "align": "cosine"}),
    "diversity by L2": ("trimtokenator", {"keep": 64, "diversity": "l2"}),
    "pool 0.4, diversity by L2": ("trimtokenator", {"keep": 64, "pool": 0.4, "diversity": "l2"}),
    "all text": ("trimtokenator", {"keep": 64, "text": "prompt"}),
    "divprune": ("divprune", {"keep": 64}),
    "divprune-star": ("divprune-star", {"keep": 64}),
    "cdpruner": ("cdpruner", {"keep": 64, "text": "llm"}),
    "vispruner": ("vispruner", {"keep": 64}),
    "visionzip": ("visionzip", {"keep": 64}),
    "random": ("random", {"keep": 64}),
    "uniform": ("uniform", {"keep": 64}),
}
REFERENCE = "trimtokenator"
COUNTS = {
    "things": "share of the tokens on things that are kept",
    "asked": "share of the tokens on what is asked about that are kept",
    "centers": "share of the centers of what is asked about that are kept",
    "lost": "share of the things asked about of which no token is kept",
    "spent": "share of the kept tokens that are on things",
}


def scene_of(sample: Sample, seed: int) -> scenes.Scene:
    """The scene that a held-out question is about, drawn again."""
    number = int(str(sample.id).rpartition("-")[2])
    return scenes.layout(Random(f"{seed}/{number}"))


def asked_about(scene: scenes.Scene, task: str, question: str) -> list[scenes.Thing]:
    """The things that an answer takes; none where the right answer is that there is none."""
    if task == "caption":
        return scene.things
    if task == "read" or "any text" in question:
        return scene.characters
    if task == "bar" or "bar chart" in question:
        return [bar for bar in scene.bars if bar.color in question] or scene.bars
    colors, shapes = "|".join(scenes.COLOR_NAMES), "|".join(scenes.SHAPES)
    if pairs := re.findall(rf"({colors}) ({shapes})\b", question):
        return [shape for shape in scene.shapes if (shape.color, shape.name) in pairs]
    color, name = re.search(colors, question), re.search(shapes, question)
    return [
        shape
        for shape in scene.shapes
        if (not color or color[0] == shape.color) and (not name or name[0] == shape.name)
    ]


def patches_of(scene: scenes.Scene, things: Sequence[scenes.Thing]) -> np.ndarray:
    """(576,) bool: the patches that any of the things covers."""
    kinds = {"shapes": "shape", "characters": "character", "bars": "bar"}
    own = {name: [each for each in things if each.kind == kind] for name, kind in kinds.items()}
    alone = replace(scene, **own)
    return scenes.patch_truth(alone)["kind"].reshape(-1) > 0


def counts_of(result: Result, scene: scenes.Scene, task: str) -> dict[str, float]:
    """What a result kept of the things in its picture; nothing of what its picture lacks."""
    kept = np.zeros(scenes.GRID**2, bool)
    kept[[token for token in result.kept[-1].tokens if token < kept.size]] = True
    every = patches_of(scene, scene.things)
    things = asked_about(scene, task, result.question)
    found = {"things": kept[every].mean(), "spent": every[kept].mean()}
    if things:
        each = [kept[patches_of(scene, [thing])].any() for thing in things]
        found["asked"] = kept[patches_of(scene, things)].mean()
        found["centers"] = np.mean([kept[thing.patch] for thing in things])
        found["lost"] = 1 - np.mean(each)
    return {name: float(value) for name, value in found.items()}


def is_right(result: Result) -> float:
    """1 where an answer is the reference, but for case and the full stop."""
    texts = (result.answer, result.sample.answers[0])
    answer, reference = (text.strip().removesuffix(".").lower() for text in texts)
    return float(answer == reference)


def rows_of(
    samples: dict[str, list[Sample]], adapter: Adapter, seed: int, ways: Sequence[str]
) -> Iterator[dict]:
    """What each way keeps and answers, a row for each way and task, and one for all tasks."""
    shared, rights = Shared(adapter), dict[str, dict[str, list[float]]]()
    scene = {each.key: scene_of(each, seed) for task in samples.values() for each in task}
    for label in ways:
        method, params = WAYS[label]
        pruner = build_pruner(method, params)
        for task, asked in samples.items():
            ask = Ask(max_new_tokens=64)
            results = list(answer_all(adapter, pruner, asked, ask, batch_size=32, shared=shared))
            assert not any(each.error for each in results), results[0].error
            right = [is_right(each) for each in results]
            rights.setdefault(label, {})[task] = right
            each = [counts_of(result, scene[result.sample.key], task) for result in results]
            means = {
                name: round(fmean(found), 4)
                for name in COUNTS
                if (found := [one[name] for one in each if name in one])
            }
            yield {"way": label, "task": task, "samples": len(right), "right": sum(right), **means}
    for label in ways:
        yield _overall(label, rights, samples)


def _overall(label: str, rights: dict[str, dict[str, list[float]]], samples: dict) -> dict:
    """The mean over all questions, against the reference on the same questions."""
    groups = [pictures_of(each) for task in samples.values() for each in task]
    own, other = (
        [value for task in samples for value in rights[way][task]] for way in (label, REFERENCE)
    )
    share = mean_interval(own, groups)
    row = {"way": label, "task": "all", "samples": len(own), "right": sum(own)}
    row["interval"] = [round(share.low, 4), round(share.high, 4)]
    if label != REFERENCE:
        test = paired(own, other, groups)
        row["wins"], row["losses"], row["p"] = test.wins, test.losses, round(test.p, 5)
    return row


@torch.inference_mode()
def nearness(samples: dict[str, list[Sample]], adapter: Adapter, seed: int) -> dict[str, Any]:
    """How tokens on things and on background lie to the words, and how long they are.

    ahead: the chance that a token on a thing is nearer to the instruction than one on background,
    0.5 where words tell nothing.
    """
    shared, found = Shared(adapter), dict[str, list[float]]()
    for task, asked in samples.items():
        for sample in asked[:40]:
            (prepared,) = shared.prepare([sample], Ask())
            (encoded,) = shared.encode([prepared])
            scene, prompt = scene_of(sample, seed), encoded.prompt
            every = torch.from_numpy(patches_of(scene, scene.things))
            own = torch.from_numpy(patches_of(scene, asked_about(scene, task, sample.question)))
            visual, text = prompt.embeds[prompt.visual], prompt.embeds[prompt.instruction]
            norms = visual.float().norm(dim=-1)
            values = {
                "norm of things": norms[every].mean(),
                "norm of background": norms[~every].mean(),
            }
            for align in ("l2", "cosine"):
                near = alignment(visual[None].float(), text[None].float(), align)[0]
                values[f"ahead, {align}"] = _ahead(near[every], near[~every])
                if own.any():
                    values[f"asked about ahead of other things, {align}"] = _ahead(
                        near[own], near[every & ~own]
                    )
            for name, value in values.items():
                if not value.isnan():
                    found.setdefault(name, []).append(float(value))
    return {name: round(fmean(values), 4) for name, values in found.items()}


def _ahead(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The share of pairs in which the first is larger."""
    return (first[:, None] > second[None]).float().mean()


def table(rows: Sequence[dict], tasks: Sequence[str]) -> str:
    """A Markdown table: a line for each way, with what is right of every task, and the means."""
    head = ["way", *tasks, "all", "p", *COUNTS]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for way in dict.fromkeys(row["way"] for row in rows):
        own = {row["task"]: row for row in rows if row["way"] == way}
        cells = [f"{own[task]['right'] / own[task]['samples']:.1%}" for task in tasks]
        whole = own["all"]
        cells += [f"{whole['right'] / whole['samples']:.1%}", str(whole.get("p", ""))]
        for name in COUNTS:
            means = [own[task][name] for task in tasks if name in own[task]]
            cells.append(f"{fmean(means):.1%}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which tokens each method throws away.")
    parser.add_argument("folder", type=Path, help="held-out questions, a file for each task")
    parser.add_argument("--model", default=str(Path(__file__).parent / "model"))
    parser.add_argument("--ways", default=";".join(WAYS), help="some of the ways, with ; between")
    parser.add_argument("--limit", type=int, default=150, help="questions of each task")
    parser.add_argument(
        "--seed", type=int, default=30_000_001, help="that the scenes were drawn with"
    )
    parser.add_argument("-o", "--out", type=Path, help="a JSON for the figures")
    options = parser.parse_args()
    adapter, rows = load_model(options.model, device="cpu"), []
    samples = {
        task: list(keyed(islice(_read(options.folder / f"{task}.jsonl"), options.limit)))
        for task in scenes.TASKS
    }
    near = nearness(samples, adapter, options.seed)
    print(json.dumps(near, indent=1))
    ways = options.ways.split(";")
    for row in rows_of(samples, adapter, options.seed, ways):
        print(json.dumps(row), flush=True)
        rows.append(row)
    print(table(rows, list(samples)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"limit": options.limit, "seed": options.seed, "means": COUNTS, "nearness": near}
        asked = {way: WAYS[way] for way in ways}
        text = json.dumps({**facts, "ways": asked, "rows": rows}, indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> Iterator[Sample]:
    return dataset_named("jsonl").samples(path, split="", images=None)


if __name__ == "__main__":
    main()
