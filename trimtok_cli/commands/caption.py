"""trimtok caption: a sentence for every image."""

import sys
from functools import partial
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import run
from trimtok_cli.commands.session import check_stdin, tell
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.readers.paths import read_images

EXAMPLES = (
    "Examples:\n\n"
    "trimtok caption ./images --keep 64\n\n"
    "trimtok caption photo.jpg 'more/*.png' --prompt 'What is unusual here?' -o captions.jsonl\n\n"
    "find . -name '*.jpg' | trimtok caption - --model llava-1.5-13b --batch-size 8 -o out"
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, globs, @list.txt, or - for paths on standard input.",
        show_default=False,
    ),
]


@guarded
@o.settings()
def caption(
    sources: Sources, *, recursive: o.Recursive = False, config: RunConfig, options: o.AnswerOptions
) -> int:
    """Caption images: one answer per image, in input order, with token counts and times."""
    check_stdin(*sources)
    read = partial(
        read_images,
        sources,
        recursive=recursive,
        limit=config.limit or None,
        stdin=sys.stdin,
        allow_urls=config.allow_urls,
    )
    source, screen = read(), Screen(quiet=options.quiet)
    tell(source, screen)
    return run("caption", config, source, options, screen, again=read)
