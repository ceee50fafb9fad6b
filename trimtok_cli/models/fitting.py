"""Makes a processor fit its model where the processor's files leave something out, or contradict.

A processor counts placeholders by `patch_size`, `vision_feature_select_strategy` and
`num_additional_image_tokens`, which the files of older checkpoints lack. The model's configuration
has all three, and decides how many visual tokens an image has. Knows no family by name.
"""

import logging
import math
from typing import Any

from trimtok_cli.limits import TEMPLATE_BYTES, TimeUp, at_most, within
from trimtok_cli.models.broken import AGAIN, Broken
from trimtok_cli.wording import brief

log = logging.getLogger("trimtok")

# Tokens that a vision tower puts in front of its patches.
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}

TEMPLATE_SECONDS = 20  # for the few questions that a chat template is tried with


def fit(processor: Any, config: Any) -> None:
    """Sets the processor to write as many placeholders as the model has visual tokens.

    Raises Broken for a processor or a chat template that cannot be used.
    """
    _check_parts(processor)
    for part in ("image_processor", "video_processor"):
        _check_numbers(getattr(processor, part, None), part.replace("_", " "))
    try:
        within(TEMPLATE_SECONDS, lambda: _fit_template(processor))
    except TimeUp:
        raise Broken(
            f"its chat template writes for more than {TEMPLATE_SECONDS} seconds at one "
            f"question; {AGAIN}"
        ) from None
    vision = config.vision_config
    _check_layers(
        getattr(config, "vision_feature_layer", None), getattr(vision, "num_hidden_layers", 0)
    )
    if hasattr(processor, "num_image_tokens") and processor.num_image_tokens is None:
        _set(processor, "num_image_tokens", (vision.image_size // vision.patch_size) ** 2)
    if hasattr(processor, "num_image_tokens") and processor.vision_feature_select_strategy is None:
        _set(processor, "vision_feature_select_strategy", config.vision_feature_select_strategy)
    if hasattr(processor, "num_additional_image_tokens") and vision.model_type in CLASS_TOKENS:
        _fit_counts(processor, config)


def _check_parts(processor: Any) -> None:
    """Raises Broken for a processor without its parts, or with a chat template that is no text.

    transformers returns only one of the parts where it does not know the processor that a
    checkpoint names.
    """
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise Broken(
                f"its processor is only a {type(processor).__name__}, without "
                f"{part.replace('_', ' ')}; {AGAIN}"
            )
    template = getattr(processor, "chat_template", None)
    named = isinstance(template, dict) and all(isinstance(text, str) for text in template.values())
    if template is not None and not isinstance(template, str) and not named:
        raise Broken(
            f"its chat template is a {type(template).__name__}, where text should be; {AGAIN}"
        )


# Stands in front of a template that takes a turn's content as text: joins the parts of each turn.
_AS_TEXT = (
    "{% set flat = namespace(turns=[]) %}{% for m in messages %}{% set turn = namespace(text='') %}"
    "{% if m['content'] is string %}{% set turn.text = m['content'] %}{% else %}{% for c in "
    "m['content'] %}"
    "{% if c['type'] == 'text' %}{% set turn.text = turn.text + c['text'] %}"
    "{% elif c['type'] == 'image' %}{% set turn.text = turn.text + MARK %}{% endif %}"
    "{% endfor %}{% endif %}{% set flat.turns = flat.turns + [{'role': m['role'], 'content': "
    "turn.text}] %}{% endfor %}"
    "{% set messages = flat.turns %}"
)


def _fit_template(processor: Any) -> None:
    """Makes the processor's chat template take images and text. Raises Broken where it cannot.

    A processor without a template takes over its tokenizer's, where that knows images. A template
    that takes a turn's content as text would write the parts as a Python list, and the model would
    be asked about `[{'type': 'image'}, ...]`; the parts are joined in front of it.
    """
    mark = getattr(processor, "image_token", None)
    if processor.chat_template is None and isinstance(mark, str):
        of_tokenizer = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
        if isinstance(of_tokenizer, str) and mark in of_tokenizer:
            _set(processor, "chat_template", of_tokenizer)
    if not isinstance(processor.chat_template, str) or not isinstance(mark, str):
        return
    prompt = _trial_prompt(processor)
    if prompt is not None:
        # The processor would find no placeholder for any image.
        if mark not in prompt:
            raise Broken(
                f"its processor looks for {brief(mark)} in a prompt, which its chat template "
                f"does not write; {AGAIN}"
            )
        return
    for image in ("", f"{mark}\n"):
        template = _AS_TEXT.replace("MARK", repr(image)) + processor.chat_template
        if mark in (_trial_prompt(processor, template) or ""):
            _set(processor, "chat_template", template)
            return


def _trial_prompt(processor: Any, template: str | None = None) -> str | None:
    """A template's prompt for a question on an image; None where it does not take image and text.

    template: the processor's own by default.
    """
    question = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Is it so?"}],
    }
    try:
        with at_most(TEMPLATE_BYTES):
            text = processor.apply_chat_template(
                [question], chat_template=template, add_generation_prompt=True
            )
    # A template may raise anything; each sample's row will say it.
    except Exception as error:
        log.debug("the chat template does not take images and text", exc_info=error)
        return None
    return text if "Is it so?" in text and "'type'" not in text and '"type"' not in text else None


def _fit_counts(processor: Any, config: Any) -> None:
    """Sets how the processor counts the patches of a tower of CLIP or SigLIP.

    The strategy `default` drops the class token. A tower without one would lose its first patch,
    which breaks tiles, and which a processor that counts all patches does not expect. In both cases
    the patch stays.
    """
    strategy = config.vision_feature_select_strategy
    class_tokens = CLASS_TOKENS[config.vision_config.model_type]
    counts_all = (
        processor.vision_feature_select_strategy != "default"
        or processor.num_additional_image_tokens
    )
    is_tiled = hasattr(config, "image_grid_pinpoints")
    if strategy == "default" and not class_tokens and (counts_all or is_tiled):
        strategy = "full"
        _set(config, "vision_feature_select_strategy", strategy)
    _set(processor, "patch_size", config.vision_config.patch_size)
    _set(processor, "vision_feature_select_strategy", strategy)
    _set(processor, "num_additional_image_tokens", class_tokens)


def _set(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute of a processor or configuration, and logs a change."""
    if getattr(owner, name) != value:
        log.debug(
            "%s.%s is %r in the files and %r for this model",
            type(owner).__name__,
            name,
            getattr(owner, name),
            value,
        )
        setattr(owner, name, value)


def _check_layers(feature_layer: Any, num_layers: int) -> None:
    """Raises Broken where visual tokens would come from a layer that the tower lacks."""
    for layer in _as_list(feature_layer):
        if not -num_layers - 1 <= layer <= num_layers:
            raise Broken(
                f"its config.json says vision_feature_layer: {feature_layer}, and its tower has "
                f"{num_layers} layers"
            )


def _check_numbers(processor: Any, part: str) -> None:
    """Raises Broken for a mean that is no number, or a deviation of 0, which leave no valid pixel.

    part: the processor's name in the message.
    """
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0), ("rescale_factor", 0.0)):
        value = getattr(processor, name, None)
        is_odd = isinstance(value, (list, tuple)) and len(value) not in (1, 3)
        for number in [None] if is_odd else _as_list(value):
            if not isinstance(number, (int, float)) or not math.isfinite(number) or number <= least:
                raise Broken(
                    f"the {name} of its {part} is {brief(value)}; copy or download its "
                    "settings again"
                )


def _as_list(value: Any) -> list:
    """The items of a list, a single value as a list, nothing for None."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
