"""Settings from defaults, YAML, environment and flags, each over the one before; their errors."""

import dataclasses
from pathlib import Path

import pytest

from trimtok_cli.bounds import check, facts_of, setting
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import UsageError
from trimtok_cli.models.catalog import ALIASES
from trimtok_cli.pruners.budget import parse_budget
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.resolve import convert, parse_params, resolve
from trimtok_cli.yaml_text import preset_names


def test_each_source_lies_over_the_one_before():
    Path("c.yaml").write_text(
        "keep: 64\nbatch-size: 4\nmethod: dense\nparams: {pool: 0.7, align: cosine}\n"
    )
    environ = {"TRIMTOK_BATCH_SIZE": "8", "TRIMTOK_METHOD": "trimtokenator", "TRIMTOK_SEED": ""}
    config = resolve({"method": "x", "keep": None, "params": {"pool": 0.9}}, "c.yaml", environ)
    assert (config.keep, config.batch_limit, config.method, config.seed) == ("64", 8, "x", 0)
    assert config.params == {"pool": 0.9, "align": "cosine"}
    assert resolve({}, None, {}) == RunConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kep: 64", "did you mean keep"),
        ("batch_size: many", "whole number"),
        ("batch_size: 1.5", "whole number"),
        ("- a", "key: value"),
        ("keep: [1]", "text"),
        ("a: [", "YAML"),
        ("params: 3", "names and values"),
        ("temperature: -1", "--temperature"),
    ],
)
def test_a_value_that_does_not_fit_is_named(text, says):
    Path("c.yaml").write_text(text)
    with pytest.raises(UsageError, match=says):
        resolve({}, "c.yaml", {})


def test_presets_load_by_name_and_each_says_more_than_a_models_name():
    assert preset_names()
    for name in preset_names():
        config = resolve({}, name, {})
        assert build_pruner(config.method, {"keep": config.keep, **config.params}) is not None
        assert config.model == ALIASES.get(name, config.model)
        assert set(config.sources) > {"model"}
        for key in config.sources:
            assert getattr(config, key) != getattr(RunConfig, key), "a default is not said again"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("budget", "fair", "equal, tokens, diversity"),
        ("video_as", "gif", "--video-as"),
        ("frames", 0, "--frames"),
        ("fps", -1, "--fps"),
        ("end", 2, "--end must be later than --start"),
        ("workers", "many", "--workers must be auto"),
        ("workers", -1, "--workers must be auto"),
    ],
)
def test_video_and_budget_settings_are_checked(key, value, says):
    with pytest.raises(UsageError, match=says):
        resolve({key: value, "start": 3 if key == "end" else None}, None, {})


def test_params_are_read_as_yaml():
    assert parse_params(["pool=0.9", "align=cosine", "x=true"]) == {
        "pool": 0.9,
        "align": "cosine",
        "x": True,
    }
    assert parse_params(None) is None
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_params(["pool"])


@pytest.mark.parametrize(
    ("text", "dense", "kept"),
    [
        ("64", 576, 64),
        ("64", 40, 40),
        ("11.1%", 576, 64),
        ("11.1%", 2880, 320),
        ("0.111", 576, 64),
        ("all", 7, 7),
        ("ALL", 7, 7),
        ("100%", 7, 7),
        ("1.0", 7, 7),
        ("1", 7, 1),
        (64, 576, 64),
        (0.5, 3, 2),
        ("50%", 3, 2),
        ("0.0001", 5, 1),
        (".5", 4, 2),
    ],
)
def test_budgets(text, dense, kept):
    assert parse_budget(text).count(dense) == kept


@pytest.mark.parametrize(
    "text", ["0", "-3", "101%", "0%", "1.5", "many", "", "64 tokens", "nan", "0x10", "1e3"]
)
def test_what_is_no_budget(text):
    with pytest.raises(ValueError, match="keep must be a count"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("trimtokenator", {"pool": "abc"}, "of trimtokenator: pool .*, got 'abc'"),
        ("trimtokenator", {"pool": True}, "pool .*, got true"),
        ("trimtokenator", {"align": 3}, "align must be one of .*, got 3"),
        ("trimtokenator", {"pool": [0.5]}, "pool .*, got .0.5."),
        ("prumerge", {"plus": 1}, "true or false"),
        ("fastv", {"layer": "2"}, "layer .*, got '2'"),
        ("fastv", {"layer": 2.5}, "layer .*, got 2.5"),
        ("visionzip", {"contextual": None}, "contextual .*, got nothing"),
        ("trimtokenator", {"pool": 10**30}, "pool"),
        ("trimtokenator", {"k" * 10_000: 1}, "no parameter"),
    ],
)
def test_a_parameter_of_the_wrong_kind_is_said_before_a_model_is_loaded(method, params, says):
    with pytest.raises(UsageError, match=says) as caught:
        build_pruner(method, {"keep": 64, **params})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "name", ["keep", "trimtokenator.keep", "budget", "counts", "seed", "trimtokenator.seed"]
)
def test_a_setting_of_the_run_is_no_parameter(name):
    """Otherwise run.json would record one value while the run uses the other."""
    from trimtok_cli.commands.session import pruning

    with pytest.raises(UsageError, match=r"would overrule --[a-z-]+: use --"):
        pruning(RunConfig(params={name: 3}), "trimtokenator")


def test_a_benchmark_is_read_within_the_same_bounds():
    from trimtok_cli.bench.spec import read_bench

    for text in (
        "rounds: " + "9" * 400,
        "a: &a [*a]",
        "grid: [" * 100,
        "rounds: 2024-01-01",
        "pruner: {keep: 10000000000}",
        "grid: " + "x" * 99_000,
    ):
        Path("b.yaml").write_text(text)
        with pytest.raises(UsageError) as caught:
            read_bench("b.yaml")
        assert len(str(caught.value)) < 500


def test_a_field_of_any_type_is_converted_and_checked():
    """The types go beyond those of RunConfig.

    They include truth values, and numbers that may be left to the checkpoint.
    """

    @dataclasses.dataclass
    class Fields:
        trust: bool = setting(False)
        top_k: int | None = setting(None, least=0)
        share: float | None = setting(None, above=0, most=1)

    trust, top_k, share = dataclasses.fields(Fields)

    def read(wanted, value, where):
        return convert(wanted.type, facts_of(wanted), value, where)

    assert [read(trust, value, "x") for value in ("yes", "False", "1", True)] == [
        True,
        False,
        True,
        True,
    ]
    assert [read(top_k, value, "x") for value in ("3", 3, None, 3.0)] == [3, 3, None, 3]
    assert [read(share, value, "x") for value in ("0.5", 1, None)] == [0.5, 1.0, None]
    for wanted, value in (
        (trust, "maybe"),
        (trust, 1),
        (trust, None),
        (top_k, "-1"),
        (top_k, "none"),
        (top_k, True),
        (share, "nan"),
        (share, 0),
        (share, "2"),
    ):
        with pytest.raises(UsageError, match="x must be"):
            read(wanted, value, "x")
        if not isinstance(value, str):
            with pytest.raises(UsageError, match="x must be"):
                check(wanted.type, facts_of(wanted), value, "x")


@pytest.mark.parametrize(
    ("file", "environ", "flags", "greedy", "temperature"),
    [
        ("temperature: 0.7", {}, {"greedy": True}, True, None),
        ("temperature: 0.7", {"TRIMTOK_GREEDY": "yes"}, {}, True, None),
        ("greedy: true", {}, {"temperature": 0.7}, False, 0.7),
        ("greedy: true", {"TRIMTOK_TEMPERATURE": "0.7"}, {}, False, 0.7),
        ("{}", {"TRIMTOK_TEMPERATURE": "0.7"}, {"greedy": True}, True, None),
        ("greedy: true", {}, {"temperature": 0.0}, True, 0.0),
    ],
)
def test_of_greedy_and_a_temperature_the_nearer_word_holds(
    file, environ, flags, greedy, temperature
):
    Path("c.yaml").write_text(file)
    config = resolve(flags, "c.yaml", environ)
    assert (config.greedy, config.temperature) == (greedy, temperature)
    assert config.sampling.greedy is greedy
    assert set(config.sources) == {
        name for name in ("greedy", "temperature") if getattr(config, name) or name in flags
    }


@pytest.mark.parametrize("place", ["file", "environment", "flags"])
def test_greedy_and_a_temperature_of_one_place_contradict_each_other(place):
    Path("c.yaml").write_text("greedy: true\ntemperature: 0.7" if place == "file" else "{}")
    environ = {"TRIMTOK_GREEDY": "1", "TRIMTOK_TEMPERATURE": "1"} if place == "environment" else {}
    with pytest.raises(UsageError, match="contradict"):
        resolve({"greedy": True, "temperature": 1.0} if place == "flags" else {}, "c.yaml", environ)
