"""What vLLM is told of trimtok when it starts, by the entry point group `vllm.general_plugins`.

Registers models that read a whole prompt as rows with positions of their own. They run only where
a run asks for them by name.
"""

# The classes whose prompts are rows with plain positions, as far as they were tried: of their
# checkpoints vLLM then loads the language model alone.
PLAIN_PROMPTS = (
    "InternVLForConditionalGeneration",
    "LlavaForConditionalGeneration",
)

# A family's own class in vLLM, and the one that reads whole prompts.
WHOLE_PROMPTS = {
    "Qwen2VLForConditionalGeneration": "TrimtokQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "TrimtokQwen2_5_VL",
}


def register() -> None:
    """Called in every process of vLLM; imports no model."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in WHOLE_PROMPTS.values():
        if name not in known:
            ModelRegistry.register_model(name, f"trimtok_cli.on_vllm.whole_prompts:{name}")
