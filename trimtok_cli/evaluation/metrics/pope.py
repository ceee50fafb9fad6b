"""POPE: is an object in the picture? (arXiv 2305.10355). Yes is the positive class.

An answer is read as LLaVA's evaluation reads it: its first sentence, up to a full stop, without
commas, split at blanks; `No`, `no` or `not` among the words is a no, and anything else a yes.

An empty answer is a yes by that rule. Here it is an answer that was not given: wrong, and neither a
yes nor a no, so that it costs accuracy and recall and is no false alarm.
"""

from collections import Counter
from collections.abc import Iterable

from trimtok_cli.evaluation.metrics.counting import percent_of

_NO = {"No", "no", "not"}


def yes_or_no(text: str) -> str:
    """`yes` or `no`, or "" for an empty answer."""
    if not text.strip():
        return ""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "yes" if _NO.isdisjoint(words) else "no"


def pope(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and the rate of yes, in per cent.

    pairs: answers as they were given, each with its label, `yes` or `no`.
    """
    counts = Counter((yes_or_no(text), label) for text, label in pairs)
    hits = counts["yes", "yes"]
    said_yes = hits + counts["yes", "no"]
    labelled_yes = sum(count for (_, label), count in counts.items() if label == "yes")
    return {
        "accuracy": percent_of(hits + counts["no", "no"], counts.total()),
        "precision": percent_of(hits, said_yes),
        "recall": percent_of(hits, labelled_yes),
        "f1": percent_of(2 * hits, said_yes + labelled_yes),
        "yes": percent_of(said_yes, counts.total()),
    }
