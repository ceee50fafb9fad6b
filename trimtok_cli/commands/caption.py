"""trimtok caption: a sentence for every image."""

import sys
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import run
from trimtok_cli.commands.session import check_stdin, tell
from trimtok_cli.commands.source_options import SourceOptions
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.readers import read_any
from trimtok_cli.readers.source import Source
from trimtok_cli.readers.templates import prompted

EXAMPLES = (
    "Examples:\n\n"
    "trimtok caption ./images --keep 64\n\n"
    "trimtok caption photo.jpg 'more/*.png' --prompt 'What is unusual here?' -o captions.jsonl\n\n"
    "find . -name '*.jpg' | trimtok caption - --model llava-1.5-13b --batch-size 8 -o out\n\n"
    "trimtok caption ./images --engine vllm --batch-size 64 --vllm-args tensor_parallel_size=2"
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, globs, @list.txt, or - for paths on standard input; or a file of "
        "rows: metadata.jsonl, CSV, Parquet, COCO annotations, tars of pictures.",
        show_default=False,
    ),
]


@guarded
@o.settings(without=("allow_text_only",))
def caption(
    sources: Sources,
    *,
    inputs: SourceOptions,
    config: RunConfig,
    options: o.AnswerOptions,
) -> int:
    """The command `trimtok caption`; its help is in `cli.COMMANDS`."""
    check_stdin(*sources)

    def read() -> Source:
        reading = inputs.reading(config)
        source = read_any(sources, reading, command="caption", stdin=sys.stdin)
        return prompted(source, config)

    source, screen = read(), Screen(quiet=options.quiet)
    tell(source, screen, options.verbose)
    return run("caption", config, source, options, screen, again=read)
