"""The parts of other libraries that trimtok relies on beyond their documented calls, and why.

This is the first place to look when a release moves something. tests/oracles/test_leaned_on.py
looks for every name in the installed versions, and fails where the package imports anything from
transformers' inner modules that is not listed here. The lower bounds in pyproject.toml follow from
this table and from the tests on the oldest versions.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple


class Leaned(NamedTuple):
    """One such part.

    name: `module:attribute`. why: the use that trimtok makes of it. since: the first version that
    has it; "" where all allowed versions do.
    """

    name: str
    why: str
    since: str = ""


LEANED_ON = (
    Leaned(
        "transformers:LlamaModel.forward",
        "its cache argument is `cache`, before it was `past_key_values`, which 5.40 will "
        "refuse: `cache_argument` below",
        "transformers 5.24",
    ),
    Leaned(
        "transformers.cache_utils:CacheLayerMixin.get_max_length",
        "asked of one layer's KV slots; older models ask `get_max_cache_shape`, so "
        "kv_slots.py answers both",
        "transformers 5.20",
    ),
    Leaned(
        "transformers.cache_utils:Cache",
        "the KV slots are a subclass of the library's cache, made of layers (kv_slots.py)",
    ),
    Leaned(
        "transformers.cache_utils:DynamicCache",
        "the plain loop's cache; it takes its windows from the decoder's config",
    ),
    Leaned(
        "transformers.modeling_outputs:BaseModelOutputWithPooling",
        "the output of a tower that ends early (vision/tower_run.py)",
    ),
    Leaned(
        "transformers.modeling_outputs:CausalLMOutputWithPast",
        "what `generate` gets from a pruned model (engine/own_loop.py)",
    ),
    Leaned(
        "transformers:GenerationMixin._expand_inputs_for_generation",
        "`generate` repeats prompts for beams and samples; a pruned model's images stay single "
        "(engine/own_loop.py)",
    ),
    Leaned(
        "transformers:GenerationMixin.generate",
        "it encodes images itself where the forward pass has the argument `mm_encoder_outputs`; a "
        "pruned model's has not (engine/own_loop.py)",
        "transformers 5.18",
    ),
    Leaned(
        "transformers.image_processing_utils:select_best_resolution",
        "LLaVA-NeXT's resolution is the library's choice (families/llava_next.py)",
    ),
    Leaned(
        "transformers.image_processing_backends:TorchvisionBackend.rescale_and_normalize",
        "bytes become floats on the device (pixels.py); a processor without it (Pillow's "
        "backend) makes its own floats",
    ),
    Leaned(
        "transformers:GenerationMixin._get_logits_processor",
        "`generate`'s own processors, a set an answer (rules.py)",
    ),
    Leaned(
        "transformers:GenerationMixin._prepare_generation_config",
        "the checkpoint's word over the defaults (rules.py)",
    ),
    Leaned(
        "transformers:GenerationMixin._get_stopping_criteria",
        "stop strings and what else ends an answer (rules.py)",
    ),
    Leaned(
        "transformers:GenerationMixin._prepare_special_tokens",
        "end tokens as tensors, which the processors read (rules.py)",
    ),
    Leaned(
        "transformers.generation:GenerationMode",
        "searches that cannot be had token by token are refused by name (rules.py)",
    ),
    Leaned(
        "transformers.quantizers.auto:AUTO_QUANTIZER_MAPPING",
        "quantized weights of an unknown kind are refused",
    ),
    Leaned(
        "transformers.utils:is_accelerate_available",
        "quantized weights are laid out for a device where accelerate is there",
    ),
    Leaned(
        "transformers:ProcessorMixin.__call__",
        "`return_text_replacement_offsets`: where placeholders were repeated (preprocessor.py)",
    ),
    Leaned(
        "transformers:AttentionInterface.register",
        "queries and keys are recorded where a module would attend (attention.py); steps attend "
        "over KV slots, given a tensor of four axes in place of a mask, which the library hands on "
        "as it is (slot_attention.py)",
    ),
    Leaned(
        "torch.nn.attention.varlen:varlen_attn",
        "steps attend to the places in use where it has `seqused_k`, else under masks "
        "(slot_attention.py)",
        "torch 2.14",
    ),
    Leaned(
        "transformers.vision_utils:get_vision_cu_seqlens",
        "what Qwen's towers compute from their grids, and take ready-made: `cu_seqlens`, "
        "`position_ids`, `window_index` and their like (vision/packed_tower.py)",
    ),
    Leaned("transformers.vision_utils:get_vision_position_ids", "as above"),
    Leaned("transformers.vision_utils:get_vision_window_index", "as above, Qwen2.5-VL"),
    Leaned(
        "transformers.vision_utils:get_vision_interpolation_indices_and_weights",
        "as above, Qwen3-VL",
    ),
    Leaned(
        "transformers.utils.generic:is_flash_attention_requested",
        "attention functions with `flash` in their name get all segments in one call "
        "(vision/packed_tower.py)",
    ),
    Leaned(
        "torch.nn.attention.varlen:varlen_attn",
        "segments of any length in one kernel; its first seven arguments alone are the same in all "
        "versions (vision/packed_tower.py)",
        "torch 2.10",
    ),
    Leaned(
        "transformers:PretrainedConfig.get_config_dict",
        "the family's name, before the library refuses an unknown one",
    ),
    Leaned(
        "transformers:PreTrainedModel.get_decoder",
        "the language model: layers, their `self_attn`, config, `rotary_emb`",
    ),
    Leaned("transformers:Qwen2VLModel.get_rope_index", "3-D positions of the dense prompt"),
    Leaned(
        "transformers:InternVLVisionModel",
        "its encoder's layers are called `layer`, and each attends in `attention`",
    ),
    Leaned(
        "torchvision:__version__",
        "scales tensors by Lanczos; before it the library takes Pillow's backend for "
        "Idefics3 and SmolVLM",
        "torchvision 0.27",
    ),
    Leaned(
        "torch:ops.mkldnn._linear_pointwise",
        "products of float32 on a CPU, else the library's own (onednn.py)",
    ),
    Leaned(
        "torch.cuda:set_sync_debug_mode",
        "a step that waits is found out before it is recorded (cuda_graphs.py)",
    ),
    Leaned(
        "torch.backends.cuda:matmul",
        "full float32 in the searches: `fp32_precision`, before it `allow_tf32`",
        "torch 2.9",
    ),
    Leaned(
        "PIL.Image:OPEN",
        "formats that this Pillow can open, an allow-list is cut to them (media/images.py)",
    ),
    Leaned(
        "PIL.Image:MAX_IMAGE_PIXELS",
        "one global number, set and put back around opening a file (media/images.py)",
    ),
    Leaned(
        "PIL.Image:core.__file__",
        "libtiff's message handler is in the library that Pillow loaded (images.py)",
    ),
)


def cache_argument(forward: Callable) -> str:
    """The name of a forward pass's argument for its KV cache."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
