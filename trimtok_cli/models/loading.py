"""`load_model`: from a name to an Adapter on its device.

The steps are in other modules: `catalog` says what a name means, `hub` downloads, `checkpoint`
checks the folder, `folder` has transformers load each part, `fitting` makes the processor fit the
model, `weights` checks what was loaded.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils import is_accelerate_available

from trimtok_cli.bounds import check_settings
from trimtok_cli.config import RunConfig
from trimtok_cli.device import free_bytes, pick_device, pick_dtype
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.memory import host_bytes
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.broken import Broken
from trimtok_cli.models.checkpoint import OTHER_LAYOUTS, check, read_settings
from trimtok_cli.models.fitting import fit
from trimtok_cli.models.folder import Folder, find_folder, strip
from trimtok_cli.models.front import check_front, keep_front, no_layers
from trimtok_cli.models.registry import ADAPTERS
from trimtok_cli.models.vision.clip_text import ClipText
from trimtok_cli.models.weight_files import check_adapter, quantization, weight_bytes
from trimtok_cli.models.weights import check_filled, check_weights
from trimtok_cli.wording import brief

log = logging.getLogger("trimtok")


def load_model(
    model: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    clip_text: str | None = None,
    trust_remote_code: bool = False,
    front: bool = False,
) -> Adapter:
    """The adapter of a checkpoint (an alias, a hub id or a folder), on its device, ready to answer.

    clip_text: a CLIP checkpoint whose text tower says how relevant each patch is to the question,
    for CDPruner. trust_remote_code: run the checkpoint's own Python files where it has any, with
    all of the user's rights. front: without the language model's layers, for another engine.
    Raises UsageError, or ModelError with one sentence.
    """
    check_settings(
        RunConfig,
        model=model,
        device=device,
        dtype=dtype,
        revision=revision or "",
        clip_text=clip_text or "",
        trust_remote_code=trust_remote_code,
    )
    target = pick_device(device)
    weight_dtype = pick_dtype(dtype, target)
    folder, commit = find_folder(model, "--model", revision=revision, trusted=trust_remote_code)
    found = read_checkpoint(folder, model)
    base, settings, config = found.base, found.settings, found.config
    # The library reads this file again with the weights; here an error names the file.
    if "generation_config.json" in settings:
        base.load("generation_config.json", GenerationConfig.from_pretrained)
    quantized = quantization(settings["config.json"])
    num_bytes = weight_bytes(base.path, settings, weight_dtype.itemsize, layers=not front)
    load = partial(
        _network, base, dtype=weight_dtype, device=target, quantized=quantized, num_bytes=num_bytes
    )
    if front:
        check_front(base.named_by, quantized=quantized, adapted=base is not folder)
        with no_layers(config):
            network = load(config)
        network = keep_front(network, config.get_text_config().num_hidden_layers)
    else:
        network = load(config)
    if base is not folder:
        folder.load("adapter", partial(_add_adapter, network))
    adapter = ADAPTERS[config.model_type](network, found.processor, name=model, revision=commit)
    adapter.folder = base.path
    adapter.clip_text = ClipText(clip_text, target) if clip_text else None
    return adapter


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint is made of beside its weights.

    base: its folder, or that of the base model of a PEFT adapter. settings: its JSON files by name.
    """

    base: Folder
    settings: dict[str, dict[str, Any]]
    config: Any
    processor: Any


def read_checkpoint(folder: Folder, model: str) -> Checkpoint:
    """The checkpoint in a folder, checked, with a processor that fits it; no weights are loaded.

    model: its name in sentences. Raises ModelError.
    """
    # The library's progress bars would tear ours; errors still reach us as exceptions.
    transformers.utils.logging.disable_progress_bar()
    with folder.sentences():
        base = _base(folder)
        settings = read_settings(base.path)
        _check_family(settings, model)
        check(base.path, settings)
    config = base.load("config.json", AutoConfig.from_pretrained)
    strip(config)
    processor = base.load("processor", AutoProcessor.from_pretrained)
    with folder.sentences():
        fit(processor, config)
    return Checkpoint(base, settings, config, processor)


def _base(folder: Folder) -> Folder:
    """The base model of a folder with nothing but a PEFT adapter; else the folder itself."""
    settings = read_settings(folder.path)
    if "adapter_config.json" not in settings or "config.json" in settings:
        return folder
    check_adapter(settings["adapter_config.json"])
    base = str(settings["adapter_config.json"]["base_model_name_or_path"])
    try:
        base_folder, _ = find_folder(base, "its base model", trusted=folder.trusted)
    except UsageError as error:
        raise Broken(str(error).rstrip(".")) from error
    return Folder(base_folder.path, folder.named_by, trusted=folder.trusted)


def _add_adapter(network, path: str, **options) -> None:
    """Adds a PEFT adapter to a model; has the signature of `from_pretrained`."""
    network.load_adapter(path, adapter_kwargs={"local_files_only": True})
    network.eval()


def _check_family(settings: dict[str, dict], model: str) -> None:
    """Raises ModelError for a family that is not supported.

    transformers would refuse it with a page of advice.
    """
    family = settings.get("config.json", {}).get("model_type")
    if isinstance(family, str) and family not in ADAPTERS and family not in OTHER_LAYOUTS:
        raise ModelError(
            f"--model {model} is of the family {brief(family)!r}; supported are "
            f"{', '.join(sorted(ADAPTERS))}."
        )


def _network(
    folder: Folder,
    config,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantized: str,
    num_bytes: int,
) -> transformers.PreTrainedModel:
    """The model on its device, with every weight read from the folder.

    The attention is set here, because config.json may name a kernel that the library fetches from
    the hub. quantized: the method of quantization or "". Quantized weights are laid out for a
    device while they are read, and stay there. num_bytes: of all weights once they are loaded.
    """
    # Weights of an unknown quantization would be read as if they were plain numbers.
    if quantized and not any(name.startswith(quantized) for name in AUTO_QUANTIZER_MAPPING):
        version = transformers.__version__
        raise folder.error(
            f"its weights are quantized by {brief(quantized)!r}, which transformers "
            f"{version} does not know"
        )
    placement = _placement(folder, num_bytes, device, quantized)
    network, info = folder.load(
        "weights",
        AutoModelForImageTextToText.from_pretrained,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **placement,
    )
    with folder.sentences():
        check_weights(info, layers=config.get_text_config().num_hidden_layers)
        if not quantized:
            check_filled(network)
    return network.eval() if quantized or placement else folder.placed(network, device)


def _placement(
    folder: Folder, num_bytes: int, device: torch.device, quantized: str
) -> dict[str, Any]:
    """The options by which the library loads weights of `num_bytes` straight to the device.

    Without accelerate it loads them into the host's memory first. Raises ModelError, before
    anything is loaded, where the device or the host is too small.
    """
    direct = is_accelerate_available() and (bool(quantized) or device.type == "cuda")
    if device.type == "cuda" and num_bytes > free_bytes(device):
        raise ModelError(
            f"{folder.named_by} has {_gigabytes(num_bytes)} of weights, and {device} has "
            f"{_gigabytes(free_bytes(device))} free: use a smaller model or --device cpu."
        )
    room = host_bytes()
    if not direct and room is not None and num_bytes > room:
        remedy = (
            "use a smaller model or a machine with more"
            if device.type == "cpu"
            else "pip install 'trimtok[gpu]' loads them straight to the device"
        )
        raise ModelError(
            f"{folder.named_by} has {_gigabytes(num_bytes)} of weights, and this machine has "
            f"{_gigabytes(room)} of memory left: {remedy}."
        )
    if device.type == "cuda" and not direct:
        log.info(
            "the weights go through the host's memory, as accelerate is not installed; with it "
            "they load straight to the device: pip install 'trimtok[gpu]'"
        )
    return {"device_map": {"": device}} if direct else {}


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
