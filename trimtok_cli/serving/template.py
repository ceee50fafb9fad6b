"""The chat template that vLLM is given, so that its prompts have the tokens of trimtok's own.

Knows no vLLM.
"""

import json

from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models.chat import has_start
from trimtok_cli.models.preprocessor import Preprocessor


def served_template(preprocessor: Preprocessor) -> str:
    """The checkpoint's template, with the start token where the tokenizer would write it.

    vLLM has the tokenizer add nothing to a chat. Raises ModelError where the template writes no
    question, or where a start token in the text changes the tokens behind it.
    """
    tokenizer = preprocessor.processor.tokenizer
    template = preprocessor.processor.chat_template
    if not isinstance(template, str):  # several, by name
        template = template["default"]
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    try:
        text = preprocessor.apply_template([{"role": "user", "content": content}])
    except SampleError as error:
        raise ModelError(str(error)) from error
    ours = tokenizer(text, add_special_tokens=not has_start(tokenizer, text)).input_ids
    for start in ("", tokenizer.bos_token or ""):
        if tokenizer(start + text, add_special_tokens=False).input_ids == ours:
            return f"{{{{ {json.dumps(start)} }}}}{template}" if start else template
    raise ModelError(
        f"{preprocessor.name} cannot be served: its tokenizer adds special tokens to a chat that "
        "vLLM does not add; use trimtok vqa."
    )
