"""A checkpoint's folder, checked before anything is loaded: whole, readable, and of a family.

A folder that was half copied, or that holds something else, is the commonest fault, and the
libraries' own messages for it help nobody. Knows no family by its code; imports no torch and runs
nothing. `weight_files` and `generation_settings` check those files.
"""

import json
from pathlib import Path
from typing import Any

from trimtok_cli.models.broken import AGAIN, Broken, check_whole, unfinished
from trimtok_cli.models.generation_settings import check_generation
from trimtok_cli.models.weight_files import check_weight_files, gguf_fault, weight_names
from trimtok_cli.wording import brief

SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "adapter_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
    "tekken.json",
    "vocab.txt",
)

PROCESSORS = ("processor_config.json", "preprocessor_config.json")

# model_types of repositories that come with code of their own, and a checkpoint of the same family
# that needs none.
OTHER_LAYOUTS = {
    "llava_llama": "llava-hf/llava-1.5-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "internvl_chat": "OpenGVLab/InternVL3-8B-hf",
}

MOST_LAYERS = 1000


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint by name; Broken for one that holds no JSON object."""
    settings = {}
    for name in SETTINGS:
        path = folder / name
        if not path.is_file():
            continue
        check_whole(path)
        try:
            settings[name] = json.loads(path.read_bytes())
        except ValueError as error:
            where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise Broken(f"its {name} is not JSON{where}; {AGAIN}") from error
        except (OSError, RecursionError) as error:
            raise Broken(f"its {name} cannot be read; {AGAIN}") from error
        if not isinstance(settings[name], dict):
            raise Broken(f"its {name} holds no names and values; {AGAIN}")
    return settings


def check(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Raises Broken unless the folder is a whole checkpoint that answers questions about images.

    settings: those of `read_settings`.
    """
    if "config.json" not in settings:
        raise Broken(_no_config(folder))
    check_config(settings["config.json"])
    check_generation(settings.get("generation_config.json", {}))
    check_weight_files(folder, settings)
    check_one_of(folder, TOKENIZERS, f"tokenizer ({TOKENIZERS[0]} or {TOKENIZERS[1]})")
    check_one_of(folder, PROCESSORS, f"image processor ({PROCESSORS[1]})")


def check_one_of(folder: Path, names: tuple[str, ...], part: str) -> None:
    """Raises Broken where none of these files is there, or one of them is empty.

    The library may go on with a part that knows nothing. part: its name in the message.
    """
    paths = [folder / name for name in names if (folder / name).is_file()]
    for path in paths:
        check_whole(path)
    if not paths:
        raise Broken(f"it has no {part}; copy it into the folder")


def check_config(config: dict[str, Any]) -> None:
    """Raises Broken where config.json leaves out the architecture, or gives impossible numbers.

    The library would fill a missing part with the numbers of a 7B model.
    """
    family = config.get("model_type")
    if not isinstance(family, str):
        raise Broken(
            "its config.json does not say its model_type; it is no checkpoint that "
            "transformers saved"
        )
    if family in OTHER_LAYOUTS:
        raise Broken(
            f"it is laid out for code of its own ({family}); use a checkpoint converted to "
            "transformers' layout, "
            f"like {OTHER_LAYOUTS[family]}"
        )
    for part in ("text_config", "vision_config"):
        inner = config.get(part)
        flat = part == "text_config" and isinstance(config.get("num_hidden_layers"), int)
        if not isinstance(inner, dict) and not (inner is None and flat):
            raise Broken(
                f"the {part} of its config.json is "
                f"{'missing' if inner is None else 'not names and values'}; {AGAIN}"
            )
    for part in (config, config.get("text_config") or {}, config["vision_config"]):
        for name in ("num_hidden_layers", "depth"):
            layers = part.get(name, 1)
            if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
                raise Broken(
                    f"its config.json says {name}: {brief(layers)}, which no model has; {AGAIN}"
                )


def _no_config(folder: Path) -> str:
    """The fault of a folder without config.json."""
    inner = sorted(
        path.parent
        for path in [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    )
    if inner:
        return f"it has no config.json; did you mean {inner[0]}?"
    if gguf := gguf_fault(folder):
        return gguf
    if weights := weight_names(folder):
        return (
            f"it holds weights ({weights[0]}) but no config.json; use a checkpoint in the "
            "layout that transformers saves"
        )
    return f"it has no config.json{unfinished(folder)}; name the folder of a checkpoint"
