"""The sentences for a file that cannot be read, by where the fault lies: the file, its path or the
machine. Opens no file.
"""

import errno
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import stat_result

from trimtok_cli.errors import MediaError

# errno -> (what the machine lacks, what to do). The file is not blamed for these.
_MACHINE = {
    errno.EMFILE: ("this process may open no more files", "raise the limit with `ulimit -n`"),
    errno.ENFILE: ("this machine may open no more files", "close other programs"),
    errno.ENOMEM: ("there is not enough memory", "use fewer workers or close other programs"),
    errno.EAGAIN: (
        "this user may start no more processes or threads",
        "raise the limit with `ulimit -u`",
    ),
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EROFS: ("the disk may not be written to", "name another folder"),
}


def machine_fault(error: BaseException) -> str:
    """`what the machine lacks; what to do` for such an error; "" for any other."""
    if isinstance(error, MemoryError):
        return "; ".join(_MACHINE[errno.ENOMEM])
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "; ".join(_MACHINE[errno.EAGAIN])
    return "; ".join(_MACHINE.get(getattr(error, "errno", None) or 0, ()))


def refuse_irregular(status: stat_result, name: str, kind: str) -> None:
    """Raises MediaError for a folder, an empty file and a pipe, whose opening would wait forever.

    kind: what the file should be, image or video.
    """
    article = "an" if kind == "image" else "a"
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name} is a folder, not {article} {kind}; name the files in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{name} is not a regular file; name {article} {kind} file")
    if not status.st_size:
        raise MediaError(f"{name} is empty (0 bytes); fetch or save it again")


def unquoted(error: BaseException | str) -> str:
    """A library's reason without anything it quotes: bytes of a file must not be printed."""
    text = re.split(r"[:'\"(<\\]", " ".join(str(error).split()))[0].strip()[:120]
    return text or (
        type(error).__name__ if isinstance(error, BaseException) else "no reason is given"
    )


@contextmanager
def as_media_error(name: str) -> Iterator[None]:
    """Turns any error into a MediaError about the file `name`.

    A broken file can make a library raise any exception.
    """
    try:
        yield
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"{name} does not exist; check its name and folder") from error
    except PermissionError as error:
        raise MediaError(f"{name} may not be read by this user; change its permissions") from error
    except MemoryError as error:
        raise MediaError(
            f"{name} does not fit into memory; make it smaller or use fewer workers"
        ) from error
    except Exception as error:
        if fault := machine_fault(error):
            raise MediaError(f"{name} cannot be read, as {fault}") from error
        # Pillow's own OSErrors carry no number.
        if isinstance(error, OSError) and error.errno:
            raise MediaError(f"{name} cannot be read ({error.strerror}); check the path") from error
        if isinstance(error, ValueError) and "\0" in name:
            raise MediaError(
                f"{name} cannot be read (a NUL character in its name); check the path"
            ) from error
        raise MediaError(
            f"{name} is damaged or cut short ({unquoted(error)}); fetch or save it again"
        ) from error
