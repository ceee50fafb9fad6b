"""The fingerprint of a run: everything that changes an answer, as run.json holds it.

A run goes on only with the settings and the model that it began with. What changes the speed alone
may change. Versions of libraries may change as well, and are told. Knows no model.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from trimtok_cli.bounds import flag
from trimtok_cli.config import RunConfig

# Every other setting changes answers, or might. A limit on time, or an address that may not be
# fetched, makes a sample fail, and what failed is tried again. --limit says how much is answered,
# and rows that are read otherwise have other keys.
MAY_CHANGE = frozenset(
    {
        "device",
        "engine",
        "vllm_args",
        "batch_size",
        "decode",
        "workers",
        "timeout",
        "video_timeout",
        "limit",
        "input_format",
        "allow_urls",
    }
)

# What run.json's `model` says of a model that was loaded.
_LOADED = {"family": "the model's family", "commit": "the model's commit", "dtype": "--dtype"}


def differences(
    earlier: Mapping[str, Any], config: RunConfig, identity: Mapping[str, str]
) -> list[str]:
    """What differs between an earlier run.json and this run, a phrase each; before a model loads.

    identity: a hash of the files of each model that is a local folder.
    """
    found = []
    for field in dataclasses.fields(config):
        if not field.init or field.name in MAY_CHANGE:
            continue
        now = json.loads(json.dumps(getattr(config, field.name)))
        # A setting that the earlier version did not know was as it is by default.
        then = earlier["config"].get(field.name, field.default)
        if then is dataclasses.MISSING:
            then = {}
        if then != now:
            found.append(_phrase(flag(field), then, now))
    for name, now in identity.items():
        then = earlier["identity"].get(name, "")
        if then != now:
            found.append(f"the files of {name} are not the same")
    return found


def other_shard(earlier: Mapping[str, Any], shard: str) -> list[str]:
    """What differs in the part of the inputs; shard: `2/8`, empty for all of them."""
    facts = earlier.get("shard")
    then = f"{facts['number']}/{facts['count']}" if facts else ""
    return [] if then == shard else [_phrase("--shard", then, shard)]


def digest(config: RunConfig, *others: Any) -> str:
    """A name for all runs that could be one: the same for each that has no `differences`."""
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.init and field.name not in MAY_CHANGE
    }
    text = json.dumps([settings, *others], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def differences_loaded(earlier: Mapping[str, Any], model: Mapping[str, str]) -> list[str]:
    """What differs in the model that was loaded: its commit, or the dtype that `auto` gave."""
    then = earlier["model"]
    return [
        _phrase(words, then[name], model[name])
        for name, words in _LOADED.items()
        if name in then and name in model and then[name] != model[name]
    ]


def other_draws(earlier: Mapping[str, Any], engine: str) -> list[str]:
    """The engine, if it is another one and answers are sampled: engines draw differently.

    Processes on a cluster (ray) draw as one here does.
    """
    then, now = earlier["config"].get("engine", "local"), engine
    if {then, now} == {"local", "ray"}:
        return []
    sampled = earlier.get("generation", {}).get("do_sample", {}).get("value", False)
    if then == now or not sampled:
        return []
    return [f"{_phrase('--engine', then, now)}, and answers are sampled"]


def other_versions(earlier: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[str]:
    """The versions that are not those of the earlier run, a phrase each."""
    then = earlier["versions"]
    for name, now in versions.items():
        if then.get(name, now) != now:
            yield _phrase(name, then[name], now)


def _phrase(name: str, then: Any, now: Any) -> str:
    return f"{name} was {_shown(then)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    if value in ("", None, {}):
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)
