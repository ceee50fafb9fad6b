"""The weight files in a checkpoint's folder, looked at before anything is loaded.

Checks that every file is there, is as long as its header says, holds tensors of the widths that
config.json says, and that the packages which read it are installed. Reads the heads of the files
alone; imports no torch and runs nothing.
"""

import importlib.util
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtok_cli.models.broken import AGAIN, Broken, check_whole, first_bytes, unfinished
from trimtok_cli.wording import brief

# The packages that each way of quantization needs.
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

# dtypes of 8 bits, which are weights only where a checkpoint says how it was quantized.
_EIGHT_BITS = {"I8", "U8", "F8_E4M3", "F8_E5M2"}

_LONGEST_HEADER = 10**8  # bytes

# The tensors of the language model's layers, and the number of each one's layer.
DECODER_LAYER = re.compile(r"(?:language_model|text_model|^model)(?:\.model)?\.layers\.(\d+)\.")


def check_weight_files(folder: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Raises Broken where a weight file, or a package that it needs, is missing or does not fit."""
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
        check_whole(path)
        if path.suffix == ".safetensors":
            sizes |= _tensor_sizes(path, quantized)
        elif first_bytes(path, 2) == b"PK" and not zipfile.is_zipfile(path):
            raise Broken(f"its {path.name} is cut short; {AGAIN}")
    if sizes and not quantized:
        _check_sizes(settings["config.json"], sizes)


def _check_sizes(config: dict[str, Any], sizes: set[int]) -> None:
    """Raises Broken where no tensor has a width that config.json says.

    A model of other widths may be too large for the memory. sizes: of all tensors, in any axis.
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
    vocabulary = text.get("vocab_size", 0)
    if not isinstance(vocabulary, int) or vocabulary > 16 * max(sizes):
        raise Broken(
            f"its config.json says vocab_size: {brief(vocabulary)}, and none of its tensors is "
            f"that long; {AGAIN}"
        )


def check_adapter(settings: dict[str, Any]) -> None:
    """Raises Broken for a PEFT adapter that names no base model, or where peft is not installed."""
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise Broken("its adapter_config.json does not say its base_model_name_or_path")
    if importlib.util.find_spec("peft") is None:
        raise Broken(
            f"it holds a PEFT adapter (for {brief(base, 80)}), and peft is not installed: "
            "pip install peft"
        )


def quantization(config: dict[str, Any]) -> str:
    """The method that a checkpoint's weights were quantized by; "" for none."""
    for part in (config, config.get("text_config")):
        settings = part.get("quantization_config") if isinstance(part, dict) else None
        if settings:
            break
    if not settings or not isinstance(settings, dict):
        return ""
    return str(settings.get("quant_method") or "bitsandbytes")


def weight_files(folder: Path, settings: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """The files that transformers will read, by its own preference; Broken where one is missing."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            yield folder / single
            return
        index = settings.get(f"{single}.index.json")
        if index is not None:
            yield from _shards(folder, f"{single}.index.json", index)
            return
    raise Broken(_no_weights(folder))


def _shards(folder: Path, index_name: str, index: dict[str, Any]) -> list[Path]:
    """The files that an index names; Broken for one that is missing or outside the folder."""
    file_of = index.get("weight_map")
    if (
        not isinstance(file_of, dict)
        or not file_of
        or not all(isinstance(name, str) for name in file_of.values())
    ):
        raise Broken(f"its {index_name} has no weight_map; {AGAIN}")
    names = sorted(set(file_of.values()))
    if any(Path(name).name != name for name in names):
        raise Broken(f"its {index_name} names files outside the folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Broken(
            f"{len(missing)} of its {len(names)} files of weights are missing "
            f"({missing[0]}){unfinished(folder)}; {AGAIN}"
        )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    """The fault of a folder without weights under the names that transformers reads."""
    if download := unfinished(folder):
        return f"it has no weights{download}; {AGAIN}"
    if gguf := gguf_fault(folder):
        return gguf
    if names := weight_names(folder):
        return (
            f"its weights are named as transformers does not name them ({names[0]}); use a "
            "checkpoint that transformers saved"
        )
    return f"it has no weights (model.safetensors); {AGAIN}"


def gguf_fault(folder: Path) -> str:
    """The fault of a folder with GGUF files; "" without any."""
    if not any(folder.glob("*.gguf")):
        return ""
    return (
        "it holds GGUF files, which other programs read; use the original checkpoint, a "
        "folder with a config.json"
    )


def weight_names(folder: Path) -> list[str]:
    """The names of the files that end as weights do, sorted."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    )


def weight_bytes(
    folder: Path, settings: dict[str, dict[str, Any]], item_bytes: int, *, layers: bool = True
) -> int:
    """The bytes that a checkpoint's weights take once they are loaded.

    item_bytes: of a number, in the dtype that they are loaded in; quantized weights stay as they
    are, and a pickle is taken to be as large as its file. layers: whether the decoder's are
    counted. The files have been checked before.
    """
    quantized = quantization(settings["config.json"])
    total = 0
    for path in weight_files(folder, settings):
        if path.suffix == ".safetensors" and not quantized:
            shapes = {name: spec["shape"] for name, spec in _tensors(_header(path)[1]).items()}
            counted = [name for name in shapes if layers or not DECODER_LAYER.search(name)]
            total += item_bytes * sum(math.prod(shapes[name]) for name in counted)
        else:
            total += path.stat().st_size
    return total


def _header(path: Path) -> tuple[int, bytes]:
    """The length of a safetensors file's JSON header, which the file begins with, and the header.

    The header is empty where it cannot be one.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        fits = length <= min(path.stat().st_size, _LONGEST_HEADER)
        return length, file.read(length) if fits else b""


def _tensors(header: bytes) -> dict[str, dict[str, Any]]:
    """The dtype, shape and place of each tensor, by its name."""
    return {name: spec for name, spec in json.loads(header).items() if name != "__metadata__"}


def _tensor_sizes(path: Path, quantized: str) -> set[int]:
    """The sizes of all axes of all tensors in a safetensors file.

    The header says where each tensor ends. Raises Broken for a file that is cut short, or whose
    8-bit numbers nothing says how to read.
    """
    num_bytes = path.stat().st_size
    length, header = _header(path)
    try:
        tensors = _tensors(header)
        end = max((spec["data_offsets"][1] for spec in tensors.values()), default=0)
        sizes = {size for spec in tensors.values() for size in spec["shape"]}
        dtypes = {name: spec["dtype"] for name, spec in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        cut_short = length <= _LONGEST_HEADER and length + 8 > num_bytes
        raise Broken(
            f"its {path.name} is {'cut short' if cut_short else 'damaged'}; {AGAIN}"
        ) from error
    if num_bytes < 8 + length + end:
        raise Broken(
            f"its {path.name} is cut short, {num_bytes} bytes of {8 + length + end}; {AGAIN}"
        )
    if not quantized:
        _check_dtypes(dtypes)
    return sizes


def _check_dtypes(dtypes: dict[str, str]) -> None:
    for name, dtype in dtypes.items():
        if dtype in _EIGHT_BITS and name.endswith("weight"):
            raise Broken(
                f"its {name} holds {dtype} numbers, and its config.json has no "
                "quantization_config to read them by"
            )
