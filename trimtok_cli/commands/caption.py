"""trimtok caption: a sentence for every image."""

import sys
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import run
from trimtok_cli.commands.session import check_stdin, tell
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import resolve
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
def caption(
    sources: Sources,
    model: o.Model = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = None,
    device: o.Device = None,
    dtype: o.DType = None,
    max_pixels: o.MaxPixels = None,
    keep: o.Keep = None,
    method: o.Method = None,
    param: o.Param = None,
    clip_text: o.ClipText = None,
    budget: o.Budget = None,
    budget_counts: o.BudgetCounts = None,
    prompt: o.Prompt = None,
    system: o.System = None,
    batch_size: o.BatchSize = None,
    decode: o.Decode = None,
    workers: o.Workers = None,
    timeout: o.Timeout = None,
    max_new_tokens: o.MaxNewTokens = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    greedy: o.Greedy = None,
    seed: o.Seed = None,
    frames: o.Frames = None,
    fps: o.Fps = None,
    start: o.Start = None,
    end: o.End = None,
    video_backend: o.VideoBackend = None,
    video_as: o.VideoAs = None,
    video_timeout: o.VideoTimeout = None,
    recursive: o.Recursive = False,
    limit: o.Limit = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Caption images: one answer per image, in input order, with token counts and times."""
    settings = resolve(o.flags(locals()), config)
    check_stdin(*sources)
    source = read_images(
        sources, recursive=recursive, limit=settings.limit or None, stdin=sys.stdin
    )
    screen = Screen(quiet=quiet)
    tell(source, screen)
    return run(
        "caption",
        settings,
        source,
        out=out,
        overwrite=overwrite,
        screen=screen,
        verbose=verbose,
        config_file=config,
    )
