"""Idefics3 and SmolVLM as published."""

from pathlib import Path

import torch

from tests.support.published.parts import HALF, LLAMA3, SMALL, TOWER, turns, weights, words, write

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
