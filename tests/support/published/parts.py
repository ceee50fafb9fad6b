"""Parts that the folders of several families share: tokenizers, weights, templates, settings."""

import json
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import AutoConfig, AutoModelForImageTextToText

Roles = dict[str, int]


CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]

# Sizes of every language model and vision tower.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "patch_size": 14,
}


def write(folder: Path, **files: dict | str) -> None:
    """Writes files by their names without ending: a dictionary as JSON, text as a Jinja template."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
        else:
            (folder / f"{name}.jinja").write_text(content)


def words(
    folder: Path, special: list[str], *, kind: str, style: str, bos: str = "", **settings
) -> Roles:
    """Writes a tokenizer's files as transformers 4 did; returns the ids of its special tokens.

    kind: the class that the files name. style: `bytes` (GPT-2's, as Qwen, Llama 3 and SmolLM have
    it, special tokens last) or `pieces` (SentencePiece's, special tokens first). bos: the token in
    front of every text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁", *map(chr, range(33, 127))]
    order = [*alphabet, *special] if style == "bytes" else [*special, *pieces]
    vocabulary = {piece: number for number, piece in enumerate(order)}
    if style == "bytes":
        core = Tokenizer(models.BPE(vocabulary, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(
            models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    core.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in special]
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    token = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    added = {str(vocabulary[piece]): {"content": piece} | token for piece in special}
    write(
        folder,
        tokenizer_config={
            "added_tokens_decoder": added,
            "tokenizer_class": kind,
            "clean_up_tokenization_spaces": False,
        }
        | settings,
    )
    return {piece: vocabulary[piece] for piece in special} | {"": len(order)}


def weights(folder: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Path:
    """Random weights of the folder's own config.json, under the names that published files have."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(
                    0, 0.15 if "embed_tokens" in name else parameter[0].numel() ** -0.5
                )
    saved = folder / "saved"
    model.to(dtype).save_pretrained(saved)
    (saved / "model.safetensors").rename(folder / "model.safetensors")
    for path in saved.iterdir():
        path.unlink()
    saved.rmdir()
    return folder


def turns(
    image: str,
    video: str = "",
    *,
    system: str,
    user: str,
    assistant: str,
    ask: str,
    head: str = "",
    first: bool = False,
) -> str:
    """A template; `@` is a turn's content. first: images are written before words, whatever their
    order, as LLaVA's do.
    """
    one = (
        "{% if c['type'] == 'image' %}"
        + image
        + "{% elif c['type'] == 'video' %}"
        + video
        + "{% endif %}"
    )
    text = "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    each = "{% for c in m['content'] %}"
    content = (
        f"{each}{one}{{% endfor %}}{each}{text}{{% endfor %}}"
        if first
        else f"{each}{one}{text}{{% endfor %}}"
    )
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + content + "{% endif %}"
    )
    system, user, assistant = (turn.replace("@", content) for turn in (system, user, assistant))
    return (
        head
        + "{% for m in messages %}{% if m['role'] == 'system' %}"
        + system
        + "{% elif m['role'] == 'user' %}"
        + user
        + "{% else %}"
        + assistant
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + ask
        + "{% endif %}"
    )


VICUNA = {
    "system": "@ ",
    "user": "USER: @ ",
    "assistant": "ASSISTANT: @ ",
    "ask": "ASSISTANT:",
    "first": True,
}


CHATML = {
    "system": "<|im_start|>system\n@<|im_end|>\n",
    "user": "<|im_start|>user\n@<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n@<|im_end|>\n",
    "ask": "<|im_start|>assistant\n",
}


LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]


def clip(side: int) -> dict:
    return TOWER | {
        "image_size": side,
        "model_type": "clip_vision_model",
        "projection_dim": 32,
        "vocab_size": 32000,
    }


def siglip(side: int, **more) -> dict:
    return TOWER | {"image_size": side, "model_type": "siglip_vision_model"} | more


def clip_images(side: int, kind: str, processor: str, **more) -> dict:
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": kind,
        "image_std": CLIP_STD,
        "processor_class": processor,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    } | more


def llama_words(folder: Path, marks: list[str], processor: str, **more) -> Roles:
    special = ["<unk>", "<s>", "</s>", *marks, "<pad>"]
    return words(
        folder,
        special,
        kind="LlamaTokenizer",
        style="pieces",
        bos="<s>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        add_bos_token=True,
        add_eos_token=False,
        legacy=False,
        padding_side="left",
        processor_class=processor,
        extra_special_tokens={"image_token": "<image>"},
        image_token="<image>",
        **more,
    )


def chatml_words(
    folder: Path, marks: list[str], processor: str, *, kind: str = "Qwen2Tokenizer", **more
) -> Roles:
    return words(
        folder,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks],
        kind=kind,
        style="bytes",
        add_prefix_space=False,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        errors="replace",
        padding_side="left",
        split_special_tokens=False,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *marks],
        processor_class=processor,
        **more,
    )


def qwen_text(ids: Roles, **more) -> dict:
    return (
        SMALL
        | {
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "use_cache": True,
            "vocab_size": ids[""] + 3,
        }
        | more
    )
