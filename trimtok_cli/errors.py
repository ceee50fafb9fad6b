"""What can go wrong, as a tree. Every message is one sentence: what, where, what to do.

    TrimtokError              exit 1: the run cannot go on
    |-- UsageError            exit 2: wrong arguments, an unknown key, nothing found
    |-- ModelError            exit 1: the model cannot be loaded or does not fit its processor
    `-- SampleError           never ends a run: the sample becomes a failed row (exit 3)
        `-- MediaError        an image that cannot be read

Knows nothing of the command line: `commands/terminal/exit.py` makes a line and an exit code of it.
"""

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130

_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


class TrimtokError(Exception):
    exit_code = EXIT_FAILURE


class UsageError(TrimtokError):
    exit_code = EXIT_USAGE


class ModelError(TrimtokError):
    pass


class SampleError(TrimtokError):
    exit_code = EXIT_SOME_FAILED


class MediaError(SampleError):
    pass


def sentence(error: Exception) -> str:
    """What a row says of an error, on one line. One that is not ours keeps its class's name, and of
    its lines the first.
    """
    text = str(error).strip() or "no message"
    if isinstance(error, TrimtokError):
        return "".join(
            ascii(each)[1:-1] if each in _LINE_ENDS else each for each in text
        )  # a name may hold any of them
    return f"{type(error).__name__}: {text.splitlines()[0]}"
