"""The settings of vLLM: those that a run makes, and those that a user may add. Imports no vLLM."""

import os
from collections.abc import Mapping
from typing import Any

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion

# Settings of vLLM that change its speed and its place alone. Others would change answers, or are
# what the loop itself hangs on.
OPEN = (
    "async_scheduling",
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "disable_custom_all_reduce",
    "distributed_executor_backend",
    "enable_chunked_prefill",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "load_format",
    "max_model_len",
    "max_num_batched_tokens",
    "num_gpu_blocks_override",
    "optimization_level",
    "pipeline_parallel_size",
    "safetensors_load_strategy",
    "tensor_parallel_size",
)

# Set unless the user's environment says otherwise, before vLLM is imported.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a step's time is then the time of its work
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one place more, whose token is never read
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output may be the answers'
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the vision tower needs the cores, too
}

# The longest prompt and answer that room is made for, where the model has more positions.
LONGEST = 32_768
# A whole prompt that goes over as one item is read in one piece.
LONGEST_ITEM = 16_384
# The share of a GPU's memory that vLLM takes: the rest is the vision tower's.
GPU_SHARE = 0.8


def check_options(given: Mapping[str, Any]) -> None:
    """Raises UsageError for settings of vLLM that a run may not have."""
    for name in given:
        if name not in OPEN:
            raise UsageError(
                f"--vllm-args {brief(name)}: it may be one of {', '.join(OPEN)}, which change no "
                f"answer{suggestion(name, OPEN)}."
            )


def prepare_environment() -> None:
    """Sets what vLLM reads of the environment when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def options_for(
    device: str,
    dtype: str,
    positions: int | None,
    *,
    whole_prompts: bool,
    batch_limit: int | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of vLLM's `LLM` beside the model's own.

    positions: those of the model. whole_prompts: whether a prompt goes over as one item, with
    positions of its own. batch_limit: None leaves vLLM's own number of answers at once.
    """
    longest = min(positions or LONGEST, LONGEST_ITEM if whole_prompts else LONGEST)
    options: dict[str, Any] = {
        "dtype": dtype,
        "enable_prefix_caching": False,
        "generation_config": "vllm",
        "max_model_len": longest + 1,  # the last token of an answer is not read
        "seed": 0,
        "disable_log_stats": True,
    }
    if batch_limit is not None:
        options["max_num_seqs"] = batch_limit
    if device == "cpu":
        options["enforce_eager"] = True
    else:
        options["gpu_memory_utilization"] = GPU_SHARE
    if whole_prompts:
        options |= {
            "enable_mm_embeds": True,
            "limit_mm_per_prompt": {"image": 0, "video": 0},
            "mm_processor_cache_gb": 0,
        }
    else:
        options |= {
            "enable_prompt_embeds": True,
            "language_model_only": True,
            "skip_tokenizer_init": True,
        }
    options |= given
    if whole_prompts:
        options.setdefault("max_num_batched_tokens", options["max_model_len"])
    return options
