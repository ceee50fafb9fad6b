"""trimtok vqa: an answer for every row of a question file."""

from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import run
from trimtok_cli.commands.session import check_stdin
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import resolve
from trimtok_cli.readers.questions import read_questions

EXAMPLES = (
    "Examples:\n\n"
    "trimtok vqa questions.jsonl --keep 64 -o answers.jsonl\n\n"
    "trimtok vqa pope.jsonl --image-root coco/val2014 --max-new-tokens 8 --batch-size 8\n\n"
    'A row: {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?"}; image may be a '
    "list, and further columns ride along."
)

Questions = Annotated[
    str,
    typer.Argument(
        help="JSONL with question_id, image, text; or - for standard input.", show_default=False
    ),
]


@guarded
def vqa(
    questions: Questions,
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
    image_root: o.Root = None,
    allow_text_only: o.TextOnly = False,
    allow_outside: o.Outside = False,
    limit: o.Limit = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    config: o.Config = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Answer questions about images: one answer per row, in the file's order, ready for LLaVA's
    scorers.
    """
    settings = resolve(o.flags(locals()), config)
    check_stdin(questions)
    source = read_questions(
        questions,
        image_root=image_root,
        limit=settings.limit or None,
        allow_text_only=allow_text_only,
        allow_outside=allow_outside,
    )
    screen = Screen(quiet=quiet, noun="questions")
    return run(
        "vqa",
        settings,
        source,
        out=out,
        overwrite=overwrite,
        screen=screen,
        verbose=verbose,
        config_file=config,
    )
