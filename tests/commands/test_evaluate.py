"""trimtok evaluate: cells are runs, an interrupted grid ends with the same table, bad grids end early."""

import json
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import picture
from tests.support.stub_engine import Died, Disk
from trimtok_cli.cli import app
from trimtok_cli.commands import grid_cells, grid_plan, run
from trimtok_cli.outputs.grid_files import NAMES
from trimtok_cli.yaml_text import PRESETS, preset_names

ROOT = Path(__file__).parents[2]

GRID = """
title: Small
models: MODEL
datasets:
  - {name: jsonl, data: one.jsonl, label: one, max_new_tokens: 3}
  - {name: jsonl, data: two.jsonl, label: two, max_new_tokens: 2}
methods:
  - uniform
  - {method: random, keep: [4]}
  - {method: trimtokenator, keep: [4], params: {pool: 0.9}, label: ours}
  - {method: fastv, keep: [9]}
keep: [9, 4]
seeds: [0, 1]
budget_counts: [final, layer-mean]
reference: uniform
batch_size: 2
device: cpu
published: {source: a paper, rows: {ours@4: {one: 12.5}}}
"""

SMALL = """
models: MODEL
datasets: {name: jsonl, data: one.jsonl, label: one, max_new_tokens: 3}
methods: uniform
keep: 4
batch_size: 2
device: cpu
"""


def write_grid(text: str, model: Path, pictures: Sequence[Path]) -> Path:
    """The grid in this folder with its two files of questions; one picture has two questions."""
    for name, chosen in (("one", pictures[:4]), ("two", pictures[2:5])):
        rows = [
            {"question_id": n, "image": f"pictures/{path.name}", "text": f"What {n}?"}
            for n, path in enumerate([chosen[0], *chosen])
        ]
        lines = [json.dumps({**row, "answers": ["a dog"], "task": "t"}) for row in rows]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    Path("grid.yaml").write_text(text.replace("MODEL", str(model)))
    return Path("grid.yaml")


@pytest.fixture
def grid(llava_folder, pictures) -> Path:
    return write_grid(GRID, llava_folder, pictures)


@pytest.fixture
def small(llava_folder, pictures) -> Path:
    return write_grid(SMALL, llava_folder, pictures)


def evaluate(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert done.exit_code == code, (done.stderr, done.exception)
    return done


def lasting(value: object) -> object:
    """A document without what differs between two runs: times."""
    if isinstance(value, dict):
        return {name: lasting(each) for name, each in value.items() if name not in ("ms", "made")}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def table(out: str = "o") -> dict:
    return json.loads(Path(out, "table.json").read_text())


def lines(out: str = "o") -> dict[str, list[tuple]]:
    """The answers of every cell: ids, texts and kept tokens."""
    return {
        str(path.relative_to(out)): [
            (row["question_id"], row["text"], row["metadata"]["visual"]["kept"])
            for row in map(json.loads, path.read_text().splitlines())
        ]
        for path in sorted(Path(out).rglob("answers.jsonl"))
    }


@pytest.fixture(scope="module")
def whole(llava_folder, tmp_path_factory) -> tuple[dict, dict, Path]:
    """The table, the answers and the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "pictures").mkdir()
    paths = [folder / "pictures" / f"p{number}.png" for number in range(1, 8)]
    for number, path in enumerate(paths):
        picture(number, 60 + 17 * number, 140 - 13 * number).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        evaluate(write_grid(GRID, llava_folder, paths), "-o", "o", "-q")
        return lasting(table()), lines(), folder


def test_a_grid_has_a_run_for_every_cell_and_seed(whole):
    document, answers, _ = whole
    (model,) = {Path(name).parts[0] for name in answers}
    folders = sorted(
        str(Path(name).parent.relative_to(f"{model}/one")) for name in answers if "/one/" in name
    )
    assert [each.split("-")[0] for each in folders] == [
        "dense",
        "fastv@9",
        "fastv@9_counts=layer",
        "random@4",
        "random@4_seed=1",
        "trimtokenator@4_pool=0.9",
        "uniform@4",
        "uniform@9",
    ]
    assert {len(rows) for name, rows in answers.items() if "/one/" in name} == {5}
    assert [row["label"] for row in document["rows"]] == [
        "dense",
        "uniform",
        "uniform",
        "random",
        "ours",
        "fastv",
        "fastv",
    ]
    kept = {row["setting"]: row["kept"] for row in document["rows"]}
    assert kept["dense"] > 9 and (kept["uniform@4"], kept["random@4"]) == (4, 4)
    levels = {row["setting"]: row["layer_mean"] for row in document["rows"]}
    assert levels["fastv@9"] > 10 > levels["fastv@9 counts=layer-mean"]
    ours = document["rows"][4]["cells"]
    assert ours["one"]["published"] == 12.5 and ours["one"]["device"] == "cpu"
    assert ours["two"]["against_reference"]["setting"] == "uniform@4"
    assert document["columns"]["one"] | {} == {
        "dataset": "jsonl",
        "title": "rows with answers",
        "metric": "accuracy",
        "samples": 5,
        "pictures": 4,
    }
    assert [(block["keep"], block["counts"]) for block in document["blocks"]] == [
        ("", "final"),
        ("9", "final"),
        ("4", "final"),
        ("9", "layer-mean"),
    ]


def test_the_scores_are_those_of_the_answers(whole, monkeypatch):
    """trimtok's own scorer reads the same files."""
    document, answers, folder = whole
    monkeypatch.chdir(folder)
    (name,) = [each for each in answers if each.endswith("one/uniform@4/answers.jsonl")]
    done = CliRunner().invoke(
        app, ["score", f"o/{name}", "--dataset", "jsonl", "--data", "one.jsonl", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    row = next(each for each in document["rows"] if each["setting"] == "uniform@4")
    assert f'"accuracy": {row["cells"]["one"]["score"]}' in done.stdout
    near = row["cells"]["one"]["values"]["anls"]
    assert json.loads(done.stdout) and f'"anls": {round(near, 2):g}'[:10] in done.stdout


@pytest.mark.parametrize("after", [3, 33])
def test_a_grid_that_was_interrupted_ends_with_the_same_table(after, whole, grid, monkeypatch):
    from trimtok_cli.engine import stream

    real, left = stream.answer_all, [after]

    def answer_all(*given, **named):
        for result in real(*given, **named):
            if not left[0]:
                raise Died
            left[0] -= 1
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(stream, "answer_all", answer_all)
        with pytest.raises(Died):
            CliRunner().invoke(app, ["evaluate", str(grid), "-o", "o", "-q"])
    written = sum(map(len, lines().values()))
    assert written <= after + 1 < sum(map(len, whole[1].values()))
    assert not Path("o/table.json").exists()
    evaluate(grid, "-o", "o", "-q")
    assert (lasting(table()), lines()) == whole[:2]
    assert sorted(path.name for path in Path("o").glob("table.*")) == sorted(NAMES)


@pytest.mark.parametrize("size", [1, 3])
def test_a_grid_in_parts_is_the_grid_in_one(size, whole, grid, monkeypatch):
    """Each part of the pictures is answered by all settings, and each picture encoded once."""
    from trimtok_cli.models.adapter import Adapter

    encoded, real = [], Adapter.encode_many

    def encode_many(self, batch, **options):
        encoded.extend(batch)
        return real(self, batch, **options)

    monkeypatch.setattr(grid_cells, "PART", size)
    monkeypatch.setattr(Adapter, "encode_many", encode_many)
    done = evaluate(grid, "-o", "o")
    assert (lasting(table()), lines()) == whole[:2]
    assert len(encoded) == 5  # pictures, of ten questions in eight runs each
    said = [line for line in done.stderr.splitlines() if line.endswith(" questions")]
    shares = [line.rpartition(", ")[2] for line in said if "/dense, " in line and "/one/" in line]
    assert shares[-1] == "5 of 5 questions" and len(shares) == -(-5 // size)
    evaluate(grid, "-o", "o", "-q")
    assert (lasting(table()), lines()) == whole[:2] and len(encoded) == 5


def test_a_part_leaves_what_was_answered_beyond_it(whole, grid, monkeypatch):
    """A grid that was begun cell by cell goes on in parts."""
    evaluate(grid, "-o", "o", "-q", "--limit", 3)
    cell = next(Path("o").glob("*/one/uniform@4"))
    config = json.loads((cell / "run.json").read_text())["config"]
    assert config["limit"] == 3
    monkeypatch.setattr(grid_cells, "PART", 1)
    evaluate(grid, "-o", "o", "-q")
    assert (lasting(table()), lines()) == whole[:2]


def test_parts_hold_every_question_about_their_pictures():
    from trimtok_cli.data import Sample

    class Column:
        def __init__(self, folder, pictures):
            self.folder = folder
            self.samples = [Sample(n, (Path(each),)) for n, each in enumerate(pictures)]

    columns = [Column("one", "aabbcd"), Column("two", "xbca"), Column("one", "aabbcd")]
    found = [
        [(column.folder, "".join(str(each.images[0]) for each in due)) for column, due in part]
        for part in grid_cells.parts(columns, 2)
    ]
    assert found == [
        [("one", "aa"), ("two", "xa")],
        [("one", "aabbc"), ("two", "xbca")],
        [("one", "aabbcd"), ("two", "xbca")],
    ]
    ((first, second),) = grid_cells.parts(columns, None)
    assert [len(first[1]), len(second[1])] == [6, 4]


def test_a_grid_that_is_over_loads_no_model(whole, monkeypatch):
    monkeypatch.setattr(grid_cells, "load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.chdir(whole[2])
    evaluate("grid.yaml", "-o", "o", "-q")
    assert (lasting(table()), lines()) == whole[:2]


def test_a_table_that_was_not_written_to_its_end_is_written_anew(small, monkeypatch):
    """The process dies at every third call that changes the disk, once the answers are there."""
    monkeypatch.setattr("time.strftime", lambda *_: "now")
    evaluate(small, "-o", "o", "-q")
    expected = {name: Path("o", name).read_bytes() for name in NAMES}
    for n in count(1, 3):
        for name in NAMES:
            Path("o", name).unlink(missing_ok=True)
        disk = Disk(n, half=n % 2 == 1)
        with disk.in_place(), suppress(Died):
            CliRunner().invoke(app, ["evaluate", str(small), "-o", "o", "-q"])
        if not disk.dead:
            break
        evaluate(small, "-o", "o", "-q")
        assert {name: Path("o", name).read_bytes() for name in NAMES} == expected, n
    assert n > 4 * len(NAMES) and sorted(path.name for path in Path("o").glob(".*")) == []


def test_one_model_is_loaded_once_and_more_samples_are_a_run_that_goes_on(small, monkeypatch):
    loaded, real = [], grid_cells.load

    def load(config, screen, meanwhile=None):
        loaded.append(config.model)
        return real(config, screen, meanwhile)

    monkeypatch.setattr(grid_cells, "load", load)
    monkeypatch.setattr(run, "load", load)
    evaluate(small, "-o", "o", "-q", "--limit", 2)
    assert len(loaded) == 1 and [len(rows) for rows in lines().values()] == [2, 2]
    evaluate(small, "-o", "o", "-q", "--table-only", code=3)
    dense = table()["rows"][0]["cells"]["one"]
    assert (dense["answered"], dense["samples"]) == (2, 5) and len(loaded) == 1
    assert "(2 of 5)" in Path("o/table.md").read_text()
    evaluate(small, "-o", "o", "-q", "--limit", 3)
    assert len(loaded) == 2 and [len(rows) for rows in lines().values()] == [3, 3]
    small.write_text(small.read_text().replace("max_new_tokens: 3", "max_new_tokens: 1"))
    done = evaluate(small, "-o", "o", "-q", "--limit", 3, code=2)
    assert "--max-new-tokens was 3 and is 1" in done.stderr


def test_a_method_that_cannot_run_on_the_model_leaves_its_cells_empty(small):
    methods = "methods: [uniform, {method: fastv, params: {layer: 99}}]"
    small.write_text(small.read_text().replace("methods: uniform", methods))
    done = evaluate(small, "-o", "o", "--limit", 2, code=3)
    assert done.stderr.count("left out: fastv: layer") == 1
    rows = {row["setting"]: row["cells"]["one"] for row in table()["rows"]}
    assert rows["fastv@4 layer=99"]["score"] is None and rows["uniform@4"]["score"] is not None
    assert "has no score: fastv: layer" in Path("o/table.md").read_text()
    assert not [name for name in lines() if "fastv" in name]


def test_a_budget_out_of_reach_costs_a_few_samples_and_says_so(small):
    changed = small.read_text().replace(
        "methods: uniform", "methods: fastv\nbudget_counts: layer-mean"
    )
    small.write_text(changed.replace("keep: 4", "keep: 1"))
    for _ in range(2):
        evaluate(small, "-o", "o", "-q", code=3)
        (found,) = [rows for name, rows in lines().items() if "fastv@1_counts" in name]
        assert len(found) == grid_cells.TRIED
    (row,) = [each for each in table()["rows"] if "counts=layer-mean" in each["setting"]]
    assert "out of reach" in row["cells"]["one"]["error"] and row["kept"] is None


def test_a_method_that_keeps_nothing_reaches_its_budget(small):
    """VTW's tokens all leave; their mean over layers is the budget."""
    changed = small.read_text().replace(
        "methods: uniform", "methods: vtw\nbudget_counts: layer-mean"
    )
    small.write_text(changed.replace("keep: 4", "keep: 50%"))
    done = evaluate(small, "-o", "o")
    assert "left out" not in done.stderr
    _, row = table()["rows"]
    assert row["kept"] == 0 and row["layer_mean"] > 0
    assert row["cells"]["one"]["answered"] == 5 and row["cells"]["one"]["score"] is not None


def test_failed_samples_count_as_wrong_and_are_named(small, pictures):
    pictures[0].write_bytes(b"no picture")
    evaluate(small, "-o", "o", "-q", code=3)
    dense = table()["rows"][0]["cells"]["one"]
    assert (dense["answered"], dense["failed"]) == (5, 2)
    assert "dense: 2 answers failed, and count as wrong" in Path("o/table.md").read_text()


REFUSED = {
    "datasets:": ("data_sets:", "unknown key"),
    "models: MODEL": ("models: []", "names no models"),
    "models: MODEL ": ("models: ./nowhere", "./nowhere"),
    "data: one.jsonl": ("data: none.jsonl", "one: --data"),
    "name: jsonl": ("name: jsonll", "did you mean jsonl?"),
    "label: two ": ("label: one", "two columns are called one"),
    "- uniform": ("- uniform\n  - unifrom", "did you mean uniform?"),
    "reference: uniform": ("reference: divprune", "reference divprune is no method"),
    "pool: 0.9": ("pol: 0.9", "has no parameter 'pol'"),
    "keep: [9, 4]": ("keep: [9, none]", "--keep"),
    "batch_size: 2": ("batch_size: 0", "batch_size"),
    "device: cpu": ("settings: {keep: 3}", "stands in the grid itself"),
    "device: cpu ": ("settings: {kep: 3}", "unknown key"),
    "label: two": ("label: two, metric: accuracyy", "did you mean accuracy?"),
    "{one: 12.5}": ("{three: 12.5}", "published figures of ours@4"),
    "seeds: [0, 1]": ("seeds: [-1]", "seeds"),
}


@pytest.mark.parametrize("part", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_loaded(part, grid, llava_folder, monkeypatch):
    monkeypatch.setattr(grid_cells, "load", lambda *_: pytest.fail("a model was loaded"))
    text = GRID.replace(part.strip(), REFUSED[part][0])
    assert text != GRID
    grid.write_text(text.replace("MODEL", str(llava_folder)))
    done = evaluate(grid, "-o", "o", "-q", code=2)
    assert REFUSED[part][1] in done.stderr and not Path("o").exists(), done.stderr


def test_a_picture_that_is_not_there_is_refused_before_anything_is_loaded(
    grid, pictures, monkeypatch
):
    monkeypatch.setattr(grid_cells, "load", lambda *_: pytest.fail("a model was loaded"))
    pictures[4].unlink()
    done = evaluate(grid, "-o", "o", "-q", code=2)
    assert "two: 1 pictures are not there" in done.stderr and "p5.png" in done.stderr
    evaluate(grid, "-o", "o", "-q", "--table-only", code=2)


def test_a_folder_with_a_table_of_somebody_else_is_left_alone(small):
    Path("o").mkdir()
    Path("o/table.csv").write_text("mine\n")
    done = evaluate(small, "-o", "o", "-q", code=2)
    assert "o/table.csv is there and is no table of a grid" in done.stderr
    assert Path("o/table.csv").read_text() == "mine\n" and len([*Path("o").iterdir()]) == 1
    assert "is no folder" in evaluate(small, "-o", "-", code=2).stderr


def test_names_of_folders_differ_as_their_settings_do():
    names = ["a/b", "a_b", "a b", "x" * 200, "x" * 201, "trimtokenator@64", "..", "."]
    slugs = [grid_plan._slug(name) for name in names]
    assert len({*slugs}) == len(names) and all(
        "/" not in each and each.strip(".") for each in slugs
    )
    assert slugs[5] == names[5] and max(map(len, slugs)) < 100


@pytest.mark.parametrize("name", preset_names("eval"))
def test_a_preset_is_a_grid_with_methods_that_are_there(name):
    from trimtok_cli.evaluation.grid_spec import read_grid

    grid = read_grid(name)
    for model in grid.models:
        planned = grid_plan.plan(grid, model)
        assert planned[0].label == "dense" and len(planned) > 1
        labels = {f"{line.label}@{line.settings[0].keep}" for line in planned}
        labels |= {line.settings[0].name for line in planned}
        assert set(grid.published.rows) <= labels
    assert any((folder / "eval" / f"{name}.yaml").is_file() for folder in PRESETS)


def test_an_earlier_model_is_let_go_before_the_next_is_loaded(monkeypatch):
    import torch

    from trimtok_cli.config import RunConfig
    from trimtok_cli.engine import prompt_stage
    from trimtok_cli.errors import ModelError

    class Model:
        device = torch.device("cpu")

    loaded: list[weakref.ref] = []

    def load(config, screen, meanwhile):
        assert [each() for each in loaded] == [None] * len(loaded)
        if config.model == "broken":
            raise ModelError("broken cannot be loaded.")
        model = Model()
        loaded.append(weakref.ref(model))
        return model, None

    monkeypatch.setattr(grid_cells, "load", load)
    monkeypatch.setattr(prompt_stage, "check_method", lambda *_: None)
    opener, started = grid_cells.OneModel(), []
    for model in ("a", "a", "b", "broken", "broken", "a"):
        config = RunConfig(model=model, method="dense", keep="all")
        if model == "broken":
            with pytest.raises(grid_cells.Unfit, match="broken cannot be loaded"):
                opener(config, None, lambda: started.append(1))
        else:
            assert opener(config, None, lambda: started.append(1))[0] is loaded[-1]()
    assert len(loaded) == 3 and len(started) == 2
