"""Every method on every family on which it runs is held to what every method promises."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.commands.test_cli import rows, run
from tests.conftest import picture
from tests.pruners.test_suits import ALONE, KINDS, RUNS, SETTINGS, pruner_of
from tests.support.generating import finish, generate
from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import encode
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.order import numbered
from trimtok_cli.errors import UsageError
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.registry import PRUNERS
from trimtok_cli.tokens import Selection

METHODS = [name for name, kind in PRUNERS.items() if kind]
ADDS = (
    "prumerge",
    "prumerge adaptive",
    "sparsevlm",
    "visionzip with cls",
)  # tokens of their own, which are of no image
CELLS = [
    (kind, setting) for kind, setting in RUNS if setting != "tome by r"
]  # in which keep has no say: tests/pruners/test_tome.py
ASK = Ask(max_new_tokens=2)


@pytest.fixture(scope="module", params=KINDS)
def family(request, tmp_path_factory):
    return load_model(
        str(KINDS[request.param](tmp_path_factory.mktemp("methods") / request.param)), device="cpu"
    )


@pytest.fixture(scope="module")
def batch(family, tmp_path_factory) -> list[Encoded]:
    """One image, two, and none."""
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for number, sizes in enumerate((((150, 60),), ((100, 80), (60, 90)), ())):
        paths = [folder / f"{number}-{i}.png" for i in range(len(sizes))]
        for i, size in enumerate(sizes):
            picture(10 * number + i, *size).save(paths[i])
        found.append(Sample(number, tuple(paths), question="What is to the left of it, and why?"))
    prepared = (prepare(family.preprocessor, sample, ASK) for sample in found)
    return encode(family, list(numbered(prepared, ASK, seeds=False)))


def part(batch: list[Encoded], *numbers: int, **changes) -> list[Encoded]:
    """Some samples of a batch, their prompts changed."""
    chosen = [batch[number] for number in numbers]
    return [replace(each, prompt=replace(each.prompt, **changes)) for each in chosen]


def budget_of(setting: str) -> int:
    return 12 if setting == "tome" else 4  # few layers cannot merge down to less


def left_of(setting: str, count: int) -> int:
    return 0 if setting == "vtw" else count


def logits(adapter, batch: list[Encoded]) -> torch.Tensor:
    return generate(adapter, [batch[0].prompt], max_new_tokens=3, stop=False, keep_logits=True)[0][
        0
    ].logits


def hooks(adapter) -> list[tuple[int, int]]:
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in adapter.model.modules()
    ]


def kept_by(family, pruner, batch: list[Encoded]) -> list[tuple]:
    return [(one.kept, one.answer, one.tokens) for one in finish(family, pruner, batch, ASK)]


@pytest.fixture
def numbers(request) -> tuple[int, ...]:
    """The samples of the batch that a cell runs on."""
    kind, setting = (request.node.callspec.params[name] for name in ("family", "setting"))
    return (0, 2) if kind in ALONE and pruner_of(setting).signals else (0, 1, 2)


def test_every_cell_that_runs_is_held_to_what_every_method_promises():
    assert len(CELLS) == len(set(CELLS)) == 187 and {setting for _, setting in CELLS} == set(
        SETTINGS
    ) - {"cdpruner", "tome by r"}


@pytest.mark.parametrize(("family", "setting"), CELLS, indirect=["family"])
def test_invariants(family, setting, batch, numbers):
    """Counts obey keep, numbers ascend within range, a batch is its singles, the same twice, and
    nothing is left behind.
    """
    budget, pruner, given = (
        budget_of(setting),
        pruner_of(setting, budget_of(setting)),
        part(batch, *numbers),
    )
    before = repr(vars(pruner)), hooks(family), logits(family, batch)
    together = finish(family, pruner, given, ASK)
    assert len(together) == len(numbers) > 1
    for number, one in zip(numbers, together, strict=True):
        images, tokens = (1, 2, 0)[number], batch[number].tokens
        assert [(one.kept, one.answer, one.tokens)] == kept_by(
            family, pruner, part(batch, number)
        ), "batch and singles, and twice"
        assert one.tokens.kept == len(one.kept[-1].tokens) == left_of(setting, budget * images)
        assert one.tokens.visual == len(tokens) >= one.tokens.layer_mean >= one.tokens.kept
        for stage in one.kept:
            assert list(stage.tokens) == sorted(set(stage.tokens))
            added = images * len(one.kept) if setting in ADDS else 0
            assert all(0 <= token < len(tokens) + added for token in stage.tokens)
        for image in range(images if setting not in ADDS else 0):
            own = [token for token in one.kept[-1].tokens if tokens.visual_index[token] == image]
            assert len(own) == left_of(setting, budget), "each image has a budget of its own"
    assert (repr(vars(pruner)), hooks(family)) == before[:2] and torch.equal(
        before[2], logits(family, batch)
    )


@pytest.mark.parametrize(("family", "setting"), CELLS, indirect=["family"])
def test_invariants_at_the_edges(family, setting, batch, numbers):
    """More is allowed than there is; one token alone; tokens that are all the same."""
    images = len(numbers) - 1
    number = images - 1  # the sample of the most images
    budget, prompt, count = budget_of(setting), batch[number].prompt, len(batch[number].tokens)
    (much,) = finish(family, pruner_of(setting, 10_000), part(batch, number), ASK)
    assert much.kept[0].tokens == tuple(range(count)) and much.tokens.kept == left_of(
        setting, count
    )
    lone = prompt.reduced(Selection(torch.tensor([1])), num_dense=count, renumber=family.renumbers)
    (one,) = finish(family, pruner_of(setting, budget), [replace(batch[number], prompt=lone)], ASK)
    assert one.kept[0].tokens == (1,) and one.kept[-1].tokens == (1,) * left_of(setting, 1)
    embeds = prompt.embeds.index_copy(
        0, prompt.visual, prompt.embeds[prompt.visual[:1]].expand(count, -1)
    )
    (same,) = finish(family, pruner_of(setting, budget), part(batch, number, embeds=embeds), ASK)
    assert len(same.kept[-1].tokens) == left_of(setting, images * budget)
    assert all(list(stage.tokens) == sorted(set(stage.tokens)) for stage in same.kept)


@torch.inference_mode()
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_method_that_reads_nothing_of_the_tower_needs_nothing_noted(family, setting, batch):
    """Without taps the same tokens stay, unless the method says that it reads the tower: then it
    asks in vain.
    """
    pruner = pruner_of(setting, budget_of(setting))
    tokens = family.encode_many([each.prepared.inputs for each in batch], signals=False)
    bare = [
        replace(each, tokens=visual, prompt=family.embed(each.prepared.inputs, visual))
        for each, visual in zip(batch, tokens, strict=True)
    ]
    if pruner.signals:
        with pytest.raises(UsageError):
            finish(family, pruner, bare, ASK)
    else:
        assert kept_by(family, pruner, bare) == kept_by(family, pruner, batch)


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
        "compare",
        pictures[0],
        "-m",
        llava_folder,
        "--methods",
        "all",
        "--keep",
        12,
        "--max-new-tokens",
        2,
        "-o",
        "out",
        code=3,
    )
    assert all(method in done.stderr for method in METHODS)
    (row,) = rows(Path("out/compare.jsonl"))
    failed = {
        one["method"]: one["metadata"]["error"] for one in row["runs"] if one["metadata"]["error"]
    }
    assert list(failed) == ["cdpruner"] and "text=llm" in failed["cdpruner"]
