"""One folder for each short name of the catalogue, with the published checkpoint's settings.

The keys of config.json, generation_config.json and the processors' files are the published ones, in
their layout and with their odd values. Sizes are small, weights are random, and templates are our own
words with the published roles and marks.
"""

import json
from collections.abc import Callable
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
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
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
    """Files by name without ending: a dictionary becomes JSON, text a Jinja template."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, dict):
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
        else:
            (folder / f"{name}.jinja").write_text(content)


def words(
    folder: Path, special: list[str], *, kind: str, style: str, bos: str = "", **settings
) -> Roles:
    """tokenizer.json and tokenizer_config.json as transformers 4 wrote them; the ids of the special
    tokens.

    style: `bytes` (GPT-2's, as Qwen, Llama 3 and SmolLM have it, special tokens behind all others)
    or `pieces` (SentencePiece's, special tokens first). bos: the token put in front of every text.
    kind: the class that is named.
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


def llava_15(folder: Path, *, old: bool = False) -> Path:
    """LLaVA-1.5. old: as before transformers 4.46, without processor_config.json."""
    ids = llama_words(folder, ["<image>"], "LlavaProcessor")
    text = SMALL | {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": ids[""] + 5,
    }
    write(
        folder,
        config={
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": -100,
            "image_token_index": ids["<image>"],
            "model_type": "llava",
            "pad_token_id": ids["<pad>"],
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.36.0.dev0",
            "vision_config": clip(84),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": ids[""] + 5,
        }
        | ({} if old else {"image_seq_length": 36}),
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": ids["<pad>"],
        },
        preprocessor_config=clip_images(84, "CLIPImageProcessor", "LlavaProcessor"),
        chat_template={"chat_template": turns("<image>\n", **VICUNA)},
    )
    if not old:
        counts = {
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
        }
        write(
            folder,
            processor_config={"image_token": "<image>", "processor_class": "LlavaProcessor"}
            | counts,
        )
    return weights(folder, dtype=torch.float16)


LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
]


def joycaption(folder: Path) -> Path:
    """SigLIP without a class token, Llama 3.1, a reserved token for the image, several end tokens,
    a template for plain text.
    """
    mark, before, behind = (f"<|reserved_special_token_{n}|>" for n in (69, 70, 71))
    # Content is text, and the template itself puts the image into the first of the user's turns.
    template = (
        "{{ bos_token }}{% set state = namespace(seen=false) %}{% for m in messages "
        "%}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{% if m['role'] == 'user' and not state.seen %}"
        + before
        + mark
        + behind
        + "{% set state.seen = true %}{% endif %}"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt "
        "%}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    ids = words(
        folder,
        [*LLAMA3, mark, before, behind],
        kind="PreTrainedTokenizerFast",
        style="bytes",
        bos="<|begin_of_text|>",
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        padding_side="left",
        processor_class="LlavaProcessor",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
        chat_template=template,
    )
    ends = [ids[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    text = SMALL | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": ends,
        "head_dim": 16,
        "max_position_embeddings": 131072,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "torch_dtype": "bfloat16",
        "vocab_size": ids[""],
    }
    counts = {
        "num_additional_image_tokens": 0,
        "patch_size": 14,
        "vision_feature_select_strategy": "full",
    }
    write(
        folder,
        config={
            "architectures": ["LlavaForConditionalGeneration"],
            "image_seq_length": 36,
            "image_token_index": ids[mark],
            "model_type": "llava",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "torch_dtype": "bfloat16",
            "vision_config": siglip(84),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "full",
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": ids["<|begin_of_text|>"],
            "eos_token_id": ends,
        },
        preprocessor_config={
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": HALF,
            "image_std": HALF,
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "LlavaProcessor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 84, "width": 84},
        },
        processor_config={"image_token": mark, "processor_class": "LlavaProcessor"} | counts,
    )
    return weights(folder, dtype=torch.bfloat16)


PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def next_parts(folder: Path, ids: Roles, text: dict, kind: str, processor: str, **more) -> None:
    write(
        folder,
        config={
            "architectures": [f"{kind}ForConditionalGeneration"],
            "ignore_index": -100,
            "image_grid_pinpoints": PINPOINTS,
            "image_token_index": ids["<image>"],
            "projector_hidden_act": "gelu",
            "text_config": SMALL | text,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_image_newline_parameter": True,
            "vision_config": clip(56),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": ids[""],
        }
        | more,
        preprocessor_config=clip_images(
            56,
            "LlavaNextImageProcessor",
            processor,
            aspect_ratio_setting="anyres",
            image_grid_pinpoints=PINPOINTS,
            do_pad=True,
        ),
        processor_config={
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": processor,
            "vision_feature_select_strategy": "default",
        }
        | ({"video_token": "<video>"} if "<video>" in ids else {}),
    )


def llava_16(folder: Path, *, mistral: bool = False) -> Path:
    ids = llama_words(folder, ["<image>"], "LlavaNextProcessor")
    text = {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "vocab_size": ids[""],
    }
    style = VICUNA
    if mistral:
        text |= {
            "model_type": "mistral",
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        }
        style = {
            "system": "<<SYS>>\n@\n<</SYS>>\n\n",
            "user": "[INST] @ [/INST]",
            "assistant": " @</s>",
            "ask": "",
            "first": True,
        }
    next_parts(
        folder,
        ids,
        text,
        "LlavaNext",
        "LlavaNextProcessor",
        model_type="llava_next",
        image_seq_length=16,
    )
    write(
        folder,
        chat_template={"chat_template": turns("<image>\n", **style)},
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": ids["<pad>"] if mistral else 0,
        },
    )
    return weights(folder, dtype=torch.float16)


def llava_next_video(folder: Path) -> Path:
    """The video's mark stands before the image's; one processor's file for both."""
    ids = llama_words(folder, ["<video>", "<image>"], "LlavaNextVideoProcessor")
    text = {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "vocab_size": ids[""],
    }
    next_parts(
        folder,
        ids,
        text,
        "LlavaNextVideo",
        "LlavaNextVideoProcessor",
        model_type="llava_next_video",
        video_token_index=ids["<video>"],
        spatial_pool_mode="average",
        spatial_pool_stride=2,
        video_seq_length=4,
        image_seq_length=16,
    )
    write(
        folder,
        chat_template={"chat_template": turns("<image>\n", "<video>\n", **VICUNA)},
        video_preprocessor_config=clip_images(
            56, "LlavaNextVideoImageProcessor", "LlavaNextVideoProcessor"
        ),
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    )
    return weights(folder, dtype=torch.float16)


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


def onevision(folder: Path, *, tied: bool) -> Path:
    """Of 0.5B the text_config alone says that the head is tied."""
    ids = chatml_words(folder, ["<image>", "<video>"], "LlavaOnevisionProcessor")
    pinpoints = [[56 * rows, 56 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    text = qwen_text(
        ids,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        max_window_layers=24,
        sliding_window=131072,
        use_sliding_window=False,
        tie_word_embeddings=tied,
    )
    images = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 56, "width": 56},
    }
    write(
        folder,
        config={
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "ignore_index": -100,
            "image_grid_pinpoints": pinpoints,
            "image_token_index": ids["<image>"],
            "model_type": "llava_onevision",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_image_newline_parameter": True,
            "video_token_index": ids["<video>"],
            "vision_aspect_ratio": "anyres_max_9",
            "vision_config": siglip(56, vision_use_head=False),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        preprocessor_config=images
        | {
            "image_grid_pinpoints": pinpoints,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "do_pad": True,
        },
        video_preprocessor_config=images | {"image_processor_type": "LlavaOnevisionVideoProcessor"},
        processor_config={
            "image_token": "<image>",
            "num_image_tokens": 16,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_feature_select_strategy": "full",
        },
        chat_template={"chat_template": turns("<image>\n", "<video>\n", **CHATML, first=True)},
    )
    return weights(folder, dtype=torch.float16)


QWEN_MARKS = [
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}"
)
QWEN_SEEN = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)


def qwen_ends(ids: Roles, **more) -> dict:
    ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": ends,
    } | more


def qwen2(folder: Path, family: str, *, tied: bool) -> Path:
    """Qwen2-VL and 2.5: the text model's settings stand flat in config.json, and one file is for
    images and videos.
    """
    newer = family == "qwen2_5_vl"
    name = "Qwen2_5_VL" if newer else "Qwen2VL"
    template = turns(*QWEN_SEEN, **CHATML, head=QWEN_SYSTEM)
    ids = chatml_words(folder, QWEN_MARKS, f"{name}Processor", chat_template=template)
    vision = {
        "depth": 4,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "num_heads": 4,
    }
    if newer:
        vision |= {
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        }
    else:
        vision |= {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    write(
        folder,
        config=qwen_text(
            ids,
            architectures=[f"{name}ForConditionalGeneration"],
            model_type=family,
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            vision_token_id=ids["<|vision_pad|>"],
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            max_window_layers=28,
            sliding_window=32768,
            use_sliding_window=False,
            tie_word_embeddings=tied,
            torch_dtype="bfloat16",
            vision_config=vision,
            rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        ),
        generation_config=qwen_ends(ids, repetition_penalty=1.05, temperature=0.000001)
        if newer
        else qwen_ends(ids, repetition_penalty=1.0, temperature=0.01, top_p=0.001, top_k=1),
        preprocessor_config={
            "min_pixels": 3136,
            "max_pixels": 40 * 784,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": f"{name}Processor",
        },
        chat_template={"chat_template": template},
    )
    return weights(folder, dtype=torch.bfloat16)


def qwen3(folder: Path, *, tied: bool) -> Path:
    """A video processor's file of its own, a fast image processor's name, three tower layers that
    feed the decoder.
    """
    template = turns(*QWEN_SEEN, **CHATML)
    ids = chatml_words(folder, QWEN_MARKS, "Qwen3VLProcessor", chat_template=template)
    text = qwen_text(
        ids,
        attention_bias=False,
        head_dim=16,
        model_type="qwen3_vl_text",
        max_position_embeddings=262144,
        rope_theta=5000000,
        rope_scaling={
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
            "rope_type": "default",
        },
        tie_word_embeddings=tied,
        dtype="bfloat16",
    )
    vision = {
        "deepstack_visual_indexes": [0, 1, 2],
        "depth": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "model_type": "qwen3_vl",
        "num_heads": 4,
        "num_position_embeddings": 36,
        "out_hidden_size": 64,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    sizes = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": HALF,
        "image_std": HALF,
    }
    write(
        folder,
        config={
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "image_token_id": ids["<|image_pad|>"],
            "model_type": "qwen3_vl",
            "text_config": text,
            "tie_word_embeddings": tied,
            "video_token_id": ids["<|video_pad|>"],
            "vision_config": vision,
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        },
        generation_config=qwen_ends(
            ids, top_k=20, top_p=0.8, repetition_penalty=1.0, temperature=0.7
        ),
        preprocessor_config=sizes
        | {
            "size": {"longest_edge": 40 * 1024, "shortest_edge": 4 * 1024},
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        video_preprocessor_config=sizes
        | {
            "size": {"longest_edge": 160 * 1024, "shortest_edge": 4 * 1024},
            "processor_class": "Qwen3VLProcessor",
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        chat_template={"chat_template": template},
    )
    return weights(folder, dtype=torch.bfloat16)


def internvl3(folder: Path) -> Path:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    ids = chatml_words(
        folder,
        [*named.values(), "<quad>", "<ref>", "<box>"],
        "InternVLProcessor",
        extra_special_tokens=named,
        **named,
    )
    text = qwen_text(
        ids,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        max_window_layers=70,
        sliding_window=None,
        use_sliding_window=False,
        rope_scaling={"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        tie_word_embeddings=False,
    )
    vision = {
        "architectures": ["InternVisionModel"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 32,
        "image_size": [84, 84],
        "initializer_factor": 0.1,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 3,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    }
    images = {
        "crop_to_patches": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 4,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": 84, "width": 84},
    }
    write(
        folder,
        config={
            "architectures": ["InternVLForConditionalGeneration"],
            "downsample_ratio": 0.5,
            "image_seq_length": 9,
            "image_token_id": ids["<IMG_CONTEXT>"],
            "model_type": "internvl",
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vision_config": vision,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        preprocessor_config=images | {"image_processor_type": "GotOcr2ImageProcessorFast"},
        video_preprocessor_config=images
        | {"crop_to_patches": False, "video_processor_type": "InternVLVideoProcessor"},
        processor_config={"image_seq_length": 9, "processor_class": "InternVLProcessor"},
        chat_template=turns("<IMG_CONTEXT>\n", "<video>\n", **CHATML),
    )
    return weights(folder, dtype=torch.bfloat16)


TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
IDEFICS = {
    "system": "System: @<end_of_utterance>\n",
    "user": "User:@<end_of_utterance>\n",
    "assistant": "Assistant: @<end_of_utterance>\n",
    "ask": "Assistant:",
}


def idefics(folder: Path, *, processor: str, family: str, scale: int, videos: bool = False) -> Path:
    """Idefics3 (Llama 3), SmolVLM (an `idefics3` as well) and SmolVLM2; leftovers of training stand
    in their text_config.
    """
    llama = family == "idefics3" and scale == 2
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *TILES]
    if llama:
        begin, end, pad = "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"
        special = [*LLAMA3, pad, *marks]
    else:
        begin, end, pad = "<|im_start|>", "<end_of_utterance>", "<|im_end|>"
        special = ["<|endoftext|>", begin, pad, *marks, *(["<video>"] if videos else [])]
    ids = words(
        folder,
        special,
        kind="PreTrainedTokenizerFast" if llama else "GPT2Tokenizer",
        style="bytes",
        bos=begin if llama else "",
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        unk_token=None if llama else "<|endoftext|>",
        processor_class=f"{processor}Processor",
        additional_special_tokens=marks[:3],
        model_max_length=16384,
        truncation_side="left",
    )
    side = 14 * 3 * scale
    text = SMALL | {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "bos_token_id": ids[begin],
        "eos_token_id": ids[end],
        "head_dim": 16,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "pad_token_id": ids[pad],
        "perceiver_config": {"hidden_act": "silu", "model_type": "vllama3", "resampler_depth": 6},
        "pixel_shuffle_factor": scale,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_theta": 273768.0,
        "torch_dtype": "bfloat16",
        "use_resampler": False,
        "vocab_size": ids[""],
    }
    vision = TOWER | {
        "image_size": side,
        "max_image_size": {"longest_edge": side},
        "model_type": "smolvlm_vision" if videos else "idefics3",
        "size": {"longest_edge": 4 * side},
        "torch_dtype": "bfloat16",
        "use_base_siglip": False,
    }
    images = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": f"{processor}ImageProcessor",
        "image_std": HALF,
        "max_image_size": {"longest_edge": side},
        "processor_class": f"{processor}Processor",
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 2 * side},
    }
    if videos:
        images["video_sampling"] = {
            "fps": 1,
            "max_frames": 64,
            "video_size": {"longest_edge": side},
        }
    write(
        folder,
        config={
            "architectures": [f"{processor}ForConditionalGeneration"],
            "image_seq_len": 9,
            "image_token_id": ids["<image>"],
            "model_type": family,
            "pad_token_id": 128002,
            "scale_factor": scale,
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vision_config": vision,
            "vocab_size": ids[""],
        },
        generation_config={
            "_from_model_config": True,
            "bos_token_id": ids[begin],
            "eos_token_id": ids["<end_of_utterance>"],
            "pad_token_id": ids[pad],
        },
        preprocessor_config=images,
        processor_config={"image_seq_len": 9, "processor_class": f"{processor}Processor"},
        chat_template={"chat_template": turns("<image>", "<video>", **IDEFICS, head=begin)},
    )
    return weights(folder, dtype=torch.bfloat16)


def gemma3(folder: Path) -> Path:
    """Sizes that are the class's own are left out of text_config; sampling and a kind of cache
    stand in generation_config.json.
    """
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    ids = words(
        folder,
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *named.values()],
        kind="GemmaTokenizer",
        style="pieces",
        bos="<bos>",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
        processor_class="Gemma3Processor",
        sp_model_kwargs=None,
        spaces_between_special_tokens=False,
        use_default_system_prompt=False,
        extra_special_tokens=named,
        **named,
    )
    ends = [ids["<eos>"], ids["<end_of_turn>"]]
    text = SMALL | {
        "head_dim": 16,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "vocab_size": ids[""],
        "query_pre_attn_scalar": 16,
    }
    style = {
        "system": "",
        "user": "<start_of_turn>user\n@<end_of_turn>\n",
        "assistant": "<start_of_turn>model\n@<end_of_turn>\n",
        "ask": "<start_of_turn>model\n",
        "head": "{{ bos_token }}",
    }
    write(
        folder,
        config={
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": ids["<start_of_image>"],
            "eoi_token_index": ids["<end_of_image>"],
            "eos_token_id": ends,
            "image_token_index": ids["<image_soft_token>"],
            "initializer_range": 0.02,
            "mm_tokens_per_image": 9,
            "model_type": "gemma3",
            "text_config": text,
            "torch_dtype": "bfloat16",
            "vision_config": siglip(84, vision_use_head=False),
        },
        generation_config={
            "bos_token_id": ids["<bos>"],
            "cache_implementation": "hybrid",
            "do_sample": True,
            "eos_token_id": ends,
            "pad_token_id": ids["<pad>"],
            "top_k": 64,
            "top_p": 0.95,
        },
        preprocessor_config={
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": HALF,
            "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": 9,
            "image_std": HALF,
            "pan_and_scan_max_num_crops": None,
            "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None,
            "processor_class": "Gemma3Processor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 84, "width": 84},
        },
        processor_config={"image_seq_length": 9, "processor_class": "Gemma3Processor"},
        chat_template={"chat_template": turns("<start_of_image>", **style)},
    )
    return weights(folder, dtype=torch.bfloat16)


PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "llava-1.5-7b": llava_15,
    "llava-1.5-13b": lambda folder: llava_15(folder, old=True),
    "joycaption-beta-one": joycaption,
    "llava-next-7b": llava_16,
    "llava-next-13b": llava_16,
    "llava-next-mistral-7b": lambda folder: llava_16(folder, mistral=True),
    "llava-next-video-7b": llava_next_video,
    "llava-onevision-0.5b": lambda folder: onevision(folder, tied=True),
    "llava-onevision-7b": lambda folder: onevision(folder, tied=False),
    "qwen2-vl-2b": lambda folder: qwen2(folder, "qwen2_vl", tied=True),
    "qwen2-vl-7b": lambda folder: qwen2(folder, "qwen2_vl", tied=False),
    "qwen2.5-vl-3b": lambda folder: qwen2(folder, "qwen2_5_vl", tied=True),
    "qwen2.5-vl-7b": lambda folder: qwen2(folder, "qwen2_5_vl", tied=False),
    "qwen3-vl-2b": lambda folder: qwen3(folder, tied=True),
    "qwen3-vl-4b": lambda folder: qwen3(folder, tied=True),
    "qwen3-vl-8b": lambda folder: qwen3(folder, tied=False),
    "internvl3-1b": internvl3,
    "internvl3-8b": internvl3,
    "idefics3-8b": lambda folder: idefics(folder, processor="Idefics3", family="idefics3", scale=2),
    "smolvlm-2.2b": lambda folder: idefics(
        folder, processor="Idefics3", family="idefics3", scale=3
    ),
    "smolvlm2-500m": lambda folder: idefics(
        folder, processor="SmolVLM", family="smolvlm", scale=4, videos=True
    ),
    "smolvlm2-2.2b": lambda folder: idefics(
        folder, processor="SmolVLM", family="smolvlm", scale=3, videos=True
    ),
    "gemma-3-4b": gemma3,
    "gemma-3-12b": gemma3,
}
