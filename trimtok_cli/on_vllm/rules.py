"""A run's generation settings as vLLM's sampling parameters. Imports no vLLM.

The settings of the checkpoint are law here, too: what vLLM computes as `generate` does is handed
over, and anything else is refused before the run.
"""

from typing import Any

from trimtok_cli.errors import ModelError
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.seeds import mixed_seed
from trimtok_cli.tokens import Prompt

COOLEST = 0.01  # vLLM takes lower temperatures for this one

# The logits processors that vLLM has as `generate` has them, in the same order.
SAME = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper")


def check_rules(rules: Rules) -> None:
    """Raises ModelError for generation settings that vLLM does not follow as `generate` does."""
    others = [name for name in rules.processor_names if name not in SAME]
    others += [type(each).__name__ for each in rules.criteria]
    if others:
        raise ModelError(
            f"--engine vllm cannot follow {', '.join(others)}, which the settings of {rules.name} "
            "or yours ask for, as trimtok's own loop does: leave out --repetition-penalty, or use "
            "--engine local."
        )
    if rules.samples and not rules.config.temperature >= COOLEST:
        raise ModelError(
            f"--engine vllm samples at a temperature of {COOLEST} or more, and this one is "
            f"{rules.config.temperature:g}: use --greedy, or --engine local."
        )


def sampling_of(rules: Rules, prompt: Prompt) -> dict[str, Any]:
    """The arguments of vLLM's SamplingParams for the answer to a prompt.

    The score of the chosen token is asked for: where it is no number, the model made none.
    """
    asked: dict[str, Any] = {
        "max_tokens": rules.limit(prompt),
        "stop_token_ids": sorted(rules.ends),
        "ignore_eos": True,  # the run's own end tokens are the ones above
        "detokenize": False,
        "skip_special_tokens": False,
        "logprobs": 0,
    }
    if not rules.samples:
        return asked | {"temperature": 0.0}
    config, names = rules.config, rules.processor_names
    return asked | {
        "temperature": config.temperature if SAME[0] in names else 1.0,
        "top_k": config.top_k if SAME[1] in names else 0,
        "top_p": config.top_p if SAME[2] in names else 1.0,
        "seed": mixed_seed(rules.sampling.seed, prompt.seed),
    }
