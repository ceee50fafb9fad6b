"""The reasoning that thinking models write before an answer, between <think> and </think>.

Knows no model: a template may have written the first <think> into the prompt.
"""

import re
from dataclasses import replace

from trimtok_cli.data import Result

OPEN, CLOSE = "<think>", "</think>"

_BLOCK = re.compile(f"{OPEN}.*?{CLOSE}", re.DOTALL)


def answer_alone(result: Result) -> Result:
    """The result without its reasoning; a failed one if the answer ends within it."""
    if result.error:
        return result
    rest = _BLOCK.sub("", result.answer)
    begun = result.prompt_sent.rstrip().endswith(OPEN)
    *_, answer = rest.rpartition(CLOSE)
    if OPEN in answer or (begun and CLOSE not in result.answer):
        return replace(
            result,
            answer="",
            finish="error",
            error="the answer ends within its reasoning; give it more --max-new-tokens, or keep "
            "the reasoning, without --strip-reasoning",
            error_class="SampleError",
        )
    return replace(result, answer=answer.strip())
