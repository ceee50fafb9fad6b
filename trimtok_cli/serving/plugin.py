"""The plug-in that vLLM finds by its entry point (`vllm.general_plugins`) in each of its processes.

Imports nothing before vLLM asks for it.
"""

# The name by which vLLM knows the model, and the key of its settings in config.json.
ARCHITECTURE = "TrimtokLlava"
SETTINGS = "trimtok"


def register() -> None:
    """Tells vLLM the models that prune. They run only where a server asks for one by its name."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "trimtok_cli.serving.llava:TrimtokLlava")
