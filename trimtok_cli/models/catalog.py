"""The checkpoints that have a short name, and what the name of a model means. Loads nothing.

Licences are those known when this was written; the checkpoint's card has the last word.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import suggestion

_LLAVA = "576 an image"
_NEXT = "up to 2,880 an image"
_ONEVISION = "729 a tile, 196 a frame"
_QWEN2 = "one per 28 x 28 pixels"
_QWEN3 = "one per 32 x 32 pixels"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a short name. family: its model_type. tokens: its dense visual tokens."""

    alias: str
    hub_id: str
    family: str
    tokens: str
    licence: str


CHECKPOINTS = (
    Checkpoint("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "llava", _LLAVA, "llama2"),
    Checkpoint("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", "llava", _LLAVA, "llama2"),
    Checkpoint(
        "joycaption-beta-one",
        "fancyfeast/llama-joycaption-beta-one-hf-llava",
        "llava",
        "729 an image",
        "llama3.1",
    ),
    Checkpoint("llava-next-7b", "llava-hf/llava-v1.6-vicuna-7b-hf", "llava_next", _NEXT, "llama2"),
    Checkpoint(
        "llava-next-13b", "llava-hf/llava-v1.6-vicuna-13b-hf", "llava_next", _NEXT, "llama2"
    ),
    Checkpoint(
        "llava-next-mistral-7b",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "llava_next",
        _NEXT,
        "apache-2.0",
    ),
    Checkpoint(
        "llava-next-video-7b",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        "llava_next_video",
        "144 a frame",
        "llama2",
    ),
    Checkpoint(
        "llava-onevision-0.5b",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava_onevision",
        _ONEVISION,
        "apache-2.0",
    ),
    Checkpoint(
        "llava-onevision-7b",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "llava_onevision",
        _ONEVISION,
        "apache-2.0",
    ),
    Checkpoint("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen2_vl", _QWEN2, "apache-2.0"),
    Checkpoint("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", _QWEN2, "apache-2.0"),
    Checkpoint(
        "qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", _QWEN2, "qwen-research"
    ),
    Checkpoint("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", _QWEN2, "apache-2.0"),
    Checkpoint("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", "qwen3_vl", _QWEN3, "apache-2.0"),
    Checkpoint("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl", _QWEN3, "apache-2.0"),
    Checkpoint("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", _QWEN3, "apache-2.0"),
    Checkpoint(
        "internvl3-1b", "OpenGVLab/InternVL3-1B-hf", "internvl", "256 a tile or frame", "qwen"
    ),
    Checkpoint(
        "internvl3-8b", "OpenGVLab/InternVL3-8B-hf", "internvl", "256 a tile or frame", "qwen"
    ),
    Checkpoint(
        "idefics3-8b", "HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", "169 a tile", "apache-2.0"
    ),
    Checkpoint(
        "smolvlm-2.2b", "HuggingFaceTB/SmolVLM-Instruct", "idefics3", "81 a tile", "apache-2.0"
    ),
    Checkpoint(
        "smolvlm2-500m",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "smolvlm",
        "64 a tile or frame",
        "apache-2.0",
    ),
    Checkpoint(
        "smolvlm2-2.2b",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "smolvlm",
        "81 a tile or frame",
        "apache-2.0",
    ),
    Checkpoint("gemma-3-4b", "google/gemma-3-4b-it", "gemma3", "256 an image", "gemma"),
    Checkpoint("gemma-3-12b", "google/gemma-3-12b-it", "gemma3", "256 an image", "gemma"),
)

ALIASES = {checkpoint.alias: checkpoint.hub_id for checkpoint in CHECKPOINTS}


def locate(model: str, flag: str = "--model") -> Path | str:
    """The folder (Path) or hub id (str) that a name means; UsageError if it means neither.

    Short names are for --model alone; `flag` is the option that the name was given to.
    """
    aliases = ALIASES if flag == "--model" else {}
    source = aliases.get(model, model)
    try:
        local = Path(source).expanduser()
        if source.strip() and local.is_dir():
            return local
        if local.is_file():
            raise UsageError(
                f"{flag} {model} is a file: name the folder that holds it and its config.json."
            )
    except (OSError, RuntimeError, ValueError):
        pass  # too long for a path, or the home of an unknown user
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source, re.ASCII) and len(source) <= 96:
        return source
    if not aliases:
        raise UsageError(f"{flag} {model}: no such folder, and no hub id (owner/name).")
    near = suggestion(model, aliases)
    raise UsageError(
        f"{flag} {model}: no such folder, and neither a hub id (owner/name) nor a short "
        f"name{near}; `trimtok models` lists those."
    )


def in_cache(hub_id: str) -> bool:
    """Whether the hub's local cache holds weights of a checkpoint, complete or not.

    Asks no server.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return any(folder.glob("*/*.safetensors"))
