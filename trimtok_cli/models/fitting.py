"""A processor made to fit its model, where its files leave out or contradict what the model's
configuration says.

Older checkpoints' files lack what a processor counts placeholders by (`patch_size`,
`vision_feature_select_strategy`, `num_additional_image_tokens`); the model's configuration has all
of it, and decides how many visual tokens an image gives.
"""

import logging
import math
from typing import Any

from trimtok_cli.limits import TEMPLATE_BYTES, TimeUp, at_most, within
from trimtok_cli.models.broken import AGAIN, Broken
from trimtok_cli.wording import brief

log = logging.getLogger("trimtok")

CLASS_TOKENS = {
    "clip_vision_model": 1,
    "siglip_vision_model": 0,
}  # what a tower puts in front of its patches

TEMPLATE_SECONDS = 20  # for the few questions that a chat template is tried with


def fit(processor: Any, config: Any) -> None:
    """Sets what `processor` counts placeholders by to what gives as many as the model has visual
    tokens. Raises Broken.
    """
    _check_parts(processor)
    for kind in ("image_processor", "video_processor"):
        _check_numbers(getattr(processor, kind, None), kind.replace("_", " "))
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
    """Where a checkpoint names no processor that the library knows, it is handed one of the
    processor's parts instead.
    """
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise Broken(
                f"its processor is only a {type(processor).__name__}, without "
                f"{part.replace('_', ' ')}; {AGAIN}"
            )
    template = getattr(processor, "chat_template", None)
    named = isinstance(template, dict) and all(isinstance(each, str) for each in template.values())
    if template is not None and not isinstance(template, str) and not named:
        raise Broken(
            f"its chat template is a {type(template).__name__}, where text should be; {AGAIN}"
        )


# In front of a template that takes a turn's content as text: what the parts of a turn say, one
# after the other.
_AS_TEXT = (
    "{% set flat = namespace(turns=[]) %}{% for m in messages %}{% set said = namespace(text='') %}"
    "{% if m['content'] is string %}{% set said.text = m['content'] %}{% else %}{% for c in "
    "m['content'] %}"
    "{% if c['type'] == 'text' %}{% set said.text = said.text + c['text'] %}"
    "{% elif c['type'] == 'image' %}{% set said.text = said.text + MARK %}{% endif %}"
    "{% endfor %}{% endif %}{% set flat.turns = flat.turns + [{'role': m['role'], 'content': "
    "said.text}] %}{% endfor %}"
    "{% set messages = flat.turns %}"
)


def _fit_template(processor: Any) -> None:
    """A template that the tokenizer alone has, if it knows images; and one that takes text is made
    to take images and text.

    Such a template writes a list as Python would, and the model would be asked about `[{'type':
    'image'}, ...]`.
    """
    mark = getattr(processor, "image_token", None)
    if processor.chat_template is None and isinstance(mark, str):
        known = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
        if isinstance(known, str) and mark in known:
            _set(processor, "chat_template", known)
    if not isinstance(processor.chat_template, str) or not isinstance(mark, str):
        return
    if (asked := _asked(processor)) is not None:
        if mark not in asked:  # the processor would find no place for any picture
            raise Broken(
                f"its processor looks for {brief(mark)} in a prompt, which its chat template "
                f"does not write; {AGAIN}"
            )
        return
    for shown in ("", f"{mark}\n"):
        template = _AS_TEXT.replace("MARK", repr(shown)) + processor.chat_template
        if mark in (_asked(processor, template) or ""):
            _set(processor, "chat_template", template)
            return


def _asked(processor: Any, template: str | None = None) -> str | None:
    """A question about an image as a template writes it; None where it does not know what to make
    of the question's parts.
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
    except Exception as error:  # whatever a template may raise; a sample's row will say it
        log.debug("the chat template does not take images and text", exc_info=error)
        return None
    return text if "Is it so?" in text and "'type'" not in text and '"type"' not in text else None


def _fit_counts(processor: Any, config: Any) -> None:
    """`default` is to drop the class token. A tower that has none would lose a patch by it, which
    breaks tiles, and which a processor that counts all patches does not know of: there, the patch
    stays.
    """
    strategy, class_tokens = (
        config.vision_feature_select_strategy,
        CLASS_TOKENS[config.vision_config.model_type],
    )
    less = (
        processor.vision_feature_select_strategy == "default"
        and not processor.num_additional_image_tokens
    )
    if (
        strategy == "default"
        and not class_tokens
        and (not less or hasattr(config, "image_grid_pinpoints"))
    ):
        strategy = "full"
        _set(config, "vision_feature_select_strategy", strategy)
    _set(processor, "patch_size", config.vision_config.patch_size)
    _set(processor, "vision_feature_select_strategy", strategy)
    _set(processor, "num_additional_image_tokens", class_tokens)


def _set(owner: Any, name: str, value: Any) -> None:
    if getattr(owner, name) != value:
        log.debug(
            "%s.%s is %r in the files and %r for this model",
            type(owner).__name__,
            name,
            getattr(owner, name),
            value,
        )
        setattr(owner, name, value)


def _check_layers(read: Any, count: int) -> None:
    for layer in read if isinstance(read, (list, tuple)) else [] if read is None else [read]:
        if not -count - 1 <= layer <= count:
            raise Broken(
                f"its config.json says vision_feature_layer: {read}, and its tower has "
                f"{count} layers"
            )


def _check_numbers(processor: Any, what: str) -> None:
    """A mean that is no number, or a deviation of 0, would make every pixel none."""
    for name, least in (("image_mean", -math.inf), ("image_std", 0.0), ("rescale_factor", 0.0)):
        value = getattr(processor, name, None)
        odd = isinstance(value, (list, tuple)) and len(value) not in (1, 3)
        for number in (
            [None]
            if odd
            else value
            if isinstance(value, (list, tuple))
            else []
            if value is None
            else [value]
        ):
            if not isinstance(number, (int, float)) or not math.isfinite(number) or number <= least:
                raise Broken(
                    f"the {name} of its {what} is {brief(value)}; copy or download its "
                    "settings again"
                )
