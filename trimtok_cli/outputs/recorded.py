"""Comparisons made again from the lines of finished runs: no model, and no picture is opened.

A line of compare.jsonl gives a whole Comparison. Lines of several answers.jsonl are joined by what
was asked, never by their place; they hold no boxes, so their pictures have no tokens drawn over
them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trimtok_cli.blobs import Blob, Medium
from trimtok_cli.data import (
    Comparison,
    Kept,
    Media,
    Result,
    Sample,
    Seconds,
    Setting,
    TokenCounts,
)
from trimtok_cli.outputs.comparison import OWN
from trimtok_cli.outputs.token_layout import boxes_of

Row = Mapping[str, Any]
References = Callable[[Row], Sequence[str]]

_OF_ANSWERS = ("question_id", "prompt", "text", "answer_id", "model_id", "image", "metadata")


def comparison_of(row: Row, root: Path | None) -> Comparison:
    """The comparison of a line of compare.jsonl; `root` is the folder where names start.

    Raises KeyError, TypeError or ValueError if it is no such line.
    """
    layout = row["layout"]
    kinds = tuple(map(str, layout["kinds"]))
    extra = {name: value for name, value in row.items() if name not in OWN}
    runs = list(row["runs"])
    sample = _sample(row, runs[0]["metadata"], tuple(map(str, row["reference"])), extra, root)
    if "video" in kinds and sample.video is None:
        sample = replace(sample, images=sample.images[:-1], video=sample.images[-1])
    boxes, pictures, frames = boxes_of(layout["strips"])
    results = tuple(_result(sample, {**run, "prompt": row["prompt"]}) for run in runs)
    return Comparison(sample, results, boxes, pictures, frames, kinds)


def answer_of(row: Row, root: Path | None, references: References) -> tuple[str, Result]:
    """What a record of answers.jsonl was asked, and its Result.

    Raises KeyError, TypeError or ValueError if it is no record.
    """
    extra = {name: value for name, value in row.items() if name not in _OF_ANSWERS}
    sample = _sample(row, row["metadata"], tuple(references(extra)), extra, root)
    return asked(row), _result(sample, row)


def asked(row: Row) -> str:
    """What tells a row from every other row that asks something else."""
    facts = row["metadata"] if "metadata" in row else row["runs"][0]["metadata"]
    return str(facts.get("key") or json.dumps([row["question_id"], row["image"], row["prompt"]]))


def _sample(
    row: Row, facts: Row, answers: tuple[str, ...], extra: Row, root: Path | None
) -> Sample:
    named = row["image"]
    names = tuple(map(str, named if isinstance(named, list) else [named] if named else []))
    media: list[Medium] = [_medium(name, root) for name in names]
    video = media.pop() if media and facts["video"]["frames"] else None
    return Sample(
        id=row["question_id"],
        images=tuple(media),
        names=names,
        video=video,
        question=str(row["prompt"]),
        answers=answers,
        extra=extra,
        key=str(facts.get("key", "")),
    )


def _medium(name: str, root: Path | None) -> Medium:
    """The file of a name; what can be no file's name stays a name, and cannot be opened."""
    if "://" in name or name[:5].lower() == "data:" or "\0" in name:
        return Blob(name)
    return Path(name) if root is None else root / name


def _result(sample: Sample, row: Row) -> Result:
    """The result of a record, or of one of the `runs` of a comparison."""
    facts = row["metadata"]
    visual, usage, media = facts["visual"], facts["usage"], facts["media"]
    stages = [
        Kept(int(each["layer"]), tuple(each["tokens"])) for each in row.get("earlier_stages", ())
    ]
    counted = tuple((int(layer), int(count)) for layer, count in visual["stages"])
    if "kept_tokens" in row and counted:
        stages.append(Kept(counted[-1][0], tuple(row["kept_tokens"])))
    return Result(
        sample,
        question=str(row["prompt"]),
        answer=str(row["text"]),
        setting=_setting(facts),
        tokens=TokenCounts(
            text=int(usage["prompt_tokens_dense"]) - int(visual["tokens"]),
            visual=int(visual["tokens"]),
            kept=int(visual["kept"]),
            layer_mean=float(visual["layer_mean"]),
            generated=int(usage["completion_tokens"]),
            stages=counted,
        ),
        seconds=Seconds(
            **{each.name: facts["timing_ms"][each.name] / 1000 for each in fields(Seconds)}
        ).in_microseconds(),
        kept=tuple(stages),
        grid=tuple(visual["grid"]),
        finish=str(facts["finish_reason"]),
        error=str(facts["error"]),
        error_class=str(facts["error_class"]),
        prompt_sent=str(facts["prompt_sent"]),
        media=(
            Media(
                int(media["width"]),
                int(media["height"]),
                str(media["mode"]),
                times=tuple(facts["video"]["frame_times"]),
            ),
        ),
        batch_size=int(facts["timing_ms"]["batch_size"]),
        notes=tuple(map(str, facts["warnings"])),
    )


def _setting(facts: Row) -> Setting:
    """The setting of a record, under the name that it had."""
    known = facts["setting"]
    params: dict[str, Any] = {}
    for change in re.split(r" (?=\w+=)", str(known["changes"])):
        name, equals, value = change.partition("=")
        if not equals:
            continue
        params[name] = value
    return Setting(str(facts["method"]), str(known["keep"]), params=params)
