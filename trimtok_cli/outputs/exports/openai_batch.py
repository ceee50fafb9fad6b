"""The output file of OpenAI's batch interface: a line for every request, failed ones with an error.

What is read with `custom_id` is written with it; another input's id stands in its place.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trimtok_cli.outputs.exports.answers import Answers, Record
from trimtok_cli.outputs.exports.form import Made, Wanted, succeeded, write_rows
from trimtok_cli.outputs.jsonl import to_line


def write_openai(answers: Answers, target: Path, wanted: Wanted) -> Made:
    created = _seconds(answers.manifest)
    made = write_rows(answers, target, lambda record: to_line(_line(record, created)) + "\n")
    if answers.failed:
        made.notes.append(f"{answers.failed} of them errors")
    return made


def _line(record: Record, created: int) -> dict[str, Any]:
    facts, name = record["metadata"], record["answer_id"]
    custom_id = record.get("custom_id")
    fine = succeeded(record)
    error = None if fine else {"code": facts["error_class"], "message": facts["error"]}
    return {
        "id": f"batch_req_{name}",
        "custom_id": str(record["question_id"] if custom_id is None else custom_id),
        "response": {
            "status_code": 200 if fine else 400,
            "request_id": name,
            "body": _completion(record, created) if fine else {"error": error},
        },
        "error": error,
    }


def _completion(record: Record, created: int) -> dict[str, Any]:
    facts = record["metadata"]
    prompt, answer = (facts["usage"][f"{part}_tokens"] for part in ("prompt", "completion"))
    message = {"role": "assistant", "content": record["text"]}
    return {
        "id": f"chatcmpl-{record['answer_id']}",
        "object": "chat.completion",
        "created": created,
        "model": record["model_id"],
        "choices": [{"index": 0, "message": message, "finish_reason": facts["finish_reason"]}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
        },
    }


def _seconds(manifest: Mapping[str, Any]) -> int:
    """When the run began, in seconds since 1970; 0 if that is not known."""
    try:
        return int(datetime.strptime(manifest["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp())
    except (KeyError, TypeError, ValueError):
        return 0
