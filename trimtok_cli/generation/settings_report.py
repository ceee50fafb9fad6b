"""The report of a run's generation settings, for run.json and for the screen.

run.json has every setting with its value and its source; the screen shows what is unusual.
"""

from collections.abc import Mapping
from typing import Any

from trimtok_cli.generation.rules import Rules

# Settings that are always reported.
ALWAYS = {
    "max_new_tokens",
    "seed",
    "eos_token_id",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
}

# Settings that only sampling uses.
SAMPLING_ONLY = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)

# Settings that change no token.
IRRELEVANT = {
    "transformers_version",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "compile_config",
    "disable_compile",
}

LONG = 60  # characters; the screen does not show a longer value


def described(rules: Rules, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{setting: {value, from}} for every setting that decides about tokens.

    sources: the source of each setting that the user gave, keyed by RunConfig field.
    """
    own = rules.model.generation_config.to_dict()
    own = {
        name: value for name, value in own.items() if value is not None and name not in IRRELEVANT
    }
    said, greedy = rules.sampling.overrides, rules.sampling.greedy
    user = {name: sources.get(name, "given") for name in said} | {
        "seed": sources.get("seed", "default")
    }
    if "do_sample" in said:
        user["do_sample"] = sources.get("greedy" if greedy else "temperature", "given")
    if rules.given_length is not None:
        user["max_new_tokens"] = sources.get("max_new_tokens", "given")
    if rules.dropped:
        user |= dict.fromkeys(rules.dropped, user["do_sample"])
    if rules.own_length is None:
        own.pop("max_length", None)  # has no effect
    length = None if rules.own_length else rules.most
    found = {
        "max_new_tokens": length,
        "seed": rules.sampling.seed,
        "eos_token_id": sorted(rules.ends),
    }
    found |= {
        name: getattr(rules.config, name)
        for name in ("do_sample", *SAMPLING_ONLY, "repetition_penalty")
    }
    found |= {
        name: getattr(rules.config, name, None)
        for name in own
        if not name.startswith("_") and name not in found
    }
    found = {
        name: value
        for name, value in found.items()
        if name in user or name in own or name in ALWAYS
    }
    return {
        name: {
            "value": _plain(value),
            "from": user.get(name) or ("checkpoint" if name in own else "default"),
        }
        for name, value in found.items()
    }


def notes(rules: Rules, sources: Mapping[str, str]) -> list[str]:
    """Lines for the user before the run: unusual settings, and settings without effect."""
    settings, usual, lines = (
        described(rules, sources),
        rules.config._get_default_generation_params(),
        [],
    )
    idle = {
        "eos_token_id",
        "max_new_tokens",
        "max_length",
        "do_sample",
        *(() if rules.samples else SAMPLING_ONLY),
    }
    asked = ["sampling"] * (settings["do_sample"] == {"value": True, "from": "checkpoint"})
    for name, each in settings.items():
        if each["from"] == "checkpoint" and name not in idle and each["value"] != usual.get(name):
            asked.append(f"{name} {each['value']}" if len(str(each["value"])) < LONG else name)
    if asked and (rules.processor_names or rules.criteria or rules.samples):
        lines.append(
            f"the checkpoint asks for {', '.join(asked)}"
            + "; --greedy answers without sampling" * rules.samples
        )
    unused = [
        f"--{name.replace('_', '-')}"
        for name in ("top_p", "top_k")
        if name in rules.sampling.overrides
    ]
    if unused and not rules.samples:
        lines.append(
            f"{' and '.join(unused)} changes nothing: answers are greedy; --temperature "
            "samples them"
        )
    if rules.dropped:
        lines.append(
            "--greedy leaves out "
            + ", ".join(f"{name} {value}" for name, value in rules.dropped.items())
        )
    return lines


def _plain(value: Any) -> Any:
    """The value in a form that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)
