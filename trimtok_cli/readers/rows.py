"""One row of a question file -> a Sample.

A row never ends a run, and is never answered without a picture that it names: a row that is not
understood is a Sample that carries its problem. Opens no picture. Knows no column and no way to a
picture: columns.py and media_names.py do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Blob
from trimtok_cli.data import Sample
from trimtok_cli.readers.columns import Columns, Problem, references
from trimtok_cli.readers.foreign_formats import WANTED, plain_name
from trimtok_cli.readers.media_names import MediaNames
from trimtok_cli.readers.turns import as_question
from trimtok_cli.wording import shown_name

# Plain names of columns that are ids.
_IDS = ("questionid", "id", "customid")


@dataclass(frozen=True)
class Rules:
    """How rows become samples.

    names: how the names of pictures are read. text_only: a row without a picture and without a
    video is asked as it is. command: vqa (every row asks), caption (no row of questions is read) or
    any; but for vqa the command's prompt is asked where a row has no question of its own. captions:
    a `text` is a caption, and no question. settings: those of the run, which a
    row may ask for, by the names of RunConfig.
    """

    names: MediaNames
    text_only: bool = False
    command: str = "vqa"
    captions: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.names.root

    @property
    def prompted(self) -> bool:
        return self.command != "vqa"

    def of_table(self) -> "Rules":
        """The rules of a table, in which a `text` beside pictures to be described is a caption."""
        return replace(self, captions=self.command == "caption")

    def sample(self, row: Any, name: str, place: str, otherwise: str | int) -> Sample:
        """The sample of the row at `place` (line 4) of the file `name`.

        A row without an id of its own gets `otherwise`, or `place` if it is broken. With a prompt
        its id is the name of its picture, as it is for a picture of a folder.
        """
        if isinstance(row, Problem):
            return broken(name, place, f": {row}")
        if not isinstance(row, dict):
            return broken(name, place, f" is not a JSON object; {WANTED}")
        fields: dict[str, Any] = {"id": place, "question": ""}
        try:
            given, row = row, as_question(row, self.settings)
            columns = Columns(row, self.captions)
            columns.check_shape(self.prompted)
            own_id = columns.identity()
            if own_id is not None:
                fields["id"] = own_id
            text = columns.question_column(self.prompted)
            pictures, video = columns.pictures(), columns.video()
            if not pictures and not video:
                pictures, video = columns.files(self.root, text)
            media = (*pictures, video) if video else tuple(pictures)
            fields["names"] = tuple(shown_name(str(medium)) for medium in media)
            self._refuse_question(text, columns, given is not row)
            asked = bool(text) or not (self.prompted and columns.may_be_prompted())
            fields["question"] = columns.question(text) if asked else None
            if not media:
                columns.refuse_without_picture(text, self.text_only)
            images = tuple(map(self.names.find, pictures))
            video_medium = self.names.find(video) if video else None
        except Problem as problem:
            return Sample(**fields, problem=f"{name} {place}: {problem}")
        if own_id is None:
            fields["id"] = otherwise if asked or len(media) != 1 else fields["names"][0]
        used = {"question_id", "image", "video", text}
        if "video" not in columns.full:
            used.add("video_name")
        return Sample(
            **fields,
            images=images,
            video=video_medium,
            answers=references(row),
            extra={
                column: str(value) if isinstance(value, Blob) else value
                for column, value in row.items()
                if column not in used
            },
        )

    def _refuse_question(self, text: str, columns: Columns, turns: bool) -> None:
        """Refuses a row of a question file where pictures are to be described."""
        own = turns or not columns.may_be_prompted() or plain_name(text) == "text"
        if self.command == "caption" and text and own:
            raise Problem("it asks a question of its own; answer it with `trimtok vqa`")


class Rows:
    """The rows of one file, in turn.

    has_ids: the first sound row has an id, so the number of a row might be another row's id.
    """

    def __init__(self, rules: Rules, name: str) -> None:
        self.rules = rules
        self.name = name
        self.has_ids: bool | None = None

    def sample(self, row: Any, number: int, place: str) -> Sample:
        """The sample of a row; rows are numbered from 0."""
        sample = self.rules.sample(row, self.name, place, place if self.has_ids else number)
        if self.has_ids is None and not sample.problem and isinstance(row, dict):
            self.has_ids = any(plain_name(column) in _IDS for column in row)
        return sample


def broken(name: str, place: str, problem: str) -> Sample:
    """A row that cannot be read at all. Its id is its place, which is no other row's number."""
    return Sample(id=place, question="", problem=f"{name} {place}{problem}")
