"""InternVL3 as published."""

from pathlib import Path

import torch

from tests.support.published.parts import CHATML, chatml_words, qwen_text, turns, weights, write


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
