"""A checkpoint's folder, looked at before anything is loaded: whole, readable, and of a kind that
can be loaded.

A folder that was half copied, or holds something else, is the commonest fault there is, and the
libraries' words for it are the worst. Reads the settings and the heads of the weights; imports no
torch and runs nothing.
"""

import importlib.util
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

UNFINISHED = ("*.incomplete", "*.part", "*.crdownload", "*.aria2", "*.download", "*.tmp")

AGAIN = "copy or download it again"

OTHER_LAYOUTS = {
    "llava_llama": "llava-hf/llava-1.5-7b-hf",
    "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "internvl_chat": "OpenGVLab/InternVL3-8B-hf",
}

"""model_types of repositories that come with code of their own, and a checkpoint of the same family
that needs none.
"""

QUANTIZERS = {
    "bitsandbytes": ("bitsandbytes", "accelerate"),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel", "accelerate"),
    "torchao": ("torchao",),
    "compressed-tensors": ("compressed_tensors",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "eetq": ("kernels", "accelerate"),
    "auto-round": ("auto_round",),
}

MOST_LAYERS = 1000

# What a setting of generation_config.json may be, where it is not null. Of those that do not stand
# here the library judges.
_NUMBER, _WHOLE, _TRUTH, _ID, _IDS = (
    "a number",
    "a whole number",
    "true or false",
    "an id or a list of ids",
    "a list of ids",
)

GENERATION = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "top_h": _NUMBER,
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "repetition_penalty": _NUMBER,
    "encoder_repetition_penalty": _NUMBER,
    "penalty_alpha": _NUMBER,
    "guidance_scale": _NUMBER,
    "max_time": _NUMBER,
    "top_k": _WHOLE,
    "max_length": _WHOLE,
    "max_new_tokens": _WHOLE,
    "min_length": _WHOLE,
    "min_new_tokens": _WHOLE,
    "no_repeat_ngram_size": _WHOLE,
    "encoder_no_repeat_ngram_size": _WHOLE,
    "num_beams": _WHOLE,
    "num_beam_groups": _WHOLE,
    "num_return_sequences": _WHOLE,
    "pad_token_id": _WHOLE,
    "do_sample": _TRUTH,
    "renormalize_logits": _TRUTH,
    "remove_invalid_values": _TRUTH,
    "use_cache": _TRUTH,
    "token_healing": _TRUTH,
    "bos_token_id": _ID,
    "eos_token_id": _ID,
    "forced_bos_token_id": _ID,
    "forced_eos_token_id": _ID,
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "bad_words_ids": "a list of lists of ids",
    "stop_strings": "text or a list of texts",
}

_SMALL_KINDS = {"I8", "U8", "F8_E4M3", "F8_E5M2"}


class Broken(Exception):
    """What is wrong with a folder and what to do, as the second half of a sentence, without its
    full stop.
    """


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files of a checkpoint by name. Raises Broken for one that is empty, a pointer, or no
    JSON object.
    """
    found = {}
    for name in SETTINGS:
        path = folder / name
        if not path.is_file():
            continue
        _check_whole(path)
        try:
            found[name] = json.loads(path.read_bytes())
        except ValueError as error:
            where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise Broken(f"its {name} is not JSON{where}; {AGAIN}") from error
        except (OSError, RecursionError) as error:
            raise Broken(f"its {name} cannot be read; {AGAIN}") from error
        if not isinstance(found[name], dict):
            raise Broken(f"its {name} holds no names and values; {AGAIN}")
    return found


def check(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """That a folder with these settings is a whole checkpoint that answers questions about images.
    Raises Broken.
    """
    if "config.json" not in settings:
        raise Broken(_no_config(folder))
    check_config(settings["config.json"])
    check_generation(settings.get("generation_config.json", {}))
    check_files(folder, settings)
    check_one_of(folder, TOKENIZERS, f"tokenizer ({TOKENIZERS[0]} or {TOKENIZERS[1]})")
    check_one_of(folder, PROCESSORS, f"image processor ({PROCESSORS[1]})")


def check_one_of(folder: Path, names: tuple[str, ...], what: str) -> None:
    """That one of these files is there, and none of them empty: the library may go on with a part
    that knows nothing.
    """
    there = [folder / name for name in names if (folder / name).is_file()]
    for path in there:
        _check_whole(path)
    if not there:
        raise Broken(f"it has no {what}; copy it into the folder")


def check_config(config: dict[str, Any]) -> None:
    """That the architecture is said, and in numbers that a model can have: what is not said would
    be a 7B model's.
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


def check_generation(settings: dict[str, Any]) -> None:
    """That settings of generation are of their kinds: the library compares them unseen, and takes
    "false" for true.
    """
    for name, value in settings.items():
        kind = GENERATION.get(name)
        if kind and value is not None and not _is(kind, value):
            said = f"{name}: {brief(json.dumps(value))}"
            raise Broken(
                f"its generation_config.json says {said}, where {kind} should be; mend the file"
            )


def _is(kind: str, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and (isinstance(value, int) or value.is_integer())
    if kind in (_NUMBER, _WHOLE, _TRUTH):
        return {_NUMBER: number, _WHOLE: whole, _TRUTH: isinstance(value, bool)}[kind]
    if kind in (_ID, _IDS):
        return (kind == _ID and whole) or (
            isinstance(value, list) and all(_is(_WHOLE, each) for each in value)
        )
    if kind.startswith("text"):
        return isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        )
    return isinstance(value, list) and all(_is(_IDS, each) for each in value)


def check_files(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """That all files of weights are there and as long as they say, and that what they need is
    installed.
    """
    quantized = quantization(settings["config.json"])
    for package in QUANTIZERS.get(quantized, ()):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise Broken(
                f"its weights are quantized ({quantized}), and {name} is not installed: pip "
                f"install {name}"
            )
    if "adapter_config.json" in settings:
        check_adapter(settings["adapter_config.json"])
    sizes: set[int] = set()
    for path in weight_files(folder, settings):
        _check_whole(path)
        if path.suffix == ".safetensors":
            sizes |= _sizes(path, quantized)
        elif _begin(path, 2) == b"PK" and not zipfile.is_zipfile(path):
            raise Broken(f"its {path.name} is cut short; {AGAIN}")
    if sizes and not quantized:
        _check_sizes(settings["config.json"], sizes)


def _check_sizes(config: dict[str, Any], sizes: set[int]) -> None:
    """That the tensors have the widths that the configuration says: a model of other widths may not
    fit into memory at all.
    """
    text = config.get("text_config") or config
    for part in (text, config.get("vision_config") or {}):
        for name in ("hidden_size", "intermediate_size"):
            width = part.get(name)
            if width is not None and width not in sizes:
                raise Broken(
                    f"its config.json says {name}: {brief(width)}, and none of its tensors "
                    f"is that wide; {AGAIN}"
                )
    rows = text.get("vocab_size", 0)
    if not isinstance(rows, int) or rows > 16 * max(sizes):
        raise Broken(
            f"its config.json says vocab_size: {brief(rows)}, and none of its tensors is "
            f"that long; {AGAIN}"
        )


def check_adapter(settings: dict[str, Any]) -> None:
    """That a PEFT adapter can be read, and says what it adapts."""
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise Broken("its adapter_config.json does not say its base_model_name_or_path")
    if importlib.util.find_spec("peft") is None:
        raise Broken(
            f"it holds a PEFT adapter (for {brief(base, 80)}), and peft is not installed: "
            "pip install peft"
        )


def quantization(config: dict[str, Any]) -> str:
    """The method that a checkpoint's weights were quantized by; empty for none."""
    parts = [config, config.get("text_config")]
    said = next(
        (
            part["quantization_config"]
            for part in parts
            if isinstance(part, dict) and part.get("quantization_config")
        ),
        {},
    )
    return (
        str(said.get("quant_method") or "bitsandbytes") if isinstance(said, dict) and said else ""
    )


def weight_files(folder: Path, settings: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """The files that the library will read, in its own order of preference. Raises Broken where one
    is missing.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        if (folder / whole).is_file():
            yield folder / whole
            return
        if (index := settings.get(f"{whole}.index.json")) is None:
            continue
        places = index.get("weight_map")
        if (
            not isinstance(places, dict)
            or not places
            or not all(isinstance(name, str) for name in places.values())
        ):
            raise Broken(f"its {whole}.index.json has no weight_map; {AGAIN}")
        names = sorted(set(places.values()))
        if any(Path(name).name != name for name in names):
            raise Broken(f"its {whole}.index.json names files outside the folder")
        gone = [name for name in names if not (folder / name).is_file()]
        if gone:
            unfinished = _unfinished(folder)
            raise Broken(
                f"{len(gone)} of its {len(names)} files of weights are missing "
                f"({gone[0]}){unfinished}; {AGAIN}"
            )
        yield from (folder / name for name in names)
        return
    raise Broken(_no_weights(folder))


def _no_weights(folder: Path) -> str:
    if unfinished := _unfinished(folder):
        return f"it has no weights{unfinished}; {AGAIN}"
    if gguf := _gguf(folder):
        return gguf
    if others := _weights(folder):
        return (
            f"its weights are named as transformers does not name them ({others[0]}); use a "
            "checkpoint that transformers saved"
        )
    return f"it has no weights (model.safetensors); {AGAIN}"


def _no_config(folder: Path) -> str:
    within = sorted(
        path.parent
        for path in [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    )
    if within:
        return f"it has no config.json; did you mean {within[0]}?"
    if gguf := _gguf(folder):
        return gguf
    if weights := _weights(folder):
        return (
            f"it holds weights ({weights[0]}) but no config.json; use a checkpoint in the "
            "layout that transformers saves"
        )
    return f"it has no config.json{_unfinished(folder)}; name the folder of a checkpoint"


def _gguf(folder: Path) -> str:
    if not any(folder.glob("*.gguf")):
        return ""
    return (
        "it holds GGUF files, which other programs read; use the original checkpoint, a "
        "folder with a config.json"
    )


def _weights(folder: Path) -> list[str]:
    """The files that hold weights by their ending, whatever they are called."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    )


def _unfinished(folder: Path) -> str:
    parts = [
        path.name
        for pattern in UNFINISHED
        for path in [*folder.glob(pattern), *folder.glob(f".cache/**/{pattern}")]
    ]
    return f" and a download that did not end ({parts[0]})" if parts else ""


def _check_whole(path: Path) -> None:
    try:
        size, head = path.stat().st_size, _begin(path, 40)
    except OSError as error:
        raise Broken(f"its {path.name} cannot be read ({error.strerror}); {AGAIN}") from error
    if not size:
        raise Broken(f"its {path.name} is empty; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise Broken(
            f"its {path.name} is only a pointer of git-lfs; run `git lfs pull` there, or "
            "download it again"
        )


def _begin(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _sizes(path: Path, quantized: str) -> set[int]:
    """The sizes of all tensors of a file. Raises Broken for one that is torn, or whose numbers
    cannot be weights.

    A safetensors file begins with the length of a JSON header that says where each tensor ends.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= min(size, 10**8) else b""
    try:
        tensors = {name: spec for name, spec in json.loads(text).items() if name != "__metadata__"}
        end = max((spec["data_offsets"][1] for spec in tensors.values()), default=0)
        sizes = {size for spec in tensors.values() for size in spec["shape"]}
        kinds = {name: spec["dtype"] for name, spec in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        whole = length <= 10**8 and length + 8 > size
        raise Broken(
            f"its {path.name} is {'cut short' if whole else 'damaged'}; {AGAIN}"
        ) from error
    if size < 8 + length + end:
        raise Broken(f"its {path.name} is cut short, {size} bytes of {8 + length + end}; {AGAIN}")
    small = next(
        (name for name, kind in kinds.items() if kind in _SMALL_KINDS and name.endswith("weight")),
        None,
    )
    if small and not quantized:
        raise Broken(
            f"its {small} holds {kinds[small]} numbers, and its config.json has no "
            "quantization_config to read them by"
        )
    return sizes
