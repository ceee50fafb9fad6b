"""trimtok vqa: an answer for every row of a question file."""

from functools import partial
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import run
from trimtok_cli.commands.session import check_stdin, tell
from trimtok_cli.commands.source_options import SourceOptions
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.readers.questions import read_questions

EXAMPLES = (
    "Examples:\n\n"
    "trimtok vqa questions.jsonl --keep 64 -o answers.jsonl\n\n"
    "trimtok vqa pope.jsonl --image-root coco/val2014 --max-new-tokens 8 --batch-size 8\n\n"
    "trimtok vqa pope.jsonl --image-root coco/val2014 --engine vllm --batch-size auto\n\n"
    'A row: {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?"}; image may be a '
    "list, and further columns ride along."
)

Questions = Annotated[
    str,
    typer.Argument(
        help="JSONL with question_id, image, text, or another file of questions (VQAv2, TextVQA, "
        "conversations, OpenAI batch, CSV, Parquet); or - for standard input.",
        show_default=False,
    ),
]


@guarded
@o.settings(without=("prompt", "recursive"))
def vqa(
    questions: Questions,
    *,
    inputs: SourceOptions,
    config: RunConfig,
    options: o.AnswerOptions,
) -> int:
    """The command `trimtok vqa`; its help is in `cli.COMMANDS`."""
    check_stdin(questions)
    read = partial(read_questions, questions, inputs.reading(config))
    source, screen = read(), Screen(quiet=options.quiet, noun="questions")
    tell(source, screen, options.verbose)
    return run("vqa", config, source, options, screen, again=read)
