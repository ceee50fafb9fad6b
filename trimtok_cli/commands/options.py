"""The options that commands share, said once. None means "not given": the value then comes from the
config or its default.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtok_cli.config import CAPTION_PROMPT, RunConfig, parse_params

MODEL, PRUNING, ANSWERS, VIDEO, OUTPUT = "Model", "Pruning", "Answers", "Video", "Output"


def flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a command's arguments is a setting of the run (its `locals()` on entry), by the names
    of RunConfig.
    """
    names = {field.name for field in dataclasses.fields(RunConfig) if field.init}
    return {name: value for name, value in given.items() if name in names} | {
        "params": parse_params(given["param"])
    }


def _option(*names: str, shown: str | None = None, panel: str, help: str):
    return typer.Option(*names, show_default=shown or False, rich_help_panel=panel, help=help)


Model = Annotated[
    str | None,
    _option(
        "--model", "-m", shown=RunConfig.model, panel=MODEL, help="Alias, hub id or local folder."
    ),
]

Revision = Annotated[
    str | None,
    _option("--revision", shown="main", panel=MODEL, help="Branch, tag or commit on the hub."),
]

TrustRemoteCode = Annotated[
    bool | None,
    _option(
        "--trust-remote-code",
        panel=MODEL,
        help="Run Python files of the model's own folder where it asks for it: they can do all "
        "that you can. Read them first.",
    ),
]

Device = Annotated[
    str | None,
    _option("--device", shown="auto", panel=MODEL, help="auto, cuda, cuda:N, mps or cpu."),
]

DType = Annotated[
    str | None,
    _option(
        "--dtype",
        shown="auto",
        panel=MODEL,
        help="auto (bfloat16 on CUDA, float32 on a CPU), bfloat16, float16 or float32.",
    ),
]

Keep = Annotated[
    str | None,
    _option(
        "--keep",
        "-k",
        shown=RunConfig.keep,
        panel=PRUNING,
        help="Visual tokens left of each image and of each whole video: a count (64), a share "
        "(11% or 0.11), or all.",
    ),
]

Keeps = Annotated[
    str | None,
    _option(
        "--keep",
        "-k",
        shown=RunConfig.keep,
        panel=PRUNING,
        help="One or more budgets: 64, or 192,128,64; shares (11%) as well.",
    ),
]

Method = Annotated[
    str | None,
    _option(
        "--method", shown=RunConfig.method, panel=PRUNING, help="Pruning method; dense for none."
    ),
]

Methods = Annotated[
    str | None,
    _option(
        "--methods",
        "--method",
        shown=RunConfig.method,
        panel=PRUNING,
        help="One or more methods with commas between, or all.",
    ),
]

Param = Annotated[
    list[str] | None,
    _option(
        "--param",
        panel=PRUNING,
        help="NAME=VALUE of the method, or METHOD.NAME=VALUE; may be repeated.",
    ),
]

Budget = Annotated[
    str | None,
    _option(
        "--budget",
        shown=RunConfig.budget,
        panel=PRUNING,
        help="How a prompt of several images shares what --keep allows: equal, tokens (by size) "
        "or diversity (by content).",
    ),
]

BudgetCounts = Annotated[
    str | None,
    _option(
        "--budget-counts",
        shown=RunConfig.budget_counts,
        panel=PRUNING,
        help="What --keep counts in methods that prune inside the model: what is left (final) or "
        "the layers' mean (layer-mean).",
    ),
]

Frames = Annotated[
    int | None,
    _option(
        "--frames",
        shown=str(RunConfig.frames),
        panel=VIDEO,
        help="Frames of a video, evenly spaced in time.",
    ),
]

Fps = Annotated[
    float | None, _option("--fps", panel=VIDEO, help="Frames a second instead, --frames at most.")
]

Start = Annotated[
    float | None, _option("--start", shown="0", panel=VIDEO, help="Read from this second on.")
]

End = Annotated[
    float | None,
    _option("--end", shown="the video's end", panel=VIDEO, help="Read up to this second."),
]

VideoBackend = Annotated[
    str | None,
    _option(
        "--video-backend",
        shown="auto",
        panel=VIDEO,
        help="decord, pyav, or auto: decord, where it fails pyav.",
    ),
]

VideoAs = Annotated[
    str | None,
    _option(
        "--video-as",
        shown="auto",
        panel=VIDEO,
        help="video (the model's own path), frames (as so many images), or auto.",
    ),
]

VideoTimeout = Annotated[
    float | None,
    _option(
        "--video-timeout",
        shown=f"{RunConfig.video_timeout:g}",
        panel=VIDEO,
        help="Seconds for decoding one video.",
    ),
]

Prompt = Annotated[
    str | None,
    _option(
        "--prompt", "-p", shown=CAPTION_PROMPT, panel=ANSWERS, help="What to ask of every image."
    ),
]

System = Annotated[
    str | None,
    _option(
        "--system",
        panel=ANSWERS,
        help="System prompt, where the model's chat template has a place for one.",
    ),
]

ClipText = Annotated[
    str | None,
    _option(
        "--clip-text",
        panel=PRUNING,
        help="A CLIP checkpoint with the model's own tower: its text half, for cdpruner.",
    ),
]

MaxPixels = Annotated[
    int | None,
    _option(
        "--max-pixels",
        panel=MODEL,
        help="Shrink images and frames with more pixels than this before the model's own "
        "processor.",
    ),
]

BatchSize = Annotated[
    str | None,
    _option(
        "--batch-size",
        "-b",
        shown="1",
        panel=ANSWERS,
        help="Samples that run together; auto: as many as the memory holds.",
    ),
]

Decode = Annotated[
    str | None,
    _option(
        "--decode",
        shown="continuous",
        panel=ANSWERS,
        help="continuous (a waiting sample takes the place of an answer that ends) or simple "
        "(batch by batch).",
    ),
]

Workers = Annotated[
    str | None,
    _option(
        "--workers",
        shown="auto",
        panel=ANSWERS,
        help="Processes that read and prepare inputs ahead of the model; 0 for none; auto: none "
        "on a CPU or for few inputs.",
    ),
]

Timeout = Annotated[
    float | None,
    _option(
        "--timeout",
        shown=f"{RunConfig.timeout:g}",
        panel=ANSWERS,
        help="Seconds for reading and preparing one input; one that takes longer fails. A video's "
        "decoding comes on top.",
    ),
]

MaxNewTokens = Annotated[
    int | None,
    _option(
        "--max-new-tokens",
        shown="the checkpoint's, else 128",
        panel=ANSWERS,
        help="Longest answer, in tokens.",
    ),
]

Temperature = Annotated[
    float | None,
    _option(
        "--temperature",
        shown="the checkpoint's, else greedy",
        panel=ANSWERS,
        help="Sample at this temperature; 0 is greedy.",
    ),
]

TopP = Annotated[
    float | None,
    _option(
        "--top-p",
        shown="the checkpoint's, else 1",
        panel=ANSWERS,
        help="Where answers are sampled: among the likeliest tokens that hold this share.",
    ),
]

TopK = Annotated[
    int | None,
    _option(
        "--top-k",
        shown="the checkpoint's, else 50",
        panel=ANSWERS,
        help="Where answers are sampled: among so many of the likeliest tokens; 0 for all.",
    ),
]

RepetitionPenalty = Annotated[
    float | None,
    _option(
        "--repetition-penalty",
        shown="the checkpoint's, else 1",
        panel=ANSWERS,
        help="Divides the scores of tokens that the prompt or the answer has; 1 is none.",
    ),
]

Greedy = Annotated[
    bool | None,
    typer.Option(
        "--greedy/--no-greedy",
        show_default=False,
        rich_help_panel=ANSWERS,
        help="The likeliest token each time, whatever the checkpoint says of sampling, beams and "
        "other searches.",
    ),
]

Seed = Annotated[
    int | None,
    _option(
        "--seed", shown="0", panel=ANSWERS, help="For sampling, and for methods that draw lots."
    ),
]

Limit = Annotated[
    int | None, _option("--limit", "-n", panel=OUTPUT, help="Stop after this many samples.")
]

Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive", "-r", rich_help_panel=OUTPUT, help="Search folders within folders."
    ),
]

Root = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        show_default="the question file's folder",
        rich_help_panel=OUTPUT,
        exists=True,
        file_okay=False,
        help="Where image paths in a question file start, and what they may not leave.",
    ),
]

TextOnly = Annotated[
    bool,
    typer.Option(
        "--allow-text-only",
        rich_help_panel=OUTPUT,
        help="Ask rows without a picture, too; otherwise they fail.",
    ),
]

Outside = Annotated[
    bool,
    typer.Option(
        "--allow-outside",
        rich_help_panel=OUTPUT,
        help="Open pictures outside of --image-root, too, that absolute paths, .. or links of a "
        "question file lead to.",
    ),
]

Out = Annotated[
    str | None,
    _option(
        "--out",
        "-o",
        shown="a new folder in trimtok-out",
        panel=OUTPUT,
        help="A folder, a .jsonl file, or - for standard output.",
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", rich_help_panel=OUTPUT, help="Replace answers that are already there."
    ),
]

Config = Annotated[
    str | None,
    _option(
        "--config",
        "-c",
        panel=OUTPUT,
        help="YAML file with any of these settings, or a preset's name.",
    ),
]

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Nothing but errors.")
]

Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", rich_help_panel=OUTPUT, help="Every answer, however many."),
]

Debug = Annotated[
    bool,
    typer.Option(
        "--debug", rich_help_panel=OUTPUT, help="Tracebacks and the libraries' own warnings."
    ),
]
