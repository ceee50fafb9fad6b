"""Scores that are means over samples, of all and of the parts that a column divides them into."""

from collections import defaultdict
from collections.abc import Sequence

from trimtok_cli.evaluation.datasets.base import Pair, Scores
from trimtok_cli.evaluation.metrics.counting import mean


def scores_of_means(
    metric: str, each: Sequence[float], pairs: Sequence[Pair], *columns: str
) -> Scores:
    """The mean of `each` by the name of the metric, and `PART/metric` by the columns of `extra`.

    The first column that a sample has counts.
    """
    parts: dict[str, list[float]] = defaultdict(list)
    for (sample, _), value in zip(pairs, each, strict=True):
        part = next((sample.extra[name] for name in columns if sample.extra.get(name)), None)
        if isinstance(part, str):
            parts[part].append(value)
    values = {metric: mean(each)}
    values |= {f"{part}/{metric}": mean(own) for part, own in parts.items()}
    return Scores(metric, values, each)
