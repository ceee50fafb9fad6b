"""VQA accuracy: an answer is as right as people agree on it (arXiv 1505.00468).

Ten people answered. An answer is compared with each nine of them: three matches or more are right,
fewer are a third each, and the score is the mean over the ten.

`vqa_accuracy` is VQA's own evaluation (VQAv2, OK-VQA): references are normalised where people
disagree. The answer is normalised always, as everybody does who hands answers in.
`textvqa_accuracy` is TextVQA's, which LLaVA uses: both sides are normalised, with commas, question
marks and a possessive 's treated first.
"""

import re
from collections import Counter
from collections.abc import Sequence

# Marks that are left out where a blank is beside any of the same mark, or where the text has a
# comma within a number; elsewhere a mark becomes a blank.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'

_WITHIN_NUMBER = re.compile(r"\d,\d")

_STOP = re.compile(r"\.(?!\d)")

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}

_ARTICLES = frozenset(("a", "an", "the"))

# Contractions that are known without their apostrophe, and those of several apostrophes that are
# known without one of them. Others, such as he'll, are not known.
_CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock
oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""

_LONG_CONTRACTIONS = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
'ow's'at
"""


def _spellings() -> dict[str, str]:
    """Each known spelling of a contraction -> the contraction."""
    known = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
    for word in _LONG_CONTRACTIONS.split():
        places = (place for place, char in enumerate(word) if char == "'")
        known |= {word[:place] + word[place + 1 :]: word for place in places}
    return known | {"somebody'd": "somebodyd"}  # the one that the authors have the other way round


_SPELLINGS = _spellings()


def normalised(text: str) -> str:
    """A text as VQA compares it: marks, case, small numbers, articles, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _without_articles(_without_marks(text))


def normalised_words(text: str) -> str:
    """A text as TextVQA compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalised(text)


def _without_marks(text: str) -> str:
    in_number = bool(_WITHIN_NUMBER.search(text))
    made = text
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if beside or in_number else " ")
    return _STOP.sub("", made)


def _without_articles(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy in [0, 1] of one answer by VQA's own evaluation."""
    given = [each.replace("\n", " ").replace("\t", " ").strip() for each in references]
    if len(set(given)) > 1:
        given = [normalised(each) for each in given]
    return _agreement(normalised(answer), given)


def textvqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The accuracy in [0, 1] of one answer by TextVQA's evaluation."""
    return _agreement(normalised_words(answer), [normalised_words(each) for each in references])


def _agreement(answer: str, references: Sequence[str]) -> float:
    """The mean over references of min(1, matches among the others / 3); 0 for an empty answer.

    A reference that matches has one match fewer among the others.
    """
    people = len(references)
    matches = Counter(references)[answer]
    if not answer or not people:
        return 0.0
    matched = min(1.0, (matches - 1) / 3) if matches else 0.0
    others = min(1.0, matches / 3)
    return (matches * matched + (people - matches) * others) / people
