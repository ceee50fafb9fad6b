"""Absurd settings from YAML, environment, flags and Python.

Each is refused with one short sentence, and soon.
"""

import dataclasses
import math
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtok_cli.bounds import facts_of
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.resolve import parse_params, resolve

FIELDS = {field.name: field for field in dataclasses.fields(RunConfig) if field.init}
NUMBERS = [
    name
    for name, field in FIELDS.items()
    if (facts_of(field).least, facts_of(field).above) != (None, None)
]
TEXTS = [name for name, field in FIELDS.items() if field.type is str]
fuzz = settings(
    max_examples=60, deadline=4000, derandomize=True, suppress_health_check=list(HealthCheck)
)


def refused(job, *says: str) -> str:
    """The one short sentence of the UsageError that `job` raises."""
    start = time.perf_counter()
    with pytest.raises(UsageError) as caught:
        job()
    text = str(caught.value)
    assert (
        time.perf_counter() - start < 20
        and len(text) < 1000
        and "\n" not in text
        and "\x1b" not in text
    )
    for each in says:
        assert each in text, text
    return text


def from_yaml(text: str | bytes) -> RunConfig:
    Path("c.yaml").write_bytes(
        text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    )
    return resolve({}, "c.yaml", {})


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)
YAMLS = {
    "aliases that multiply": "params:\n  " + BOMB.replace("\n", "\n  ") + "\n  pool: *a9\n",
    "aliases under a text": BOMB + "keep: *a9\n",
    "merges that multiply": "".join(
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9) if i else '{k: v}'}]}}\n"
        for i in range(8)
    ),
    "an alias of itself": "params: &p {pool: *p}\n",
    "deep lists": "keep: " + "[" * 3000 + "]" * 3000,
    "deep mappings": "params: " + "{a: " * 3000 + "1" + "}" * 3000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(400)),
    "deep enough to be read": "params: {a: " + "[" * 60 + "]" * 60 + "}",
    "long": "keep: " + "x" * 10_000_000,
    "a number of 5,000 digits": "seed: " + "9" * 5000,
    "such a number of a method": "params: {pool: " + "9" * 5000 + "}",
    "a large number of a method": "params: {pool: " + "9" * 400 + "}",
    "a number as a key": "1: 2",
    "a number as a parameter's name": "params: {1: 2}",
    "nothing as a key": "~: 2",
    "a list as a key": "? [a, b]\n: 2",
    "a date for a number": "seed: 2024-01-01",
    "a date that is none": "params: {pool: 2024-99-99}",
    "a date of a method": "params: {pool: 2024-01-01}",
    "bytes": "model: !!binary aGVsbG8=",
    "a set": "params: {pool: !!set {a, b}}",
    "code": "model: !!python/object/apply:os.system ['true']",
    "a tag of one's own": "keep: !mine 64",
    "an infinite number of a method": "params: {pool: .inf}",
    "a number that is none": "temperature: .nan",
    "a merge of nothing": "<<: 5",
    "one key twice": "keep: 64\nkeep: 32",
    "one key with - and _": "batch-size: 1\nbatch_size: 2",
    "one parameter twice": "params: {pool: 0.5, pool: 0.6}",
    "tabs": "params:\n\tpool: 0.5",
    "two documents": "keep: 64\n---\nkeep: 32",
    "nothing": "",
    "a list": "- keep",
    "null": "keep: ~",
    "a NUL": "keep: \0",
    "an escape": 'keep: "\\e[31m"\nnope: 1',
    "an unknown key of 5,000 characters": "k" * 5000 + ": 1",
    "not UTF-8": b"keep: \xff\xfe",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS.keys())
def test_a_hostile_yaml_is_one_sentence(text):
    assert "c.yaml" in refused(lambda: from_yaml(text))


def test_a_text_is_taken_as_it_is_written():
    """YAML's own readings (octal, base 60, truth values) are for numbers only."""
    found = from_yaml(
        "revision: 0123456\nprompt: 12:30\nsystem: yes\nkeep: 11.10%\nbatch-size: "
        "4.0\nmodel: 1e5\nseed: 007\n"
    )
    assert (found.revision, found.prompt, found.system, found.keep) == (
        "0123456",
        "12:30",
        "yes",
        "11.10%",
    )
    assert (found.batch_size, found.model, found.seed) == (4, "1e5", 7)
    shared = from_yaml("keep: &k 64\nparams: {layer: *k, <<: {plus: true}}\n")
    assert (shared.keep, shared.params) == ("64", {"layer": 64, "plus": True})


def every_way(name: str, value):
    """Four jobs that give one setting: by RunConfig, flag, environment and YAML."""
    yield lambda: RunConfig(**{name: value})
    yield lambda: resolve({name: value}, None, {})
    yield lambda: resolve({}, None, {f"TRIMTOK_{name.upper()}": str(value)})
    yield lambda: from_yaml(f"{name.replace('_', '-')}: {value}")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [-1, 10**30, math.nan, math.inf, -math.inf, 1e308, -1e-300], ids=str
)
def test_a_number_that_means_nothing_is_refused_however_it_is_given(name, value):
    ways = list(every_way(name, value))
    assert len(ways) == 4
    for way in ways:
        said = refused(way)
        assert f"--{name.replace('_', '-')}" in said or f"TRIMTOK_{name.upper()}" in said


@pytest.mark.parametrize("name", NUMBERS)
def test_the_bounds_themselves_are_allowed(name):
    facts = facts_of(FIELDS[name])
    values = [value for value in (facts.least, facts.most) if value is not None]
    assert values
    for value in values:
        for way in every_way(name, value):
            found = (
                way()
                if name != "start" or not value
                else resolve({"start": value, "end": None}, None, {})
            )
            assert getattr(found, name) == value


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_means_nothing_is_refused(name):
    for value in ("x\0y", "" if not facts_of(FIELDS[name]).empty else "\0"):
        refused(lambda value=value: RunConfig(**{name: value}), "--" + name.replace("_", "-"))
        refused(lambda value=value: resolve({name: value}, None, {}), "--" + name.replace("_", "-"))
    for value in (3, None, ["a"], b"a", True):
        refused(lambda value=value: RunConfig(**{name: value}), "must be text")


def test_a_name_of_nobody_and_choices_are_checked_before_anything_is_loaded():
    for name in ("model", "clip_text"):
        refused(lambda name=name: resolve({name: "~nosuchuser/x"}, None, {}), "no such user")
    refused(lambda: resolve({"video_as": "vidoe"}, None, {}), "did you mean video")


@pytest.mark.parametrize(
    "pair",
    [
        "pool=[",
        "pool={",
        "pool=" + "[" * 3000,
        "pool=" + "9" * 5000,
        "pool=.nan",
        "=1",
        " =1",
        "pool",
        "pool=!!python/x y",
        "pool=&a [*a]",
        "p" * 100_000,
        "pool=*a",
        "pool=\x00",
        "pool=2024-01-01",
        "pool=? [",
    ],
)
def test_a_parameter_that_cannot_be_read_is_one_sentence(pair):
    refused(lambda: resolve({"params": parse_params([pair])}, None, {}), "--param")


def test_an_unknown_environment_variable_is_an_error_like_an_unknown_key():
    refused(
        lambda: resolve({}, None, {"TRIMTOK_KEPP": "64"}),
        "TRIMTOK_KEPP",
        "did you mean TRIMTOK_KEEP",
    )
    refused(lambda: resolve({}, None, {"TRIMTOK_PARAMS": "{"}), "TRIMTOK_PARAMS")
    assert resolve({}, None, {"TRIMTOK_KEPP": "", "OTHER": "1"}) == RunConfig()


def survives(job) -> None:
    """Asserts that `job` returns a RunConfig or raises a short UsageError, and nothing else."""
    try:
        assert isinstance(job(), RunConfig)
    except UsageError as error:
        assert len(str(error)) < 2000


scalar = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=5)
)
anything = st.recursive(
    scalar,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalar, inner, max_size=3),
    max_leaves=8,
)
yaml_bits = st.sampled_from(
    [
        ": ",
        "- ",
        "\n",
        "  ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "<<",
        "? ",
        "!!",
        "!",
        "|",
        ">",
        "'",
        '"',
        "#",
        "---",
        "...",
        "%",
        "@",
        "`",
        "\t",
        "keep",
        "params",
        "seed",
        "1",
        "0x",
        ".nan",
        "~",
        "=",
        ",",
        "\\",
    ]
) | st.text(max_size=3)


@fuzz
@given(st.sampled_from(sorted(FIELDS)), anything)
def test_any_value_of_any_setting_from_python_or_a_flag(name, value):
    survives(lambda: RunConfig(**{name: value}))
    survives(lambda: resolve({name: value}, None, {}))


@fuzz
@given(
    st.sampled_from(sorted(FIELDS)),
    st.text(max_size=40) | st.lists(yaml_bits, max_size=8).map("".join),
)
def test_any_text_in_the_environment(name, text):
    survives(lambda: resolve({}, None, {f"TRIMTOK_{name.upper()}": text}))


@fuzz
@given(st.lists(yaml_bits, max_size=25).map("".join) | st.binary(max_size=40))
def test_any_yaml(text):
    survives(lambda: from_yaml(text))


@fuzz
@given(
    st.lists(
        st.text(max_size=20)
        | st.lists(yaml_bits, max_size=8).map(lambda bits: "pool=" + "".join(bits)),
        max_size=3,
    )
)
def test_any_parameter(pairs):
    survives(lambda: resolve({"params": parse_params(pairs)}, None, {}))


@fuzz
@given(st.text(max_size=300))
def test_any_name_of_a_file_of_settings(name):
    survives(lambda: resolve({}, name, {}))


@pytest.mark.parametrize("name", ["", " ", "folder", "pipe", "loop", "/dev/null", "/dev/zero"])
def test_what_is_there_but_is_no_file_of_settings_is_called_so(name):
    Path("folder").mkdir()
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    with pytest.raises(UsageError, match=r"is no plain file|must not be empty"):
        resolve({}, name, {})


@pytest.mark.parametrize("text", ["\ud83d", "\udcff", "a\udfff b"])
def test_a_text_that_no_model_can_read_is_refused_before_one_is_loaded(text):
    for flags in ({"prompt": text}, {"system": text}):
        with pytest.raises(UsageError, match="UTF-8"):
            resolve(flags, None, {})
    with pytest.raises(UsageError, match="UTF-8"):
        resolve({}, None, {"TRIMTOK_PROMPT": text})


@pytest.mark.parametrize("key", [1, 1.5, None, True, ""])
def test_a_parameter_whose_name_is_no_text_is_named(key):
    refused(lambda: RunConfig(params={key: 2}), "--param must hold", "which is no text")
