"""The errors of the package, as a tree. Every message is one sentence: what, where, what to do.

    TrimtokError              exit 1: the run cannot go on
    |-- UsageError            exit 2: wrong arguments, an unknown key, nothing found
    |-- ModelError            exit 1: the model cannot be loaded or does not fit its processor
    `-- SampleError           exit 3: one sample failed; the run goes on
        `-- MediaError        an image or video that cannot be read

Knows no command line: `commands/terminal/exit.py` prints an error and ends the process.
"""

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


class TrimtokError(Exception):
    """The run cannot go on."""

    exit_code = EXIT_FAILURE


class UsageError(TrimtokError):
    """Arguments, settings or sources that the user has to change."""

    exit_code = EXIT_USAGE


class ModelError(TrimtokError):
    """A model that cannot be loaded or does not fit its processor."""


class SampleError(TrimtokError):
    """A sample that cannot be answered; the others can."""

    exit_code = EXIT_SOME_FAILED


class MediaError(SampleError):
    """An image or video that cannot be read."""


def sentence(error: Exception) -> str:
    """The message of an error on one line, for a row that failed.

    An error of another package keeps the name of its class, and only its first line.
    """
    text = str(error).strip() or "no message"
    if isinstance(error, TrimtokError):
        # The name of a file may hold any of these characters.
        return "".join(ascii(char)[1:-1] if char in _LINE_ENDS else char for char in text)
    return f"{type(error).__name__}: {text.splitlines()[0]}"
