"""Questions alone and as they are asked, so that both can be told to be the same question.

Knows no data set and no file.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtok_cli.data import Sample

# Sentences that evaluations put behind a question; they say how to answer, and ask nothing.
SUFFIXES = tuple(
    suffix.casefold()
    for suffix in (
        "Answer the question using a single word or phrase.",
        "Answer the question using a single word or phrase",
        "Answer with the option's letter from the given choices directly.",
        "Please answer yes or no.",
        "Short answer:",
    )
)


# Where a picture stands in a question; MMMU's have numbers, which are written in several ways.
_MARK = re.compile(r"<image>|<image \d>|\bimage \d\b")


def question_alone(text: str) -> str:
    """A question as it is compared: without marks of pictures, suffixes and case, single blanks."""
    words = " ".join(_MARK.sub(" ", text.casefold()).split())
    while suffix := next((each for each in SUFFIXES if words.endswith(each)), ""):
        words = words.removesuffix(suffix).rstrip()
    return words


def asked(sample: Sample, prompt: str, extra: Mapping[str, Any]) -> Sample:
    """The sample with its question asked by the prompt; the question alone goes to `extra`.

    A question that already ends as the prompt does is left as it is.
    """
    question = (sample.question or "").strip()
    before, _, after = prompt.partition("{question}")
    ends = after.strip() and question.endswith(after.strip())
    alone = question.removesuffix(after.strip()).rstrip() if ends else question
    whole = question if ends else before + question + after
    return replace(sample, question=whole, extra={**sample.extra, **extra, "question": alone})
