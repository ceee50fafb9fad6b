"""Sidecars: a text file for each picture, as trainers read them: one line, never empty.

They lie beside the pictures, or in a tree of their own that mirrors the pictures' folders. All are
looked at before the first is written, so that a file of somebody else stops the format as a whole:
a file with another content is replaced only if the user says so.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import LeftOut, Made, Wanted
from trimtok_cli.outputs.exports.pictures import inner_name, own_name
from trimtok_cli.outputs.whole_files import write_whole


def write_txt(answers: Answers, target: Path, wanted: Wanted) -> Made:
    return _Sidecars(answers, wanted, "txt").write()


def write_caption(answers: Answers, target: Path, wanted: Wanted) -> Made:
    return _Sidecars(answers, wanted, "caption").write()


class _Sidecars:
    """The sidecars of a run with one ending, which is the format's name."""

    def __init__(self, answers: Answers, wanted: Wanted, ending: str) -> None:
        self.answers, self.wanted, self.ending = answers, wanted, ending
        if answers.root is None and wanted.tree is None:
            raise UsageError(
                f"--format {ending}: the pictures of this run lie in no one folder, so nothing can "
                "be written beside them; name a folder for the files with --sidecar-dir, or the "
                "folder of the pictures with `trimtok export --image-root`."
            )
        self.folder = Path(wanted.tree or answers.root or "")
        self.made = Made(f"{self.folder}/**/*.{ending}")

    def write(self) -> Made:
        """Raises UsageError if two pictures share a sidecar, or one is there that differs."""
        self._check()
        self.made.left_out.clear()
        for path, text, _ in self._all():
            if not _holds(path, text):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, text)
            self.made.rows += 1
        return self.made

    def _check(self) -> None:
        owners: dict[str, tuple[str, int]] = {}
        strange, first = 0, ""
        for path, text, name in self._all():
            owner, told = owners.setdefault(str(path), (name, hash(text)))
            if owner != name:
                raise UsageError(
                    f"--format {self.ending}: {owner} and {name} would both have {path}; add "
                    "--sidecar-names full, which gives each a file of its own."
                )
            if told != hash(text):
                raise UsageError(
                    f"--format {self.ending}: {name} has several answers, and its one file "
                    "holds one; choose another format, such as csv."
                )
            if not self.wanted.replace and not _holds(path, text) and os.path.lexists(path):
                strange, first = strange + 1, first or str(path)
        if strange:
            others = f", as are {strange - 1} more" if strange > 1 else ""
            raise UsageError(
                f"--format {self.ending}: {first} is there with another text{others}; nothing was "
                "written. Add --overwrite-sidecars to replace what is there, or name another "
                "folder with --sidecar-dir."
            )

    def _all(self) -> Iterator[tuple[Path, str, str]]:
        """(file, text, name of the picture) for each sidecar; counts what has none."""
        for record in self.answers.records():
            try:
                yield self._one(record)
            except LeftOut as reason:
                self.made.left_out[str(reason)] += 1

    def _one(self, record: Record) -> tuple[Path, str, str]:
        text = self.wanted.caption(record) + "\n"
        name = own_name(record)
        beside = self.wanted.tree is None
        trusted = beside and self.answers.opened
        picture = self.folder / (name if trusted else inner_name(name, self.answers.root))
        if beside and not picture.is_file():
            raise LeftOut("whose picture is not there any more")
        full = f"{picture.name}.{self.ending}"
        path = picture.with_name(full if self.wanted.full_names else _stem(full, self.ending))
        if len(os.fsencode(path.name)) > _LONGEST:
            raise LeftOut("whose name is too long for one more ending")
        if path == picture:
            raise LeftOut("whose file would have the picture's own name")
        return path, text, name


# Bytes of a file's name, less those of the hidden name under which it is written.
_LONGEST = 255 - len("..tmp")


def _stem(full: str, ending: str) -> str:
    """a.jpg.txt -> a.txt"""
    return os.path.splitext(full.removesuffix(f".{ending}"))[0] + f".{ending}"


def _holds(path: Path, text: str) -> bool:
    """Whether a plain file is there that holds this text already."""
    content = text.encode("utf-8", "backslashreplace")
    try:
        found = path.lstat()
        same = stat.S_ISREG(found.st_mode) and found.st_size == len(content)
        return same and path.read_bytes() == content
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
