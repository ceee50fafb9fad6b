"""The types of the settings in a checkpoint's generation_config.json.

transformers compares these values without a look at their types, and takes "false" for true. Knows
nothing of generation itself; imports no torch.
"""

import json
from typing import Any

from trimtok_cli.models.broken import Broken
from trimtok_cli.wording import brief

_NUMBER = "a number"
_WHOLE = "a whole number"
_TRUTH = "true or false"
_ID = "an id or a list of ids"
_IDS = "a list of ids"
_TEXTS = "text or a list of texts"
_LISTS_OF_IDS = "a list of lists of ids"

# The type of each setting where it is not null. transformers judges the settings that are not here.
EXPECTED = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "top_h": _NUMBER,
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "repetition_penalty": _NUMBER,
    "encoder_repetition_penalty": _NUMBER,
    "penalty_alpha": _NUMBER,
    "guidance_scale": _NUMBER,
    "max_time": _NUMBER,
    "top_k": _WHOLE,
    "max_length": _WHOLE,
    "max_new_tokens": _WHOLE,
    "min_length": _WHOLE,
    "min_new_tokens": _WHOLE,
    "no_repeat_ngram_size": _WHOLE,
    "encoder_no_repeat_ngram_size": _WHOLE,
    "num_beams": _WHOLE,
    "num_beam_groups": _WHOLE,
    "num_return_sequences": _WHOLE,
    "pad_token_id": _WHOLE,
    "do_sample": _TRUTH,
    "renormalize_logits": _TRUTH,
    "remove_invalid_values": _TRUTH,
    "use_cache": _TRUTH,
    "token_healing": _TRUTH,
    "bos_token_id": _ID,
    "eos_token_id": _ID,
    "forced_bos_token_id": _ID,
    "forced_eos_token_id": _ID,
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "bad_words_ids": _LISTS_OF_IDS,
    "stop_strings": _TEXTS,
}


def check_generation(settings: dict[str, Any]) -> None:
    """Raises Broken for a generation setting whose value has another type than it should."""
    for name, value in settings.items():
        expected = EXPECTED.get(name)
        if expected and value is not None and not _has_type(value, expected):
            raise Broken(
                f"its generation_config.json says {name}: {brief(json.dumps(value))}, where "
                f"{expected} should be; mend the file"
            )


def _has_type(value: Any, expected: str) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_whole = is_number and (isinstance(value, int) or value.is_integer())
    if expected == _NUMBER:
        return is_number
    if expected == _WHOLE:
        return is_whole
    if expected == _TRUTH:
        return isinstance(value, bool)
    if expected == _ID:
        return is_whole or _is_list_of(value, _WHOLE)
    if expected == _TEXTS:
        return isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(text, str) for text in value)
        )
    return _is_list_of(value, _WHOLE if expected == _IDS else _IDS)


def _is_list_of(value: Any, expected: str) -> bool:
    return isinstance(value, list) and all(_has_type(item, expected) for item in value)
