"""The end of every command: an error becomes one line and an exit code; --debug shows it all."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

import typer

from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, TrimtokError


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """Wraps a command that returns its exit code, with --debug among its options."""

    @functools.wraps(command)
    def run(*args, **options) -> None:
        debug = bool(options.get("debug"))
        quieten(debug)
        try:
            code = command(*args, **options)
            _flush()
        except TrimtokError as error:
            if debug:
                raise
            code = report(str(error), error.exit_code)
        except KeyboardInterrupt as error:
            code = report("interrupted", getattr(error, "exit_code", EXIT_INTERRUPTED))
        except BrokenPipeError:  # `-o - | head`: the reader has closed the pipe
            code = EXIT_FAILURE
        except Exception as error:
            if debug:
                raise
            first = (str(error).strip() or "no message").splitlines()[0]
            code = report(
                f"{type(error).__name__}: {first} (run again with --debug for the whole story)",
                EXIT_FAILURE,
            )
        _give_up_stdout()
        raise typer.Exit(code)

    return run


def report(message: str, code: int) -> int:
    """Says what went wrong, as the one line of an error; returns the exit code given."""
    with suppress(OSError):  # nobody reads standard error, and there is nowhere else to say so
        Screen().error(message)
    return code


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise TrimtokError(
            f"standard output cannot be written ({error.strerror}); make room and run again."
        ) from None


def _give_up_stdout() -> None:
    """Drops text that standard output did not take: Python would retry at its exit and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quieten(debug: bool) -> None:
    """Keeps the libraries' warnings and logs out of the terminal, unless --debug is given."""
    if debug:
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
        logging.getLogger("trimtok").setLevel(logging.DEBUG)
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
