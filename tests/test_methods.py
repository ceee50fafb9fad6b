"""Every method on every family: counts obey the budget, the same twice, batch as singles, dense bit-equal afterwards."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.conftest import picture
from tests.families import FAMILIES
from tests.test_cli import rows, run
from trimtok_cli.data import Sample
from trimtok_cli.decoding import generate
from trimtok_cli.engine import Encoded, encode, finish
from trimtok_cli.errors import UsageError
from trimtok_cli.models import load_model
from trimtok_cli.prepare import Ask, prepare
from trimtok_cli.pruners import PRUNERS, build_pruner

METHODS = [name for name, kind in PRUNERS.items() if kind]


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request, tmp_path_factory):
    build = {"llava": tiny.llava, **FAMILIES}[request.param]
    return load_model(str(build(tmp_path_factory.mktemp("methods") / request.param)), device="cpu")


def samples(tmp_path):
    found = []
    for number, sizes in enumerate((((150, 60),), ((100, 80), (60, 90)), ())):
        paths = []
        for i, size in enumerate(sizes):
            paths.append(tmp_path / f"{number}-{i}.png")
            picture(10 * number + i, *size).save(paths[-1])
        found.append(Sample(number, tuple(paths), question="What is to the left of it, and why?"))
    return found


def answers(adapter, pruner, given, ask):
    batch = encode(adapter, [prepare(adapter.preprocessor, sample, ask) for sample in given])
    return finish(adapter, pruner, batch, ask)


@pytest.mark.parametrize("method", METHODS)
def test_invariants(family, method, tmp_path):
    given, ask = samples(tmp_path), Ask(max_new_tokens=3)
    inputs = prepare(family, given[0], ask).inputs
    prompt = family.embed(inputs, family.encode_many([inputs])[0])
    dense = generate(family, [prompt], max_new_tokens=3, stop=False, keep_logits=True)[0][0].logits
    pruner = build_pruner(method, {"keep": 4, "seed": 1})
    try:
        together = answers(family, pruner, given, ask)
    except UsageError as error:
        assert method in str(error) and len(str(error)) < 300
        return
    alone = [answers(family, pruner, [sample], ask)[0] for sample in given]
    for one, other, sample in zip(together, alone, given, strict=True):
        assert (one.answer, one.kept, one.tokens) == (other.answer, other.kept, other.tokens), (
            "batch and singles, and the same twice"
        )
        budget = 0 if method == "vtw" else 4 * len(sample.images)
        assert one.tokens.kept == len(one.kept[-1].tokens) == budget, (method, one.tokens)
        for stage in one.kept:
            assert list(stage.tokens) == sorted(set(stage.tokens))
        assert one.tokens.visual >= one.tokens.layer_mean >= one.tokens.kept
    again = generate(family, [prompt], max_new_tokens=3, stop=False, keep_logits=True)[0][0].logits
    assert torch.equal(dense, again)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_reads_nothing_of_the_tower_needs_nothing_noted(family, method, tmp_path):
    """Without taps the same tokens stay, unless the method says that it reads the tower: then it asks in vain."""
    ask, pruner = Ask(max_new_tokens=2), build_pruner(method, {"keep": 4, "seed": 1})
    prepared = [prepare(family, sample, ask) for sample in samples(tmp_path)]
    with torch.inference_mode():
        tokens = family.encode_many([each.inputs for each in prepared], taps=False)
        prompts = [family.embed(each.inputs, visual) for each, visual in zip(prepared, tokens, strict=True)]
    bare, whole = Encoded(prepared, tokens, prompts, 0.0), encode(family, prepared)
    if pruner.reads_tower:
        with pytest.raises(UsageError):
            finish(family, pruner, bare, ask)
        return
    for one, other in zip(finish(family, pruner, bare, ask), finish(family, pruner, whole, ask), strict=True):
        assert (one.kept, one.answer) == (other.kept, other.answer)


@pytest.mark.parametrize("method", METHODS)
def test_known_on_the_command_line(method, llava_folder, pictures):
    assert method in run("methods", "--plain").stdout
    given = ["--param", "text=llm"] if method == "cdpruner" else []
    run(
        "caption",
        pictures[0],
        "-m",
        llava_folder,
        "--method",
        method,
        "--keep",
        12,
        "--max-new-tokens",
        2,
        "-o",
        "o.jsonl",
        *given,
    )


def test_compare_all_runs_every_method_in_one_process(llava_folder, pictures):
    done = run(
        "compare", pictures[0], "-m", llava_folder, "--methods", "all", "--keep", 12, "--max-new-tokens", 2, "-o", "out", code=3
    )
    assert all(method in done.stderr for method in METHODS)
    (row,) = rows(Path("out/compare.jsonl"))
    failed = {one["method"]: one["metadata"]["error"] for one in row["runs"] if one["metadata"]["error"]}
    assert list(failed) == ["cdpruner"] and "text=llm" in failed["cdpruner"]
