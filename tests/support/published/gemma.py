"""Gemma 3 as published."""

from pathlib import Path

import torch

from tests.support.published.parts import HALF, SMALL, siglip, turns, weights, words, write


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
