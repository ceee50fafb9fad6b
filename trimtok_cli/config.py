"""The settings of a run, each said once: its default, its words in `--help`, its values.

Knows no model and no method; `keep` and method parameters stay as the user wrote them until the
pruner reads them. `resolve.py` knows the sources that settings come from; this file does not.
"""

from dataclasses import dataclass, field
from typing import Any

from trimtok_cli.bounds import check_record, described, like, setting
from trimtok_cli.data import FrameRule
from trimtok_cli.sampling import MOST_TOKENS, Sampling

CAPTION_PROMPT = "Describe the image in one sentence."
VIDEO_PROMPT = "Describe the video in one sentence."

PANELS = ("Model", "Pruning", "Answers", "Video", "Input", "Output")
MODEL, PRUNING, ANSWERS, VIDEO, INPUT, OUTPUT = PANELS


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes; run.json holds it as it was resolved.

    A field is an option of every command that runs a model, a TRIMTOK_ variable and a key of
    --config. A value beyond a field's bound means nothing more, or is a mistake: no model reads
    10,000 frames. Raises UsageError if a value does not fit.
    """

    model: str = setting(
        "llava-1.5-7b",
        "Alias, hub id or local folder.",
        panel=MODEL,
        flags=("--model", "-m"),
        path=True,
    )
    revision: str = setting(
        "", "Branch, tag or commit on the hub.", panel=MODEL, shown="main", empty=True
    )
    trust_remote_code: bool = setting(
        False,
        "Run Python files of the model's own folder where it asks for it: they can do all that you "
        "can. Read them first.",
        panel=MODEL,
    )
    device: str = setting("auto", "auto, cuda, cuda:N, mps or cpu.", panel=MODEL)
    dtype: str = setting(
        "auto",
        "auto (bfloat16 on CUDA, float32 on a CPU), bfloat16, float16 or float32.",
        panel=MODEL,
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    engine: str = setting(
        "local",
        "What runs the language model: local (trimtok's own loops), vllm, or ray (processes on a "
        "cluster).",
        panel=MODEL,
        choices=("local", "vllm", "ray"),
    )
    vllm_args: dict[str, Any] = field(
        default_factory=dict,
        metadata=described("NAME=VALUE of vLLM's; may be repeated.", panel=MODEL),
    )
    max_pixels: int = setting(
        0,
        "Shrink images and frames with more pixels than this before the model's own processor.",
        panel=MODEL,
        least=0,
        most=10**10,
    )
    keep: str = setting(
        "11.1%",  # the paper's headline: 64 of 576, 320 of 2880
        "Visual tokens left of each image and of each whole video: a count (64), a share (11% or "
        "0.11), or all.",
        panel=PRUNING,
        flags=("--keep", "-k"),
    )
    method: str = setting("trimtokenator", "Pruning method; dense for none.", panel=PRUNING)
    params: dict[str, Any] = field(
        default_factory=dict,
        metadata=described(
            "NAME=VALUE of the method, or METHOD.NAME=VALUE; may be repeated.",
            panel=PRUNING,
            flags=("--param",),
        ),
    )
    clip_text: str = setting(
        "",
        "A CLIP checkpoint with the model's own tower: its text half, for cdpruner.",
        panel=PRUNING,
        empty=True,
        path=True,
    )
    budget: str = setting(
        "equal",
        "How a prompt of several images shares what --keep allows: equal, tokens (by size) or "
        "diversity (by content).",
        panel=PRUNING,
        choices=("equal", "tokens", "diversity"),
    )
    budget_counts: str = setting(
        "final",
        "What --keep counts in methods that prune inside the model: what is left (final) or the "
        "layers' mean (layer-mean).",
        panel=PRUNING,
        choices=("final", "layer-mean"),
    )
    prompt: str = setting(
        CAPTION_PROMPT,
        "What to ask of every image; without it, videos are asked about the video. {stem}, "
        "{name}, {dir}, {parent} and the columns of a row stand for what it has; {{ is a brace.",
        panel=ANSWERS,
        flags=("--prompt", "-p"),
    )
    system: str = setting(
        "",
        "System prompt, where the model's chat template has a place for one.",
        panel=ANSWERS,
        empty=True,
    )
    batch_size: int | str = setting(
        1,
        "Samples that run together; auto: as many as the memory holds.",
        panel=ANSWERS,
        flags=("--batch-size", "-b"),
        least=1,
        most=4096,
    )
    decode: str = setting(
        "continuous",
        "continuous (a waiting sample takes the place of an answer that ends) or simple (batch by "
        "batch).",
        panel=ANSWERS,
        choices=("continuous", "simple"),
    )
    workers: int | str = setting(
        "auto",
        "Processes that read and prepare inputs ahead of the model; 0 for none; auto: none on a "
        "CPU or for few inputs.",
        panel=ANSWERS,
        least=0,
        most=256,
    )
    timeout: float = setting(
        120.0,
        "Seconds for reading and preparing one input; one that takes longer fails. A video's "
        "decoding comes on top.",
        panel=ANSWERS,
        above=0,
        most=86_400,
    )
    # None, here and below, leaves the checkpoint's own setting.
    max_new_tokens: int | None = setting(
        None,
        "Longest answer, in tokens.",
        panel=ANSWERS,
        shown="the checkpoint's, else 128",
        least=1,
        most=MOST_TOKENS,
    )
    temperature: float | None = like(
        Sampling,
        "temperature",
        help="Sample at this temperature; 0 is greedy.",
        panel=ANSWERS,
        shown="the checkpoint's, else greedy",
    )
    top_p: float | None = like(
        Sampling,
        "top_p",
        help="Where answers are sampled: among the likeliest tokens that hold this share.",
        panel=ANSWERS,
        shown="the checkpoint's, else 1",
    )
    top_k: int | None = like(
        Sampling,
        "top_k",
        help="Where answers are sampled: among so many of the likeliest tokens; 0 for all.",
        panel=ANSWERS,
        shown="the checkpoint's, else 50",
    )
    repetition_penalty: float | None = like(
        Sampling,
        "repetition_penalty",
        help="Divides the scores of tokens that the prompt or the answer has; 1 is none.",
        panel=ANSWERS,
        shown="the checkpoint's, else 1",
    )
    greedy: bool = like(
        Sampling,
        "greedy",
        help="The likeliest token each time, whatever the checkpoint says of sampling, beams and "
        "other searches.",
        panel=ANSWERS,
        flags=("--greedy/--no-greedy",),
    )
    seed: int = like(
        Sampling,
        "seed",
        help="For sampling, and for methods that draw lots.",
        panel=ANSWERS,
        shown="0",
    )
    strip_reasoning: bool = setting(
        False, "Leave out what thinking models write between <think> and </think>.", panel=ANSWERS
    )
    frames: int = like(
        FrameRule, "frames", help="Frames of a video, evenly spaced in time.", panel=VIDEO
    )
    fps: float = like(
        FrameRule,
        "fps",
        default=0.0,  # takes `frames` frames, whatever the video's length
        help="Frames a second instead, --frames at most.",
        panel=VIDEO,
        above=None,
        least=0,
    )
    start: float = like(
        FrameRule, "start", help="Read from this second on.", panel=VIDEO, shown="0"
    )
    end: float = like(
        FrameRule,
        "end",
        default=0.0,
        help="Read up to this second.",
        panel=VIDEO,
        shown="the video's end",
        above=None,
        least=0,
    )
    video_backend: str = like(
        FrameRule,
        "backend",
        help="decord, pyav, or auto: decord, where it fails pyav.",
        panel=VIDEO,
    )
    video_as: str = setting(
        "auto",
        "video (the model's own path), frames (as so many images), or auto.",
        panel=VIDEO,
        choices=("auto", "video", "frames"),
    )
    video_timeout: float = like(
        FrameRule, "timeout", help="Seconds for decoding one video.", panel=VIDEO
    )
    input_format: str = setting(
        "auto",
        "What a file of rows is: json (one a line, an array, or a document), csv, tsv, parquet, "
        "tar, or auto, by its content.",
        panel=INPUT,
        choices=("auto", "json", "csv", "tsv", "parquet", "tar"),
    )
    allow_urls: bool = setting(
        False,
        "Fetch pictures and videos whose name is an http or https address; otherwise they fail.",
        panel=INPUT,
    )
    # 0 is no limit.
    limit: int = setting(
        0,
        "Stop after this many samples.",
        panel=INPUT,
        flags=("--limit", "-n"),
        least=0,
        most=10**12,
    )
    # The source of each setting that was given; every other setting is a default.
    sources: dict[str, str] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        check_record(self)
        self.sampling, self.frame_rule  # noqa: B018 they refuse wrong values

    @property
    def batch_limit(self) -> int | None:
        """The batch size; None for auto, as many as memory allows."""
        return self.batch_size if isinstance(self.batch_size, int) else None

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            greedy=self.greedy,
        )

    @property
    def frame_rule(self) -> FrameRule:
        return FrameRule(
            frames=self.frames,
            fps=self.fps or None,
            start=self.start,
            end=self.end or None,
            backend=self.video_backend,
            timeout=self.video_timeout,
        )
