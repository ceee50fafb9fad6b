"""The model families: `config.model_type` to Adapter. Loading happens here."""

import difflib
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

from trimtok_cli.catalog import ALIASES
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models.base import Adapter, Inputs
from trimtok_cli.models.clip_text import ClipText
from trimtok_cli.models.gemma3 import Gemma3
from trimtok_cli.models.idefics3 import Idefics3
from trimtok_cli.models.internvl import InternVL
from trimtok_cli.models.llava import Llava
from trimtok_cli.models.llava_next import LlavaNext, LlavaOnevision
from trimtok_cli.models.qwen import Qwen2VL, Qwen3VL

ADAPTERS: dict[str, type[Adapter]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_next_video": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "internvl": InternVL,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "gemma3": Gemma3,
}

__all__ = ["ADAPTERS", "ALIASES", "Adapter", "Inputs", "load_model", "pick_device", "pick_dtype"]


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, then Apple's GPU, then the CPU. UsageError if a named device is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device: use auto, cpu, mps, cuda or cuda:N.") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= there:
        raise UsageError(f"--device {name}: this machine has {there} devices of that kind; use --device auto.")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and recordings are launched on the current device
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA (float16 before Ampere), float16 on mps, float32 on a CPU."""
    if name != "auto":
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if name not in known:
            raise UsageError(f"--dtype {name} is not known: use auto, {', '.join(known)}.")
        return known[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def load_model(
    model: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, clip_text: str | None = None
) -> Adapter:
    """An alias, a hub id or a local folder, on its device and ready to answer. ModelError with one sentence if it cannot be.

    clip_text: a CLIP checkpoint whose text tower says how relevant each patch is to the question (CDPruner asks for it).
    """
    place, kind = pick_device(device), None
    kind = pick_dtype(dtype, place)
    source = ALIASES.get(model, model)
    local = Path(source).expanduser()
    if not local.is_dir() and (local.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1):
        near = difflib.get_close_matches(model, ALIASES, 1)
        hint = f"did you mean {near[0]}?" if near else "`trimtok models` lists the short names."
        raise ModelError(f"--model {model}: no such folder, and neither a hub id (owner/name) nor a short name; {hint}")
    source = str(local) if local.is_dir() else source
    # The library's own loading bars would tear ours; it still reports what goes wrong by raising.
    transformers.utils.logging.disable_progress_bar()
    # The bare dictionary first: the library refuses a family that it does not know with a page of advice.
    family = _load(PretrainedConfig.get_config_dict, source, model, revision)[0].get("model_type")
    if family not in ADAPTERS:
        raise ModelError(f"--model {model} is of the family {family!r}; supported are {', '.join(sorted(ADAPTERS))}.")
    config = _load(AutoConfig.from_pretrained, source, model, revision)
    processor = _load(AutoProcessor.from_pretrained, source, model, revision)
    network = _load(AutoModelForImageTextToText.from_pretrained, source, model, revision, dtype=kind)
    try:
        network = network.to(place).eval()
    except torch.OutOfMemoryError:
        raise ModelError(
            f"--model {model} does not fit into the memory of {place}: use a smaller model or --device cpu."
        ) from None
    commit = getattr(config, "_commit_hash", None) or revision or ("local" if local.is_dir() else "")
    adapter = ADAPTERS[config.model_type](network, processor, name=model, revision=commit)
    adapter.clip_text = ClipText(clip_text, place) if clip_text else None
    return adapter


def _load(loader, source: str, model: str, revision: str | None, **more):
    try:
        return loader(source, revision=revision or "main", **more)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = (
            "check the folder"
            if Path(source).is_dir()
            else "check the name, --revision and the network (HF_HUB_OFFLINE, HF_TOKEN)"
        )
        raise ModelError(f"--model {model} cannot be loaded: {reason.rstrip('.')}; {hint}.") from error
