"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL as published."""

from pathlib import Path

import torch

from tests.support.published.parts import (
    CHATML,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    Roles,
    chatml_words,
    qwen_text,
    turns,
    weights,
    write,
)

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
