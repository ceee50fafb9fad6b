"""LLaVA-1.5 and JoyCaption as published."""

from pathlib import Path

import torch

from tests.support.published.parts import (
    HALF,
    LLAMA3,
    SMALL,
    VICUNA,
    clip,
    clip_images,
    llama_words,
    siglip,
    turns,
    weights,
    words,
    write,
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
