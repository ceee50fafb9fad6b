"""Multiple choice: which letter an answer chooses. "" is none, which is wrong.

Three rules, as three benchmarks read answers:

ScienceQA (LLaVA's evaluation): the answer is a letter; or begins with a letter, a full stop and a
blank; or says `The answer is X`, once.

MMBench (VLMEvalKit's, without a judge): marks become blanks, and exactly one of the letters stands
alone; else exactly one option's text is in the answer, in any case. An A that stands alone among
more than three words may be the article, and then letters decide nothing.

MMMU (the authors'): letters in parentheses; else letters alone; else letters before a full stop;
else, in an answer of more than five words, the options' texts. The last one named is taken. The
authors draw lots where nothing is found.
"""

import re
from collections.abc import Mapping

_SAID = re.compile(r"The answer is ([A-Z]).", re.DOTALL)

_MARKS = re.compile(r"[.()\[\],:;!*#{}]")

_ENDS = (",", ".", "!", "?", ";", ":", "'")


def letters(count: int) -> str:
    """The letters of so many options: ABCD."""
    return "".join(chr(ord("A") + number) for number in range(count))


def scienceqa_choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer chooses by ScienceQA's rule; one that is no option is none."""
    text = answer.strip()
    chosen = text if text in options else ""
    if not chosen and text[1:3] == ". ":
        chosen = text[0]
    if not chosen:
        found = _SAID.findall(text + " ")
        chosen = found[0] if len(found) == 1 else ""
    return chosen if chosen in options else ""


def mmbench_choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer chooses by MMBench's rule."""
    words = _MARKS.sub(" ", answer).split()
    alone = [letter for letter in options if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    text = answer.lower()
    named = [letter for letter, option in options.items() if option and option.lower() in text]
    return named[0] if not alone and len(named) == 1 else ""


def mmmu_choice(answer: str, options: Mapping[str, str]) -> str:
    """The letter that an answer chooses by MMMU's rule."""
    text = answer
    for mark in _ENDS:
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} ", "{}."):
        places = {letter: text.rfind(form.format(letter)) for letter in options}
        if last := _last(places):
            return last
    if len(text.split()) <= 5:
        return ""
    text = text.lower()
    return _last({letter: text.rfind(option.lower()) for letter, option in options.items()})


def _last(places: Mapping[str, int]) -> str:
    """The letter at the last place; "" where all are -1. Of equal places the first letter."""
    last = max(places, key=lambda letter: places[letter], default="")
    return last if last and places[last] >= 0 else ""
