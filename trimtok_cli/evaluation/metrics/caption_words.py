"""The words of a caption, as the COCO caption toolkit counts them, without its Java.

The toolkit asks Stanford's Penn Treebank tokenizer for lower-case tokens and leaves out punctuation
marks. Here contractions part as there (`can't` is `ca n't`, `man's` is `man 's`), numbers and
hyphenated words stay whole, and other signs (`&`, `$`, `%`) are tokens of their own. It differs in
what captions seldom have: emoticons, addresses, fractions, and dots that end an abbreviation.
"""

import re

_CLITICS = (
    (re.compile(r"\b(can)(not)\b"), r"\1 \2"),
    (re.compile(r"\b(gon|wan)(na)\b"), r"\1 \2"),
    (re.compile(r"(?<=\w)(n't)\b"), r" \1"),
    (re.compile(r"(?<=\w)('(?:s|m|d|re|ve|ll))\b"), r" \1"),
)

_TOKEN = re.compile(
    r"""
    n't\b
    | '(?:s|m|d|re|ve|ll)\b
    | (?:[^\W\d_]\.){2,}                        # u.s.
    | \d+(?:[.,:/]\d+)*(?:[\w'-]*\w)?           # 1,000  12:30  3.5  2nd  5-year
    | \w+(?:[-'.&/]+\w+)*                       # t-shirt  o'clock
    | [^\w\s]
    """,
    re.VERBOSE,
)

# Marks that are left out.
_MARKS = frozenset("'\"`()[]{}.?!,:;-–—…“”‘’")


def caption_words(caption: str) -> list[str]:
    """The tokens of a caption that count."""
    text = " ".join(caption.lower().replace("’", "'").split())
    for pattern, parted in _CLITICS:
        text = pattern.sub(parted, text)
    return [token for token in _TOKEN.findall(text) if token not in _MARKS]
