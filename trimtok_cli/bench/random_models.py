"""Models of any size with random weights, from a description of their architecture. No network.

Their time and memory are true, their answers mean nothing. The library's own initialisation draws
the weights, on the device and in the dtype in which they are used. The tokenizer has a token for
every printable character and the family's own special tokens; the image processor has the settings
of the family's real checkpoints. Knows no benchmark.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from trimtok_cli.device import pick_device, pick_dtype
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.registry import ADAPTERS


def random_model(
    name: str,
    described: Mapping[str, Any],
    *,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
) -> Adapter:
    """The model of a description: `model_type`, `text_config`, `vision_config` and further keys.

    The same seed gives the same weights on the same device. Raises UsageError for a description
    that no family understands, ModelError where the model does not fit into memory.
    """
    target = pick_device(device)
    weight_dtype = pick_dtype(dtype, target)
    config, processor = describe(name, described)
    devices = [target] if target.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.device(target):
            torch.manual_seed(seed)
            network = hf.AutoModelForImageTextToText.from_config(config, dtype=weight_dtype)
            network = network.eval().requires_grad_(False)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{name} does not fit into the memory of {target}: use a smaller model or --device cpu."
        ) from None
    return _adapter(name, network, processor)


def shape_model(
    name: str, described: Mapping[str, Any], *, dtype: torch.dtype = torch.bfloat16
) -> Adapter:
    """The model of a description on a device that is not there (see `pretend_cuda`).

    Raises UsageError for a description that no family understands.
    """
    config, processor = describe(name, described)
    with torch.device("cuda"):
        network = hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    return _adapter(name, network.eval().requires_grad_(False), processor)


def _adapter(name: str, network: Any, processor: Any) -> Adapter:
    tokenizer = processor.tokenizer
    network.generation_config = hf.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return ADAPTERS[network.config.model_type](network, processor, name=name, revision="random")


def describe(name: str, described: Mapping[str, Any]) -> tuple[hf.PretrainedConfig, Any]:
    """(configuration, processor) of a description, without building the model.

    Raises UsageError for a description that no family understands.
    """
    family = described.get("model_type")
    if family not in _PROCESSORS:
        raise UsageError(
            f"{name}: model_type must be one of {', '.join(_PROCESSORS)}, got {family!r}."
        )
    given = deepcopy(dict(described))  # the configuration keeps what it is given
    tokenizer, special = _tokenizer(_QWEN if "qwen" in family else _VICUNA)
    try:
        config = hf.AutoConfig.for_model(**given, **special)
        processor = _PROCESSORS[family](config, tokenizer)
    except Exception as error:  # the library raises errors of any type at a wrong value
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UsageError(f"{name} describes no {family} model: {reason}.") from None
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise UsageError(
            f"{name}: vocab_size must be at least {len(tokenizer)}, the size of the built-in "
            "tokenizer."
        )
    return config, processor


_VICUNA = {
    "ends": ("<pad>", "<s>", "</s>"),
    "named": {"image_token": "<image>", "video_token": "<video>"},
    "ids": {"image_token_index": "<image>"},
    "bos": True,
}

_QWEN = {
    "ends": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "named": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "ids": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "bos": False,
}


def _tokenizer(style: Mapping[str, Any]) -> tuple[hf.PreTrainedTokenizerFast, dict[str, int]]:
    """A tokenizer with a token for every printable character, and the special tokens' ids.

    The ids are under the configuration's names for them.
    """
    ends = style["ends"]
    special = [*ends, "<unk>", *style["named"].values()]
    vocabulary = {
        piece: number for number, piece in enumerate([*special, "\n", *map(chr, range(32, 127))])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in special]
    )
    if style["bos"]:
        core.post_processor = processors.TemplateProcessing(
            single=f"{ends[1]} $A", special_tokens=[(ends[1], 1)]
        )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=ends[0],
        bos_token=ends[1],
        eos_token=ends[2],
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=style["named"],
    )
    return tokenizer, {name: vocabulary[piece] for name, piece in style["ids"].items()}


def _template(image: str, video: str, *, system: str, user: str, ask: str) -> str:
    """A chat template with images in their places; `@` in a turn stands for its content."""
    content = (
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% elif c['type'] == 'video' %}"
        + video
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    )
    return (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        + system.replace("@", content)
        + "{% else %}"
        + user.replace("@", content)
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + ask
        + "{% endif %}"
    )


def _llava(config: hf.PretrainedConfig, tokenizer) -> hf.LlavaProcessor:
    side = config.vision_config.image_size
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return hf.LlavaProcessor(images, tokenizer, **_llava_settings(config))


def _llava_next(config: hf.PretrainedConfig, tokenizer) -> hf.LlavaNextProcessor:
    side = config.vision_config.image_size
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    return hf.LlavaNextProcessor(images, tokenizer, **_llava_settings(config))


def _llava_settings(config: hf.PretrainedConfig) -> dict[str, Any]:
    """Settings that both LLaVA processors share. CLIP's CLS token is no visual token."""
    chat = _template("<image>\n", "<video>\n", system="@ ", user="USER: @ ", ask="ASSISTANT:")
    return {
        "patch_size": config.vision_config.patch_size,
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "chat_template": chat,
    }


def _qwen2_vl(config: hf.PretrainedConfig, tokenizer) -> hf.Qwen2VLProcessor:
    """Images from 4 to 16,384 visual tokens, as the checkpoints allow."""
    vision = config.vision_config
    sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    images = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": 4 * token, "longest_edge": 16384 * token}, **sizes
    )
    template = _template(
        "<|vision_start|><|image_pad|><|vision_end|>",
        "<|vision_start|><|video_pad|><|vision_end|>",
        system="<|im_start|>system\n@<|im_end|>\n",
        user="<|im_start|>user\n@<|im_end|>\n",
        ask="<|im_start|>assistant\n",
    )
    return hf.Qwen2VLProcessor(
        images, tokenizer, hf.Qwen2VLVideoProcessor(**sizes), chat_template=template
    )


_PROCESSORS: dict[str, Callable] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
}
