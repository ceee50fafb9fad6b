"""The formats by name, and the making of several: a format is one file here, a line of FORMS."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trimtok_cli.errors import TrimtokError, UsageError
from trimtok_cli.outputs.exports.answers import Answers
from trimtok_cli.outputs.exports.coco import write_coco
from trimtok_cli.outputs.exports.csv_table import write_csv
from trimtok_cli.outputs.exports.form import Made, Wanted
from trimtok_cli.outputs.exports.gqa import write_gqa
from trimtok_cli.outputs.exports.imagefolder import write_imagefolder
from trimtok_cli.outputs.exports.kohya import write_kohya
from trimtok_cli.outputs.exports.llava import write_llava
from trimtok_cli.outputs.exports.mmvet import write_mmvet
from trimtok_cli.outputs.exports.musubi import write_musubi
from trimtok_cli.outputs.exports.openai_batch import write_openai
from trimtok_cli.outputs.exports.parquet_table import check_parquet, write_parquet
from trimtok_cli.outputs.exports.pope import write_pope
from trimtok_cli.outputs.exports.records import write_records
from trimtok_cli.outputs.exports.seed import write_seed
from trimtok_cli.outputs.exports.sidecars import write_caption, write_txt
from trimtok_cli.outputs.exports.vizwiz import write_vizwiz
from trimtok_cli.outputs.exports.vqav2 import write_vqav2
from trimtok_cli.outputs.lock import Busy, waited_for
from trimtok_cli.wording import brief, suggestion

WAITS = 60.0  # seconds, for another process that makes formats in the same folder


@dataclass(frozen=True)
class Form:
    """A format. ending: that of its file; empty if it lies with the pictures. check: raises
    UsageError, before a run, if something is not installed.
    """

    write: Callable[[Answers, Path, Wanted], Made]
    ending: str = ""
    check: Callable[[], None] = lambda: None


FORMS: dict[str, Form] = {
    "jsonl": Form(write_records, ".records.jsonl"),
    "llava": Form(write_llava, ".llava.jsonl"),
    "csv": Form(write_csv, ".csv"),
    "parquet": Form(write_parquet, ".parquet", check_parquet),
    "txt": Form(write_txt),
    "caption": Form(write_caption),
    "kohya": Form(write_kohya, ".kohya.json"),
    "musubi": Form(write_musubi, ".musubi.jsonl"),
    "imagefolder": Form(write_imagefolder),
    "coco": Form(write_coco, ".coco.json"),
    "gqa": Form(write_gqa, ".gqa.json"),
    "seed": Form(write_seed, ".seed.jsonl"),
    "mmvet": Form(write_mmvet, ".mmvet.json"),
    "pope": Form(write_pope, ".pope.jsonl"),
    "vizwiz": Form(write_vizwiz, ".vizwiz.json"),
    "vqav2": Form(write_vqav2, ".vqav2.json"),
    "openai": Form(write_openai, ".openai.jsonl"),
}


def chosen(text: str) -> tuple[str, ...]:
    """The formats of a list with commas. Raises UsageError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in FORMS:
            raise UsageError(
                f"--format must be some of {', '.join(FORMS)}, with commas between, got "
                f"{brief(name)}{suggestion(name, FORMS)}."
            )
        FORMS[name].check()
    return names


def endings(names: Iterable[str]) -> tuple[str, ...]:
    """What the files of these formats have behind the answers' name; none of sidecars."""
    return tuple(FORMS[name].ending for name in names if FORMS[name].ending)


def make(
    answers: Answers, targets: Mapping[str, Path], wanted: Wanted
) -> Iterator[tuple[str, Made]]:
    """Makes each format in turn: (its name, what became of it).

    targets: the file of each format; what lies with the pictures is told by the answers. Raises
    UsageError if the answers do not fit a format, TrimtokError if the disk fails; formats before it
    are made by then.
    """
    with ExitStack() as alone:
        for folder in sorted(_folders(answers, targets, wanted)):
            with suppress(OSError):  # a folder in which nothing can be written
                alone.enter_context(_alone_in(folder))
        for name, target in targets.items():
            try:
                yield name, FORMS[name].write(answers, target, wanted)
            except OSError as error:
                raise TrimtokError(
                    f"--format {name}: {error.filename or target} cannot be written "
                    f"({error.strerror or error}); the answers themselves are safe in "
                    f"{answers.path}, and `trimtok export` makes every format of them."
                ) from error


def _folders(answers: Answers, targets: Mapping[str, Path], wanted: Wanted) -> set[Path]:
    """The folders in which formats are made, as far as they are there."""
    found = set()
    for name, target in targets.items():
        tree = None if name == "imagefolder" else wanted.tree
        folder = target.parent if FORMS[name].ending else tree or answers.root
        if folder is not None:
            place = folder.resolve()
            found.add(next(each for each in (place, *place.parents) if each.is_dir()))
    return found


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """A block in which no other process makes formats in the folder: names in it are the same."""
    try:
        with waited_for(folder / ".trimtok-formats.lock", WAITS):
            yield
    except Busy as error:
        raise TrimtokError(
            f"--format: formats cannot be made in {folder}: {error}; wait for it, and make them "
            "with `trimtok export`."
        ) from None
