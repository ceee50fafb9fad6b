"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision as published."""

from pathlib import Path

import torch

from tests.support.published.parts import (
    CHATML,
    HALF,
    SMALL,
    VICUNA,
    Roles,
    chatml_words,
    clip,
    clip_images,
    llama_words,
    qwen_text,
    siglip,
    turns,
    weights,
    write,
)

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
