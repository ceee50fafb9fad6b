"""What an answer looks like at its end: cut off, or caught in a loop. Knows text alone."""

_TIMES = 3

_LEAST = 40  # characters of the piece that comes again; a shorter one does so as many at once

_LOOKED_AT = 6000  # characters at the end of an answer


def loops(text: str) -> bool:
    """Whether an answer ends in a loop.

    Its last three lines are the same, or its end is one piece of 40 characters or more three times
    over, of which the last may be cut short.
    """
    lines = [line.strip() for line in text[-_LOOKED_AT:].splitlines() if line.strip()][-_TIMES:]
    if len(lines) == _TIMES and len(set(lines)) == 1:
        return True
    end = text[-_LOOKED_AT:].rstrip()
    # No blank stands behind the last piece.
    return any(
        end[1 - (_TIMES - 1) * size :] == end[1 - _TIMES * size : -size]
        for size in range(_LEAST, (len(end) + 1) // _TIMES + 1)
    )
