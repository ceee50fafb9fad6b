"""The picture of a sweep: agreement with dense, time and memory against kept tokens.

Knows no torch. matplotlib is needed (the extra `plot`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtok_cli.evaluation.sweep import Choice, Point
from trimtok_cli.outputs.whole_files import writing

LABELS = {"words": "words in common", "exact": "identical answers"}


def write_curve(
    points: Sequence[Point], choice: Choice, facts: Mapping[str, Any], path: Path
) -> Path:
    """Draws sweep.png and returns its path.

    facts: `measure`, `max_loss`, and `model` with its name and device. Raises ImportError where
    matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    kept = [point.layer_mean for point in points]
    for measure, label in LABELS.items():
        ends = [getattr(point, measure) for point in points]
        chosen = measure == facts["measure"]
        left.plot(kept, [100 * end.value for end in ends], marker="o", label=label)
        left.fill_between(
            kept,
            [100 * end.low for end in ends],
            [100 * end.high for end in ends],
            alpha=0.25 if chosen else 0.1,
        )
    left.axhline(100 * (1 - facts["max_loss"]), color="gray", linestyle="--", linewidth=1)
    if choice.likely is not None:
        left.axvline(choice.likely.layer_mean, color="gray", linestyle=":", linewidth=1)
        left.set_title(f"smallest within the loss: --keep {choice.likely.setting.keep}", fontsize=9)
    left.set_ylabel("agreement with dense, % (95 % intervals)")
    dense = points[-1]
    times = {"whole sample": lambda point: point.total, "prefill": lambda p: p.seconds.prefill}
    for label, time in times.items():
        if time(dense):
            right.plot(
                kept, [time(point) / time(dense) for point in points], marker="o", label=label
            )
    cache = [point.cache_bytes / dense.cache_bytes for point in points]
    right.plot(kept, cache, marker="s", linestyle="--", label="keys and values of the prompt")
    right.set_ylabel("of dense's")
    right.set_ylim(bottom=0)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("visual tokens kept (mean over layers)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    model = facts["model"]
    figure.suptitle(f"{model['name']}, {dense.samples} samples, {model['device']}", fontsize=9)
    with writing(path) as file:
        figure.savefig(file, dpi=130, format="png")
    return path
