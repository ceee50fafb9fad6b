"""A setting is defined once: its field in RunConfig is the option, the variable and the YAML key.

Every record that carries the setting refuses the values that the field refuses.
"""

import dataclasses
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from trimtok_cli.bench.spec import Bench
from trimtok_cli.bounds import facts_of, flag, kinds_of, setting
from trimtok_cli.cli import app
from trimtok_cli.commands.options import RunOptions, method_names, settings
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.config import ANSWERS, PANELS, RunConfig
from trimtok_cli.data import FrameRule
from trimtok_cli.device import pick_dtype
from trimtok_cli.errors import UsageError
from trimtok_cli.media.frames import DECODER_PACKAGES
from trimtok_cli.models.catalog import ALIASES
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import PRUNERS, SHARED, build_pruner
from trimtok_cli.resolve import build
from trimtok_cli.sampling import Sampling
from trimtok_cli.yaml_text import preset_names

ROOT = Path(__file__).parents[2]
FIELDS = {field.name: field for field in dataclasses.fields(RunConfig) if field.init}


@dataclass(frozen=True)
class Painted(RunConfig):
    """RunConfig with one more setting."""

    wall_colour: str = setting(
        "grey", "What the wall is painted.", panel=ANSWERS, choices=("grey", "red", "blue")
    )


def painted() -> typer.Typer:
    """A program with one command, which prints the colour and its source."""

    @guarded
    @settings(without=("prompt",), instead={"keep": {"help": "How much."}})
    def paint(config: Painted, options: RunOptions) -> int:
        colour = f"{config.wall_colour} by {config.sources.get('wall_colour', 'default')}"
        typer.echo(f"{colour}; keep {config.keep}; quiet {options.quiet}")
        return 0

    program = typer.Typer()
    program.command()(paint)
    return program


def test_one_field_is_an_option_an_environment_variable_and_a_key_of_yaml(monkeypatch):
    def said(*args, code=0):
        done = CliRunner().invoke(painted(), args, env={"COLUMNS": "100"})
        assert done.exit_code == code, done.output
        return " ".join((done.stdout if code == 0 else done.stderr).split())

    assert said() == "grey by default; keep 11.1%; quiet False"
    assert said("--wall-colour", "red", "-q", "-k", "7") == "red by flag; keep 7; quiet True"
    Path("c.yaml").write_text("wall-colour: blue\nkeep: 9")
    assert said("-c", "c.yaml") == "blue by config file; keep 9; quiet False"
    monkeypatch.setenv("TRIMTOK_WALL_COLOUR", "red")
    assert said("-c", "c.yaml") == "red by environment; keep 9; quiet False"
    assert said("-c", "c.yaml", "--wall-colour", "grey").startswith("grey by flag")
    told = said("--help")
    assert "--wall-colour" in told and "What the wall is painted." in told and "(grey)" in told
    assert "How much." in told and "--prompt" not in told
    assert "must be one of grey, red, blue, got 'redd' (did you mean red?)" in said(
        "--wall-colour", "redd", code=2
    )
    monkeypatch.setenv("TRIMTOK_WALL_COLOUR", "rot")
    assert "TRIMTOK_WALL_COLOUR must be one of grey" in said(code=2)
    with pytest.raises(UsageError, match="--wall-colour must be one of"):
        Painted(wall_colour="rot")


def test_every_setting_has_its_words_and_stands_in_a_panel():
    for name, field in FIELDS.items():
        facts = facts_of(field)
        assert facts.help.endswith(".") and facts.panel in PANELS, name
        assert all(choice in facts.help for choice in facts.choices), name
    order = [PANELS.index(facts_of(field).panel) for field in FIELDS.values()]
    assert order == sorted(order), "fields stand as --help shows them"
    assert len({flag(field) for field in FIELDS.values()}) == len(FIELDS)


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("caption", set()),
        ("check", set()),
        ("vqa", {"prompt"}),
        ("compare", {"engine", "vllm_args", "batch_size", "decode", "workers"}),
    ],
)
def test_a_command_that_runs_a_model_has_every_setting_but_those_it_names(command, without):
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    words = done.stdout.replace(",", " ").split()
    spelled = {
        name: (facts_of(field).flags or (flag(field),))[-1].split("/")[0]
        for name, field in FIELDS.items()
    }
    assert {name for name, word in spelled.items() if word not in words} == without


@pytest.mark.parametrize("command", ["caption", "vqa", "check", "compare", "bench", "methods"])
def test_panels_stand_in_one_order_in_every_help(command):
    told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"}).stdout
    found = [panel for line in told.split("\n") for panel in PANELS if f" {panel} ───" in line]
    assert len(found) > 2 and found == [panel for panel in PANELS if panel in found]


def test_a_setting_of_a_benchmark_is_one_of_a_run_too():
    for name in ("device", "dtype", "seed"):
        mine, runs = (
            next(field for field in dataclasses.fields(record) if field.name == name)
            for record in (Bench, RunConfig)
        )
        assert mine.default == runs.default
        assert dataclasses.replace(facts_of(mine), most=facts_of(runs).most) == facts_of(runs)
    for asked, says in (({"dtype": "float12"}, "b: dtype"), ({"seed": 10**10}, "b: seed")):
        with pytest.raises(UsageError, match=f"{says} must be"):
            build(Bench, asked, "b")


# Every record refuses the same values.


def by(call, name):
    return lambda value: call(**{name: value})


def load(**given):
    load_model(**({"model": "./nowhere"} | given))


def build_every(**given):
    for method in PRUNERS:
        with pytest.raises(UsageError):
            build_pruner(method, {"keep": 8, **given})
    build_pruner("dense", given)


RECORDS = {
    facts_of(field).name or field.name: by(record, field.name)
    for record in (Sampling, FrameRule, Ask)
    for field in dataclasses.fields(record)
    if "facts" in field.metadata
}
LOADING = ("model", "device", "dtype", "revision", "clip_text", "trust_remote_code")
CARRIED = (
    RECORDS
    | {name: by(load, name) for name in LOADING}
    | {name: by(build_every, own) for own, name in SHARED.items()}
)
# Only RunConfig carries these settings.
ALONE = {"engine", "keep", "method", "params", "batch_size", "workers", "limit", "input_format"}
ALONE |= {"allow_urls", "vllm_args"}


def refused(field: dataclasses.Field) -> list:
    """Values that a setting refuses: wrong types, odd numbers, and values out of its bounds."""
    facts, kinds = facts_of(field), kinds_of(field.type)
    values = [["a"], {"a": 1}, b"a", object()]
    if bool in kinds:
        return [*values, 1, 0.0, "yes"]
    if kinds == (str,):
        return [*values, 3, True, "a\0b", *(["fair", "Auto", ""] if facts.choices else [])]
    values += [True, "many", math.nan, math.inf, -math.inf, *([1.5] if int in kinds else [])]
    values += [facts.least - 1] if facts.least is not None else [facts.above, facts.above - 1]
    return [*values, facts.most + 1, facts.most * 10]


def test_every_setting_is_carried_by_a_record_or_known_to_be_alone():
    assert CARRIED.keys() | ALONE == FIELDS.keys() and not CARRIED.keys() & ALONE


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("params", "vllm_args")])
def test_what_a_setting_refuses_every_record_that_carries_it_refuses(name):
    said = rf"{flag(FIELDS[name])} |{name.removeprefix('budget_')} must be"
    values = refused(FIELDS[name])
    assert values
    for value in values:
        with pytest.raises(UsageError, match=said):
            RunConfig(**{name: value})
        if name in CARRIED:
            with pytest.raises(UsageError, match=said):
                CARRIED[name](value)


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_setting_takes_at_its_bounds_every_record_takes(name):
    facts = facts_of(FIELDS[name])
    values = {*facts.choices, facts.least, facts.most} - {None}
    # FrameRule has None instead of 0.
    values -= {0} if name in ("fps", "end") else set()
    assert all(RECORDS[name](value) is not None for value in values)


def test_choices_are_what_is_there_to_choose_from():
    from trimtok_cli.engine.loops import LOOPS
    from trimtok_cli.pruners.base import BUDGETS
    from trimtok_cli.pruners.layerwise import COUNTS

    for name, there in {
        "budget": BUDGETS,
        "budget_counts": COUNTS,
        "decode": LOOPS,
        "video_backend": ("auto", *DECODER_PACKAGES),
    }.items():
        assert facts_of(FIELDS[name]).choices == tuple(there), name
    for name in facts_of(FIELDS["dtype"]).choices[1:]:
        assert str(pick_dtype(name, torch.device("cpu"))) == f"torch.{name}"


# Completion in a shell.


def completed(line: str) -> list[str]:
    words = line.split(" ")
    environ = {"_TRIMTOK_COMPLETE": "complete_bash", "COMP_WORDS": line}
    done = CliRunner().invoke(
        app, [], env=environ | {"COMP_CWORD": str(len(words) - 1)}, prog_name="trimtok"
    )
    return done.stdout.split()


def test_a_shell_is_told_what_an_option_takes():
    for field in FIELDS.values():
        if choices := facts_of(field).choices:
            assert completed(f"trimtok caption {flag(field)} ") == list(choices)
    assert completed("trimtok vqa --method tri") == ["trimtokenator"]
    assert completed("trimtok caption -m llava-1.5") == ["llava-1.5-7b", "llava-1.5-13b"]
    assert completed("trimtok compare --methods fastv,v") == [
        f"fastv,{name}" for name in PRUNERS if name.startswith("v")
    ]
    assert completed("trimtok caption --config ") == preset_names()
    assert completed("trimtok bench t") == ["table4"]
    assert set(completed("trimtok methods --model ")) == set(ALIASES)


def test_the_names_that_a_shell_is_told_are_the_registrys():
    assert sorted(method_names()) == sorted(PRUNERS)


def test_completion_does_not_wait_for_torch():
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from trimtok_cli.cli import app\napp(prog_name='trimtok')"
    )
    environ = {
        "_TRIMTOK_COMPLETE": "complete_bash",
        "COMP_WORDS": "trimtok caption --method div",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environ,
    )
    assert done.stdout.split() == ["divprune", "divprune-star"]
    assert done.stderr.strip() == "False"
