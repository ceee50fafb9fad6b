"""The columns of one row of a question file: which is the id, the question, the picture.

A column is known by its exact name, else by its plain name (no case, no punctuation). A row that
may mean two things raises a Problem. Opens no picture and knows no file.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Blob
from trimtok_cli.readers import column_names
from trimtok_cli.readers.folders import likely_kind
from trimtok_cli.readers.foreign_formats import WANTED, media_like, plain_name, row_format
from trimtok_cli.readers.values import DEEPEST, as_list, is_unicode, texts, too_deep
from trimtok_cli.wording import shortened


class Problem(Exception):
    """Why a row cannot be answered: the end of a sentence that begins with the row's place."""


class Columns:
    """The columns of one row. Methods raise a Problem where the row cannot be answered.

    full: the columns that hold anything; plain: their plain names -> their names; captions: a
    `text` is a caption wherever it stands.
    """

    def __init__(self, row: dict[str, Any], captions: bool = False) -> None:
        self.row = row
        self.captions = captions
        self.full = {
            name: value
            for name, value in row.items()
            if not (value is None or value == "" or value == [])
        }
        self.plain = {plain_name(name): name for name in reversed(self.full)}

    def check_shape(self, prompted: bool = False) -> None:
        """Refuses a row of another format, and one too deep to be written out.

        prompted: a row without a question is asked the command's prompt, so a caption is in place.
        """
        has_question = any(name in self.plain for name in ("text", "question"))
        if format := row_format({plain_name(name) for name in self.row}, has_question):
            raise Problem(f"this looks like {format}; {WANTED}")
        captioned = (
            "file_name" in self.full and "text" in self.plain and "question" not in self.plain
        )
        if captioned and "questionid" not in self.plain and not prompted:
            raise Problem(
                '"text" beside "file_name" is a caption, as in an image folder\'s '
                'metadata.jsonl; put a question under "question"'
            )
        if too_deep(self.row):
            raise Problem(f"lists lie in lists more than {DEEPEST} levels deep")

    def identity(self) -> str | int | float | None:
        """The row's own id: question_id, else id, else None."""
        column = "question_id"
        if self.row.get(column) is None:
            column = self.plain.get("questionid")
        own = self.row[column] if column else self.full.get(self.plain.get("id", ""))
        if isinstance(own, str | int) and not isinstance(own, bool):
            return own
        if isinstance(own, float) and math.isfinite(own):
            return own
        if column:
            raise Problem(f"{column} is neither a number nor a string")
        return None

    def may_be_prompted(self) -> bool:
        """Whether the command's prompt may stand in for a question that is missing."""
        return "questionid" not in self.plain

    def question_column(self, prompted: bool = False) -> str:
        """The column that holds the question; "" where there is none.

        prompted: a `prompt` of the row stands in for the command's.
        """
        order = ("question", "text") if self._text_is_caption() else ("text", "question")
        if prompted and self.may_be_prompted():
            order = ("question", "prompt") if self._text_is_caption() else (*order, "prompt")
        exact = next((name for name in order if name in self.full), "")
        return exact or next((self.plain[name] for name in order if name in self.plain), "")

    def question(self, column: str) -> str:
        """The question under `column`, as `question_column` gives it."""
        text = self.row.get(column)
        if isinstance(text, str) and (other := self._other_question(column, text)):
            raise Problem(
                f'"{column}" and "{other}" may each be the question; keep the one that is meant'
            )
        if not column or (isinstance(text, str) and not text.strip()):
            near = next(
                (name for name in self.full if plain_name(name) in column_names.LIKE_QUESTIONS), ""
            )
            hint = f' ("{near}" is not read as one)' if near else ""
            raise Problem(f'there is no question; put it under "text"{hint}')
        if not isinstance(text, str):
            raise Problem(f"{column} is not a string")
        if not is_unicode(text):
            raise Problem(
                f"{column} holds half a character (a lone surrogate), which no model can "
                "read; write it whole"
            )
        return text

    def _text_is_caption(self) -> bool:
        """Whether `text` is a caption, as it is beside file_name in an image folder's metadata."""
        return self.captions or ("file_name" in self.full and "question_id" not in self.full)

    def _other_question(self, column: str, text: str) -> str:
        """A column that asks something else than `column`; "" where there is none."""
        keys = ("question",) if self._text_is_caption() else ("question", "text")
        for key in keys:
            name = self.plain.get(key, column)
            other = self.full.get(name)
            if name == column or not isinstance(other, str):
                continue
            if other.strip() not in ("", text.strip()):
                return name
        return ""

    def pictures(self) -> Sequence[str | Blob]:
        """The pictures under the column that is surely of pictures; () where there is none.

        A picture is a file name or a blob.
        """
        column = "image"
        if column not in self.full:
            column = self._only(
                [name for key, name in self.plain.items() if key in column_names.PICTURES]
            ) or self._only([name for name in self.full if isinstance(self.full[name], Blob)])
        if not column:
            return ()
        names = as_list(self.full[column])
        if not all(isinstance(name, str | Blob) and name for name in names):
            raise Problem(f"{column} is neither a file name nor a list of file names")
        for key, name in self.plain.items():
            if name != column and self._is_further(key, self.full[name], names):
                raise Problem(
                    f'"{name}" seems to name one more picture; put all of them under '
                    '"image", as a list'
                )
        return names

    def _is_further(self, key: str, value: Any, names: Sequence[str | Blob]) -> bool:
        """Whether a column names a picture beside those in `names`, in whatever form.

        The same file name in another folder is no further picture.
        """
        if column_names.NUMBERED.fullmatch(key) and isinstance(value, str | Blob):
            return True
        if not (
            key in column_names.PICTURES
            or column_names.NUMBERED.fullmatch(key)
            or column_names.FURTHER.fullmatch(key)
        ):
            return False
        known = {os.path.basename(str(name)) for name in names}
        return any(
            media_like(text, column_names.MEDIA_ENDINGS)
            and "://" not in text
            and os.path.basename(text) not in known
            for text in texts(value)
        )

    def video(self) -> str | Blob | None:
        """The file name of the video; None where there is none."""
        column = next((name for name in ("video", "video_name") if name in self.full), None)
        column = column or self._only(
            [name for key, name in self.plain.items() if key in column_names.VIDEOS]
        )
        if column is None:
            return None
        names = as_list(self.full[column])
        if len(names) != 1 or not isinstance(names[0], str | Blob) or not names[0]:
            raise Problem(f"{column} is not a file name")
        return names[0]

    def files(self, root: Path, text: str) -> tuple[Sequence[str | Blob], str | Blob | None]:
        """(pictures, video) under a column such as file_name or path, or one of an address.

        root: the folder of the names; text: the column of the question, which is no such column.
        """
        others = [(key, name) for key, name in self.plain.items() if name != text]
        surely = [name for key, name in others if key in ("filename", "filenames")]
        likely = [
            name for key, name in others if key in column_names.FILES and self._names_media(name)
        ]
        linked = [
            name
            for key, name in others
            if key in column_names.ADDRESSES
            or (key in column_names.MAYBE_FILES and self._names_media(name))
        ]
        column = self._only(surely or likely or linked)
        if column is None:
            return (), None
        names = as_list(self.full[column])
        if not all(isinstance(name, str | Blob) and name for name in names):
            raise Problem(
                f'"{column}" names a picture in a form that is not read; put the file\'s '
                'name under "image"'
            )
        if len(names) == 1 and likely_kind(root / str(names[0])) == "video":
            return (), names[0]
        return names, None

    def _names_media(self, name: str) -> bool:
        return media_like(self.full[name], column_names.MEDIA_ENDINGS)

    def refuse_without_picture(self, text: str, allowed: bool) -> None:
        """Refuses a row without a picture, unless that is `allowed` and no column may name one."""
        others = [
            name
            for name in self.full
            if name not in (text, "question_id", "id", *column_names.REFERENCES)
        ]
        looks = [
            name
            for name in others
            if plain_name(name) in column_names.NOT_FILES or self._names_media(name)
        ]
        if allowed and not looks:
            return
        near = (looks or [name for name in others if column_names.HINTS.search(plain_name(name))])[
            :1
        ]
        hint = f'"{shortened(near[0], 40)}" is not read as one; ' if near else ""
        remedy = "" if looks else ", or add --allow-text-only"
        raise Problem(
            f'there is no picture and no video; {hint}put its file name under "image" '
            f'or "video"{remedy}'
        )

    def _only(self, columns: Sequence[str]) -> str | None:
        """The first of the columns, which must all hold the same; None where there is none."""
        if len({str(self.full[name]) for name in columns}) > 1:
            raise Problem(
                f"{' and '.join(columns[:3])} may each name the picture; put the one that is "
                'meant under "image"'
            )
        return columns[0] if columns else None


def references(row: dict[str, Any]) -> tuple[str, ...]:
    """The reference answers of a row as strings, from the first column that holds any.

    Entries may be VQAv2's {"answer": ...}.
    """
    for column in column_names.REFERENCES:
        entries = as_list(row.get(column))
        values = [entry.get("answer") if isinstance(entry, dict) else entry for entry in entries]
        answers = tuple(
            str(value) for value in values if isinstance(value, str | int | float) and value != ""
        )
        if answers:
            return answers
    return ()
