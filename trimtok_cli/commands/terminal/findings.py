"""What `check` found, as lines for people. Knows the JSON alone."""

from collections.abc import Iterator
from typing import Any

from trimtok_cli.commands.terminal.progress import message
from trimtok_cli.units import duration

# Problems and the like that are shown without -v.
FEW = 20

_WOULD = {
    "begin": "a run would begin it",
    "resume": "a run would go on with it",
    "overwrite": "a run would replace it",
    "refuse": "a run would be refused",
}


def lines_of(
    found: dict[str, Any], *, everything: bool = False, errors_alone: bool = False
) -> list[str]:
    """The findings, a line each; everything: all problems, however many."""
    most = None if everything else FEW
    failed = [*_listed("failed", [each["error"] for each in found["problems"]], most)]
    refused = found["output"] and found["output"]["problem"]
    rows = [*failed, *(_output(found) if refused else ())]
    if not errors_alone:
        rows = [
            *_samples(found),
            *failed,
            *_listed("warning", _warnings(found), most),
            *_duplicates(found, most),
            *_model(found),
            *_output(found),
        ]
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{name:<{width}}  {message(text)}" for name, text in rows]


def _samples(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counts, files = found["samples"], found["files"]
    if not found["complete"]:
        yield "incomplete", f"ended after {counts['looked_at']:,} samples"
    yield (
        "samples",
        f"{counts['total']:,} for {found['command']}: {counts['sound']:,} sound, "
        f"{counts['failed']:,} failed",
    )
    formats = ", ".join(f"{count:,} {name}" for name, count in files["formats"].items())
    yield "files", f"{files['count']:,}, {_size(files['bytes'])}: {formats or 'none'}"


def _listed(name: str, texts: list[str], most: int | None) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(texts[:most]):
        yield ("" if number else name), text
    if most is not None and len(texts) > most:
        yield "", f"and {len(texts) - most:,} more; -v shows all"


def _warnings(found: dict[str, Any]) -> list[str]:
    return [f"{each['image']}: {each['warning']}" for each in found["warnings"]]


def _duplicates(found: dict[str, Any], most: int | None) -> Iterator[tuple[str, str]]:
    yield from _listed("asked again", found["duplicates"]["asked_again"], most)
    same = [" = ".join(names) for names in found["duplicates"]["same_content"]]
    yield from _listed("same content", same, most)


def _model(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    model, tokens, memory, time = (found[name] for name in ("model", "tokens", "memory", "time"))
    if not model["here"]:
        stated = (
            f"; dense visual tokens: {model['stated_tokens']}" if model["stated_tokens"] else ""
        )
        yield "model", f"{model['name']}: {model['note']}, so nothing is foreseen{stated}"
    if tokens:
        dense, kept = tokens["dense"], tokens["kept"]
        inside = "" if tokens["exact"] else ", which the method reaches inside the language model"
        yield (
            "visual tokens",
            f"{dense['mean']:,.0f} → {kept['mean']:,.0f} a sample, "
            f"{dense['total']:,} → {kept['total']:,} in all, "
            f"{dense['most']:,} → {kept['most']:,} at most{inside}",
        )
    if memory:
        yield (
            "memory",
            f"{_size(memory['total_bytes'])} and activations: {_size(memory['weights_bytes'])} of "
            f"weights ({memory['dtype']}), {_size(memory['cache_bytes_an_answer'])} of cache an "
            f"answer, {memory['answers_at_once']} at once",
        )
    if time and "note" in time:
        yield "time", time["note"]
    elif time:
        seconds, number = duration(time["seconds"]), time["samples"]
        yield "time", f"{seconds} for {number:,}, as measured: {time['measured']}"


def _output(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    output = found["output"]
    if output is None:
        return
    said = output["problem"]
    if not said:
        said = f"{output['answers']}: {_WOULD[output['would']]}"
    if output["would"] == "resume":
        said += (
            f": {output['done']:,} answered, {output['failed']:,} failed, {output['new']:,} new; "
            f"{output['to_answer']:,} to answer"
        )
    yield "output", said


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
