"""MME: two questions a picture, one to be affirmed and one to be denied (arXiv 2306.13394).

A task's score is 100 times its accuracy plus 100 times its accuracy+, the share of pictures both of
whose questions are answered right: 200 at best. Perception adds up ten tasks, cognition four.
"""

from collections import defaultdict
from collections.abc import Iterable

from trimtok_cli.evaluation.metrics.counting import percent_of

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)

COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)

TASKS = PERCEPTION + COGNITION


def said(text: str) -> str:
    """`yes`, `no` or `other`: lower case, without blanks around, the first four letters decide."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme(answers: Iterable[tuple[str, str, str, str]]) -> dict[str, float]:
    """Perception, cognition, their sum, and the score of each task that is there, in points.

    answers: (task, picture, label, answer); labels are `yes` or `no`. A picture that was asked
    fewer than two questions is no picture answered right.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for task, picture, label, answer in answers:
        right[task][picture].append(said(answer) == label.lower())
    points = {task: _points(right[task]) for task in sorted(right, key=_rank)}
    perception = sum(points.get(task, 0.0) for task in PERCEPTION)
    cognition = sum(points.get(task, 0.0) for task in COGNITION)
    totals = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    return totals | {f"{task}/score": value for task, value in points.items()}


def _rank(task: str) -> int:
    return TASKS.index(task) if task in TASKS else len(TASKS)


def _points(pictures: dict[str, list[bool]]) -> float:
    each = [right for rights in pictures.values() for right in rights]
    both = [rights for rights in pictures.values() if len(rights) > 1 and all(rights)]
    return percent_of(each.count(True), len(each)) + percent_of(len(both), len(pictures))
