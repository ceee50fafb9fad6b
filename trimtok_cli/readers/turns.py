"""Rows of turns -> question rows: conversations (LLaVA, ShareGPT), chats of messages, and requests
of an OpenAI batch.

The first turn of the user is the question, and the answer after it a reference. Whatever a request
asks of the run (a length, a temperature, a system prompt) must be what the run does: the row fails
otherwise, and says which option to give. Knows no file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtok_cli.readers.columns import Problem
from trimtok_cli.readers.foreign_formats import plain_name
from trimtok_cli.wording import brief, quoted

# Who speaks, as the formats name them.
_USERS = ("user", "human")
_MODELS = ("assistant", "gpt", "model", "bot", "chatgpt")
_SYSTEMS = ("system", "developer")

# Placeholders in front of the words or behind them, which say nothing that is not known.
_AROUND = re.compile(r"\A(\s*<(image|video)>)+\s*|\s*(<(image|video)>\s*)+\Z")

# Fields of a request that change no answer, and values of others that ask for nothing special.
_IDLE = frozenset(
    {"model", "messages", "user", "metadata", "store", "service_tier", "safety_identifier"}
    | {"prompt_cache_key", "stream_options"}
)
_USUAL = {
    "stream": False,
    "n": 1,
    "response_format": {"type": "text"},
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "modalities": ["text"],
}

# Field of a request -> the setting of the run that must have the same value.
_SETTINGS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}

# Settings without effect on a greedy answer.
_OF_SAMPLING = ("top_p", "top_k", "seed")


def as_question(row: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The row; one of turns as a row of a question and its pictures.

    settings: the run's, by the names of RunConfig. Raises a Problem where the row asks for what
    the run does not do.
    """
    columns = {plain_name(name): name for name in row}
    if {"customid", "body"} <= columns.keys():
        return _request(row[columns["customid"]], row, row[columns["body"]], settings)
    if "text" in columns or "question" in columns:
        return row
    for name in ("conversations", "messages"):
        if name in columns:
            return _conversation(row, columns[name], settings)
    return row


@dataclass
class _Turn:
    """What the user said: words with placeholders, and the names of pictures and videos."""

    text: str = ""
    media: dict[str, list[str]] = field(default_factory=lambda: {"image": [], "video": []})


def _conversation(row: dict[str, Any], column: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    turns = _turns(row[column], column)
    asked = next((i for i, (who, _) in enumerate(turns) if who in _USERS), None)
    if asked is None:
        raise Problem(f"no turn of {column} is the user's")
    _check_system(turns, settings)
    said = _said(turns[asked][1], column)
    made: dict[str, Any] = {"text": _without_placeholders(said.text)}
    made |= {name: names for name, names in said.media.items() if names}
    answer = turns[asked + 1][1] if asked + 1 < len(turns) else None
    if isinstance(answer, str) and "answer" not in row and "answers" not in row:
        made["answer"] = answer
    return {**row, **made}


def _request(
    key: Any, row: dict[str, Any], body: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A request of a batch. Its body, which may hold whole pictures, does not ride along."""
    url = row.get("url", "/v1/chat/completions")
    if not isinstance(url, str) or not url.endswith("/chat/completions"):
        raise Problem(f"url is {brief(url)}, and only /v1/chat/completions is answered")
    if not isinstance(body, dict):
        raise Problem("body is not a JSON object")
    turns = _turns(body.get("messages"), "body.messages")
    asked = [content for who, content in turns if who in _USERS]
    if len(asked) != 1 or any(who not in (*_USERS, *_SYSTEMS) for who, _ in turns):
        raise Problem("body.messages must be one message of the user, after one of the system")
    _check_system(turns, settings)
    for name, value in body.items():
        _check_field(name, value, settings)
    said = _said(asked[0], "body.messages")
    return {
        "question_id": key,
        "text": said.text,
        **{name: names for name, names in said.media.items() if names},
        "custom_id": key,
    }


def _turns(turns: Any, column: str) -> list[tuple[str, Any]]:
    """(who, content) of each turn, written {from, value} as by LLaVA, or {role, content}."""
    if not isinstance(turns, list) or not turns:
        raise Problem(f"{column} is not a list of turns")
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise Problem(f"a turn of {column} is not a JSON object")
        who = turn.get("from", turn.get("role", _USERS[0]))
        content = turn.get("value", turn.get("content"))
        if who not in (*_USERS, *_MODELS, *_SYSTEMS):
            raise Problem(f"{quoted(who)} of {column} is neither user, assistant nor system")
        found.append((who, content))
    return found


def _check_system(turns: Sequence[tuple[str, Any]], settings: Mapping[str, Any]) -> None:
    said = [_said(content, "the system message").text for who, content in turns if who in _SYSTEMS]
    if said and said != [settings.get("system", "")]:
        raise Problem(
            f"its system message is not the run's; add --system with it: {quoted(' '.join(said))}"
        )


def _check_field(name: str, value: Any, settings: Mapping[str, Any]) -> None:
    """Raises a Problem for a field of a request that the run would not honour."""
    if value is None or name in _IDLE or (name in _USUAL and value == _USUAL[name]):
        return
    setting = _SETTINGS.get(name)
    if setting is None:
        raise Problem(f"body.{brief(name)} is {brief(value)}, which is not honoured; take it out")
    greedy = bool(settings.get("greedy")) or settings.get("temperature") == 0
    current = 0 if setting == "temperature" and greedy else settings.get(setting)
    if value == current or (greedy and setting in _OF_SAMPLING):
        return
    option = "--" + setting.replace("_", "-")
    has = "the checkpoint's own" if current is None else brief(current)
    raise Problem(
        f"body.{name} is {brief(value)}, and the run's {option} is {has}; "
        f"add {option} {brief(value)}, which holds for all rows"
    )


def _said(content: Any, column: str) -> _Turn:
    """A turn's content, which is a text or a list of parts.

    Placeholders say where pictures stand, unless all of them stand in front of the words.
    """
    if isinstance(content, str):
        return _Turn(content)
    if not isinstance(content, list):
        raise Problem(f"the content of a turn of {column} is neither a text nor a list of parts")
    said = _Turn()
    pieces: list[str] = []
    for part in content:
        kind, value = _part(part, column)
        if kind == "text":
            pieces.append(value)
        else:
            said.media[kind].append(value)
            pieces.append(f"<{kind}>")
    media = [piece in ("<image>", "<video>") for piece in pieces]
    ahead = media == sorted(media, reverse=True)
    words = [piece for piece, medium in zip(pieces, media, strict=True) if not medium]
    said.text = "\n".join(words if ahead else pieces)
    return said


def _part(part: Any, column: str) -> tuple[str, str]:
    """(text, image or video; its words or name) of a part of a message."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text", part["text"]
    for medium in ("image", "video"):
        for name in (f"{medium}_url", medium):
            if kind == name:
                value = part.get(name, part.get("url"))
                value = value.get("url") if isinstance(value, dict) else value
                if isinstance(value, str) and value:
                    return medium, value
    shown = brief(json.dumps(kind)) if isinstance(kind, str) else "no type"
    raise Problem(f"a part of {column} ({shown}) is no text, picture or video that is read")


def _without_placeholders(text: str) -> str:
    """The words; with the placeholders where some stand between the words."""
    bare = _AROUND.sub("", text)
    return text if "<image>" in bare or "<video>" in bare else bare
