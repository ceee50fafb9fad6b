"""The conditions of a page, in words, from the run.json of the run or runs that it shows."""

import json
import shlex
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from trimtok_cli.bounds import facts_of as setting_facts
from trimtok_cli.bounds import field_of, flag
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Comparison

Document = Mapping[str, Any]


def facts_of(document: Document, comparisons: Sequence[Comparison]) -> dict[str, str]:
    """The facts that every reader wants, by their names; an empty document has few."""
    found = {"Samples": str(len(comparisons))}
    words = [c.results[0].tokens.text for c in comparisons if c.results and not c.results[0].error]
    if words:
        found["Text tokens"] = f"{median(words):.0f} (median)"
    model = _part(document, "model")
    if model:
        commit = f", {str(model['commit'])[:12]}" if model.get("commit") else ""
        found["Model"] = f"{model.get('name')} ({model.get('family')}{commit})"
        threads = f"{model.get('threads')} CPU thread{'s' * (str(model.get('threads')) != '1')}"
        found["Device"] = f"{model.get('device')}, {model.get('dtype')}, {threads}"
    most = _part(_part(document, "generation"), "max_new_tokens").get("value")
    if most is not None:
        found["Longest answer"] = f"{most} tokens"
    if document.get("command") == "compare":
        found["Timing"] = "one sample at a time, after a warm-up"
    if versions := _part(document, "versions"):
        names = {"torch": "torch", "transformers": "transformers", "python": "Python"}
        listed = ", ".join(f"{name} {versions.get(key)}" for key, name in names.items())
        found["Versions"] = f"trimtok {document.get('trimtok')}, {listed}"
    if started := document.get("started"):
        found["Date"] = str(started)[:16].replace("T", " ")
    return found


def details_of(documents: Sequence[Document]) -> dict[str, str]:
    """Command, settings and generation parameters of each run, as text for a fixed-width font."""
    found = {}
    for number, document in enumerate(documents, start=1):
        of = f" of run {number}" if len(documents) > 1 else ""
        if line := command_line(document):
            found[f"Command{of}"] = line
        settings = document.get("settings")
        for setting in settings if isinstance(settings, list) else ():
            shown = {
                name: setting.get(name) for name in ("method", "keep", "budget", "seed", "params")
            }
            found[f"{setting.get('name')}{of}"] = json.dumps(shown, ensure_ascii=False)
        if generation := _part(document, "generation"):
            values = {
                name: each["value"] for name, each in generation.items() if isinstance(each, dict)
            }
            found[f"Generation{of}"] = json.dumps(values, ensure_ascii=False)
    return found


def command_line(document: Document) -> str:
    """A command that runs the same again, wherever its settings came from; "" if not known."""
    config, command = _part(document, "config"), document.get("command")
    if not config or not command:
        return ""
    words = ["trimtok", str(command), *map(str, document.get("inputs", ()))]
    for name in _part(config, "sources"):
        try:
            field = field_of(RunConfig, name)
        except StopIteration:
            continue
        words += _option(flag(field), setting_facts(field).flags, config.get(name))
    return shlex.join(words)


def _option(own: str, flags: Sequence[str], value: Any) -> list[str]:
    if isinstance(value, dict):
        pairs = ((f"{name}={_written(each)}") for name, each in value.items())
        return [word for pair in pairs for word in (own, pair)]
    if isinstance(value, bool):
        other = flags[0].partition("/")[2] if flags else ""
        return [own] if value else [other or own.replace("--", "--no-", 1)]
    return [own, str(value)]


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _part(document: Document, name: str) -> Document:
    found = document.get(name)
    return found if isinstance(found, dict) else {}
