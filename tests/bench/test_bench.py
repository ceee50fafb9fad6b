"""`trimtok bench` on a tiny random model: the command, its file, that every number follows from raw
ones, and what goes wrong.
"""

import copy
import gc
import io
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from tests.commands.test_cli import run
from tests.conftest import picture
from trimtok_cli.bench import grid, parts, whole_runs
from trimtok_cli.bench.batch import Loops, run_batch
from trimtok_cli.bench.derive import changes, derive, figure
from trimtok_cli.bench.document import read_document
from trimtok_cli.bench.images import pictures, scene
from trimtok_cli.bench.plots import write_plots
from trimtok_cli.bench.roofline import Ceilings
from trimtok_cli.bench.spec import Bench, Grid, MemoryPart, PrunerPart, build, read_bench
from trimtok_cli.bench.tables import change_table, tables
from trimtok_cli.data import Sample, Seconds, Setting
from trimtok_cli.engine.loops import LOOPS
from trimtok_cli.engine.staged_loop import StagedLoop
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import UsageError
from trimtok_cli.prepare.sample import Ask, Prepared
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.yaml_text import PRESETS

STAGES = ("encode", "prune", "prefill", "decode")
MANY = Ceilings(1e12, 1e11)


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("bench")
    done = run("bench", "smoke", "--out", folder, "--device", "cpu", "--dtype", "float32")
    assert "Ratios to dense only" in done.stderr and done.stdout == ""
    assert {path.name for path in folder.iterdir()} == {"bench.json", "kept.png", "batch.png"}
    return json.loads((folder / "bench.json").read_text())


def test_the_file_says_under_which_conditions_and_what_was_asked(document):
    at = document["conditions"]
    assert at["device_kind"] == "cpu" and at["dtype"] == "float32" and at["random_weights"] is True
    assert (
        at["threads"] >= 1
        and at["launch_seconds"] > 0
        and at["versions"]["transformers"]
        and at["command"]
    )
    assert document["bench"]["pruner"] == [{"candidates": 40, "keep": 6, "width": 32, "batch": 1}]
    assert (
        document["ceilings"]["flops_per_second"] > 1e8
        and document["ceilings"]["bytes_per_second"] > 1e8
    )
    assert [len(document[part]) for part in ("grid", "pruner", "decode", "overhead", "memory")] == [
        6,
        1,
        1,
        2,
        1,
    ]


def test_every_row_of_the_grid_has_raw_seconds_of_every_round(document):
    assert [row["setting"] for row in document["grid"]] == [
        "dense",
        "trimtokenator@4",
        "fastv@4",
    ] * 2
    assert [row["batch"] for row in document["grid"]] == [1, 1, 1, 2, 2, 2]
    for row in document["grid"]:
        assert row["error"] == "" and set(row["seconds"]) == {*STAGES, "wall"}
        assert (
            all(len(values) == 2 and min(values) >= 0 for values in row["seconds"].values())
            and len(row["prepare"]) == 2
        )
        assert row["tokens"]["visual"] == 36 and row["memory"]["process"] > 2**20
        for number, wall in enumerate(row["seconds"]["wall"]):
            assert sum(row["seconds"][stage][number] for stage in STAGES) <= wall + 1e-4
    kept = [row["tokens"]["kept"] for row in document["grid"]]
    assert kept[:2] == [36, 4] and 4 < kept[2] < 36, "inside the language model: a mean over layers"


def test_every_figure_follows_from_raw_numbers(document):
    dense, pruned = document["grid"][3:5]
    found, raw, base = pruned["derived"], pruned["seconds"], dense["seconds"]
    first = [sum(times) for times in zip(raw["encode"], raw["prune"], raw["prefill"], strict=True)]
    first_dense = [
        sum(times) for times in zip(base["encode"], base["prune"], base["prefill"], strict=True)
    ]
    assert found["speedup"]["wall"] == pytest.approx(median(base["wall"]) / median(raw["wall"]))
    assert found["speedup"]["decode"] == pytest.approx(
        median(base["decode"]) / median(raw["decode"])
    )
    assert found["speedup"]["first"] == pytest.approx(median(first_dense) / median(first))
    assert found["wall_ms"]["median"] == pytest.approx(1000 * median(raw["wall"]) / 2)
    assert found["samples_per_second"] == pytest.approx(2 / median(raw["wall"]))
    assert found["prune_share_of_dense_prefill"] == pytest.approx(
        median(raw["prune"]) / median(base["prefill"])
    )
    allowed = sum(dense["work"]["flops"].values()) / sum(pruned["work"]["flops"].values())
    assert found["flops_allow"] == pytest.approx(allowed) and allowed > 1.2
    assert found["of_what_flops_allow"] == pytest.approx(found["speedup"]["first"] / allowed)
    assert found["times_floor"]["prefill"] == pytest.approx(
        median(raw["prefill"]) / pruned["work"]["floor"]["prefill"]
    )
    whole = [wall / 2 + each for wall, each in zip(raw["wall"], pruned["prepare"], strict=True)]
    assert found["wall_with_files_ms"]["median"] == pytest.approx(1000 * median(whole))
    assert "speedup" not in dense["derived"]
    assert derive(document) == document, "deriving again changes nothing"


def test_the_work_of_a_row_is_that_of_its_token_counts(document, tmp_path):
    row = document["grid"][0]
    text = {"layers": 4, "weights": 2 * 64 * 16 * 6 + 3 * 64 * 96, "vocabulary": 128}
    length = row["tokens"]["text"] + 36
    prefill = 2 * 4 * text["weights"] * length + 2 * 4 * 64 * length**2 + 2 * 128 * 64
    assert row["work"]["flops"]["prefill"] == pytest.approx(prefill)
    top = document["ceilings"]
    weights = 4 * (4 * text["weights"] + 128 * 64)
    assert row["work"]["floor"]["prefill"] == pytest.approx(
        max(prefill / top["flops_per_second"], weights / top["bytes_per_second"])
    )


def test_the_other_parts_compare_like_with_like(document):
    (pruner,), (decode,), (memory,) = document["pruner"], document["decode"], document["memory"]
    assert pruner["identical"] is True and set(pruner["seconds"]) == {
        "literal",
        "ours",
        "literal_loop",
        "our_loop",
    }
    assert pruner["derived"]["speedup"]["total"] == pytest.approx(
        median(pruner["seconds"]["literal"]) / median(pruner["seconds"]["ours"])
    )
    assert decode["identical"] == {name: True for name in LOOPS}, "the library's tokens"
    seconds = decode["seconds"]
    assert decode["derived"]["speedup"]["simple"] == pytest.approx(
        median(seconds["generate"]) / median(seconds["simple"])
    )
    assert [each["inputs"] for each in memory["resident"]] == [8, 16]
    first, last = (each["bytes"] for each in memory["resident"])
    assert memory["derived"]["growth"] == pytest.approx(last / first - 1) and first > 50 * 2**20
    for row in document["overhead"]:
        assert row["samples"] == 4 and all(
            0 < m < w for m, w in zip(row["seconds"]["model"], row["seconds"]["wall"], strict=True)
        )


def test_against_an_earlier_file_and_without_matplotlib_whose_plots_are_left_out(
    document, monkeypatch
):
    Path("before").mkdir()
    earlier = copy.deepcopy(document)
    for row in earlier["grid"]:
        row.pop("derived")
        row["seconds"]["wall"] = [4 * wall for wall in row["seconds"]["wall"]]
    earlier["grid"].pop()
    Path("before/bench.json").write_text(json.dumps(earlier))
    found = changes(document, derive(earlier))
    assert len(found) == 5 and all(each["change"] == pytest.approx(-0.75) for each in found)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("bench", "smoke", "-o", "now", "--rounds", 1, "--against", "before")
    assert "against the earlier one" in done.stderr and "%" in done.stderr
    assert "pip install 'trimtok[plot]'" in done.stderr and [
        path.name for path in Path("now").iterdir()
    ] == ["bench.json"]
    assert (
        json.loads(Path("now/bench.json").read_text())["grid"][0]["derived"]["wall_ms"]["rounds"]
        == 1
    )
    Path("before/bench.json").write_text("{}")
    assert (
        "is no bench.json of this program"
        in run("bench", "smoke", "-o", "x", "--against", "before", code=2).stderr
    )
    assert (
        "cannot be read" in run("bench", "smoke", "-o", "x", "--against", "nowhere", code=2).stderr
    )


@pytest.mark.parametrize("name", ["tests/golden/bench.json", "samples/results/cpu/bench.json"])
def test_a_document_written_before_still_reads_and_its_figures_are_the_stored_ones(name):
    path = Path(__file__).parents[2] / name
    stored, read = json.loads(path.read_text(encoding="utf-8")), read_document(path)
    assert len(read["grid"]) > 5
    assert ("preprocess" in stored["grid"][0]) == ("golden" in name), "the form before"
    for part in ("grid", "pruner", "decode", "overhead", "memory"):
        for old, new in zip(stored[part], read[part], strict=True):
            assert new["derived"] == old["derived"]
    assert len(changes(read, read)) == len(read["grid"])


def test_a_change_within_the_spread_is_not_marked():
    row = {"key": "a", "error": "", "derived": {"wall_ms": figure([1.0, 1.1, 1.2])}}
    late = {"key": "a", "error": "", "derived": {"wall_ms": figure([1.1, 1.15, 1.3])}}
    far = {"key": "a", "error": "", "derived": {"wall_ms": figure([2.0, 2.1, 2.2])}}
    assert [
        changes({"grid": [each]}, {"grid": [row]})[0]["beyond_spread"] for each in (late, far)
    ] == [False, True]


BAD = [
    ({"grdi": []}, "did you mean grid"),
    ({"grid": [{"model": "tiny", "kep": 3}]}, "did you mean keep"),
    ({}, "measures nothing"),
    ({"grid": [{"keep": [4]}]}, "names no model"),
    ({"grid": [{"model": "tiny", "batch": [0]}]}, "batch must be at least 1"),
    ({"grid": [{"model": "tiny", "batch": "many"}]}, "batch must be a whole number"),
    ({"grid": "tiny"}, "must hold `key: value` lines"),
    ({"grid": [{"model": "tiny", "method": "magic"}]}, "--method magic is not known"),
    ({"grid": [{"model": "tiny", "decode": "fast"}]}, "decode must be one of continuous, simple"),
    ({"grid": [{"model": "tiny", "image": "nowhere.png"}]}, "WIDTHxHEIGHT"),
    ({"grid": [{"model": "huge"}]}, "no preset of that name"),
    (
        {"grid": [{"model": "mine"}], "models": {"mine": {"model_type": "bert"}}},
        "model_type must be one of",
    ),
    ({"grid": [{"model": "tiny"}], "seed": -1}, "seed must be at least 0"),
    ({"grid": [{"model": "tiny"}], "rounds": 0}, "rounds"),
    ({"decode": {"model": "tiny", "params": 3}}, "names and values"),
]


@pytest.mark.parametrize(("asked", "says"), BAD)
def test_a_yaml_that_does_not_fit_is_refused_before_anything_is_measured(asked, says):
    Path("b.yaml").write_text(yaml.safe_dump(asked))
    done = run("bench", "b.yaml", "--random-weights", "-o", "out", code=2)
    assert says in " ".join(done.stderr.split()) and not Path("out").exists()


def test_an_unknown_preset_names_those_there_are():
    said = " ".join(run("bench", "flor", code=2).stderr.split())
    assert "of that name (did you mean floor?); presets are counts, cpu, floor, ladder," in said


def test_models_may_be_described_in_the_yaml_and_printed_to_standard_output():
    folder = next(folder / "bench" / "models" for folder in PRESETS if (folder / "bench").is_dir())
    mine = yaml.safe_load((folder / "tiny.yaml").read_text())
    mine["text_config"]["num_hidden_layers"] = 2
    asked = {
        "models": {"mine": mine},
        "grid": {"model": "mine", "keep": 4, "image": "90x84", "new-tokens": 1},
        "rounds": 1,
        "warmups": 0,
    }
    Path("b.yaml").write_text(yaml.safe_dump(asked))
    done = run("bench", "b.yaml", "--random-weights", "-o", "-")
    (dense, pruned) = json.loads(done.stdout)["grid"]
    assert (
        dense["model"] == "mine"
        and "decode" not in pruned["derived"]["speedup"]
        and not Path("trimtok-out").exists()
    )


def test_presets_can_be_run_and_stand_beside_the_packaged_ones():
    folder = next(folder / "bench" for folder in PRESETS if (folder / "bench").is_dir())
    for path in folder.glob("*.yaml"):
        bench = read_bench(path.stem)
        for name in bench.model_names():
            assert bench.described(name)["model_type"]
        for task in bench.grid:
            grid.pruners(task, 0)
    assert (
        read_bench("cpu", {"rounds": 2}).rounds == 2
        and read_bench("cpu", {"rounds": None}).rounds == 5
    )
    table4 = read_bench("table4").grid[0]
    assert {Setting.of(pruner).name for pruner in grid.pruners(table4, 0)} == set(
        table4.reference["rows"]
    )


def measured(adapter, monkeypatch, run_instead, **options) -> list[dict]:
    monkeypatch.setattr(grid, "run_batch", run_instead)
    task = Grid(model=("x",), keep=("4",), image="90x84", new_tokens=(2,), **options)
    return list(grid.grid_rows(adapter, task, Bench(rounds=2, warmups=1), MANY, Path.cwd()))


def test_an_interrupted_run_leaves_what_it_measured(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtok_cli.bench.run.decode_rows", interrupted)
    done = run("bench", "smoke", "-o", "out", "--rounds", 1, code=130)
    document = json.loads(Path("out/bench.json").read_text())
    assert (
        len(document["grid"]) == 6
        and document["grid"][1]["derived"]["speedup"]
        and not document["decode"]
    )
    assert "trimtokenator@4" in done.stderr and "interrupted" in done.stderr


def test_dense_and_pruned_take_turns_and_warm_up_apart(adapter, monkeypatch):
    order = []

    def noting(adapter, pruner, inputs, loop):
        order.append("dense" if pruner is None else "pruned")
        return run_batch(adapter, pruner, inputs, loop)

    rows = measured(adapter, monkeypatch, noting)
    assert order == ["dense", "pruned", "dense", "pruned", "pruned", "dense"]
    assert all(len(row["seconds"]["wall"]) == 2 for row in rows)


def test_a_setting_that_runs_out_of_memory_says_so_and_the_others_go_on(adapter, monkeypatch):
    def small(adapter, pruner, inputs, loop):
        if pruner is None and len(inputs) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return run_batch(adapter, pruner, inputs, loop)

    rows = measured(adapter, monkeypatch, small, batch=(1, 2))
    assert [row["error"] for row in rows] == ["", "", "out of memory", ""]
    document = derive({"grid": rows, "pruner": [], "decode": [], "overhead": [], "memory": []})
    lonely = document["grid"][3]["derived"]
    assert "speedup" not in lonely and lonely["wall_ms"]["median"] > 0, (
        "nothing to compare with, but measured"
    )
    shown = show({**document, "conditions": {"device_kind": "cpu"}})
    assert "dense failed: out of memory" in shown


@pytest.mark.parametrize("decode", LOOPS)
def test_a_batch_that_does_not_fit_is_not_measured_in_smaller_ones(adapter, monkeypatch, decode):
    real, passes = adapter.forward, []

    def forward(embeds, *given):
        passes.append(len(embeds))
        if len(embeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(embeds, *given)

    monkeypatch.setattr(adapter, "forward", forward, raising=False)
    rows = measured(adapter, monkeypatch, run_batch, batch=(2,), decode=(decode,))
    assert [row["error"] for row in rows] == ["out of memory"] * 2
    assert passes == [2, 2], "each setting breaks once, in its first pass"


def test_a_method_that_cannot_run_on_a_model_is_a_row_that_says_so(adapter, monkeypatch):
    rows = measured(adapter, monkeypatch, run_batch, method=("cdpruner", "random"))
    assert "relevance" in rows[1]["error"] or "CLIP" in rows[1]["error"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]


def test_a_model_that_cannot_be_loaded_leaves_the_others(llava_folder):
    asked = {
        "grid": [
            {"model": name, "keep": 4, "image": "90x84", "new_tokens": 1}
            for name in ("./nowhere", str(llava_folder))
        ],
        "rounds": 1,
    }
    Path("b.yaml").write_text(yaml.safe_dump(asked))
    done = run("bench", "b.yaml", "-o", "out.json", code=3)
    rows = json.loads(Path("out.json").read_text())["grid"]
    assert "no such folder" in rows[0]["error"] and len(rows) == 3 and not rows[1]["error"]
    assert "failed" in done.stderr


def test_settings_share_a_loop_unless_they_prune_inside_the_decoder(adapter):
    """A loop of its own is kept as well: its steps are recorded once, like all others."""
    loops = Loops(adapter, decode="continuous", new_tokens=7, batch=2)
    in_prompt, inside, other = (
        build_pruner(name, {"keep": keep})
        for name, keep in (("trimtokenator", 5), ("fastv", 5), ("fastv", 6))
    )
    shared = loops.of(None)
    assert loops.of(in_prompt) is shared and not isinstance(shared, StagedLoop)
    own = loops.of(inside)
    assert isinstance(own, StagedLoop) and loops.of(inside) is own
    assert loops.of(other) is not own and loops.of(other).stages.pruner is other
    loops.renew()
    assert loops.of(None) is not shared and loops.of(inside) is not own


@torch.inference_mode()
@pytest.mark.parametrize("name", LOOPS)
def test_a_batch_is_decoded_to_the_last_token_whatever_its_end(adapter, name):
    """Fixed new tokens: the end token stops nothing, and what is measured is what the engine
    computes.
    """
    pruner = build_pruner("trimtokenator", {"keep": 5})
    samples = [Sample(0, question="What?"), Sample(1, question="Who?")]
    inputs = [adapter.prepare([picture(i)], sample.question) for i, sample in enumerate(samples)]
    known = [
        Prepared(sample, sample.question, each, (), Seconds(), number=number)
        for number, (sample, each) in enumerate(zip(samples, inputs, strict=True))
    ]
    loop, finished = Loops(adapter, decode=name, new_tokens=7, batch=2).of(pruner), []
    step = loop.step

    def noting():
        finished.extend(found := step())
        return found

    loop.step = noting
    spent = run_batch(adapter, pruner, known, loop)
    assert [each.generated.steps for each in finished] == [7, 7]
    assert {each.generated.finish for each in finished} == {"length"}
    assert spent.visual == (36, 36) and spent.kept == (5.0, 5.0) and spent.wall > spent.prefill > 0


def test_files_are_as_heavy_as_photographs(tmp_path):
    files = pictures("640x480", tmp_path, seed=3, count=2)
    sizes = [file.stat().st_size for file in files]
    with Image.open(files[0]) as image:
        assert image.size == (640, 480)
    assert all(20_000 < size < 300_000 for size in sizes)
    assert files[0].read_bytes() != files[1].read_bytes()
    assert (scene(50, 40, 1) == scene(50, 40, 1)).all() and scene(50, 40, 1).std() > 20
    assert pictures(str(files[1]), tmp_path, seed=0) == [files[1]]
    assert len(pictures(str(tmp_path), tmp_path, seed=0)) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError):
        pictures(str(tmp_path / "empty"), tmp_path, seed=0)


def test_module_time_counts_the_outermost_call_once(adapter, pictures):
    """Tower, projector, decoder and head, whoever calls them; the tower's run ends in front of the
    decoder by an exception.
    """

    def hooks():
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in adapter.model.modules()
        )

    samples, before = [Sample(i, images=(path,)) for i, path in enumerate(pictures[:3])], hooks()
    with whole_runs.ModuleTime(adapter) as modules:
        results = list(answer_all(adapter, None, samples, Ask("What?", max_new_tokens=3)))
        assert modules.depth == 0
    assert all(not result.error for result in results)
    assert 0 < modules.seconds < sum(result.seconds.total for result in results)
    assert hooks() == before


def test_memory_over_inputs_is_looked_at_where_asked(adapter, monkeypatch):
    monkeypatch.setattr(whole_runs, "resident", iter([1, 100, 130, 104]).__next__)
    monkeypatch.setattr(whole_runs, "EVERY", 3)
    row = whole_runs.memory_row(
        adapter,
        MemoryPart(model="x", keep="5", inputs=(5, 2), image="90x84", batch=2),
        Bench(),
        Path.cwd(),
    )
    assert (
        row["resident"] == [{"inputs": 2, "bytes": 100}, {"inputs": 5, "bytes": 104}]
        and row["most_bytes"] == 130
    )
    monkeypatch.setattr(whole_runs, "resident", lambda: None)
    assert (
        "does not say"
        in whole_runs.memory_row(adapter, MemoryPart(model="x"), Bench(), Path.cwd())["error"]
    )


def test_the_pruner_part_runs_a_batch_against_singles():
    row = parts.pruner_row(
        PrunerPart(60, 8, 24, 3), torch.device("cpu"), torch.float32, Bench(rounds=2, warmups=1)
    )
    assert row["identical"] is True and len(row["seconds"]["our_loop"]) == 2
    tokens = parts.image_like(1, 400, 256, 0)[0]
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    assert 0.1 < float((unit @ unit.T).mean()) < 0.4, "neither alike nor at right angles"


def on_a_gpu(document: dict) -> dict:
    """The same document as a GPU would have written it."""
    document = copy.deepcopy(document)
    document["conditions"] |= {"device_kind": "cuda", "device": "NVIDIA H200"}
    for row in document["grid"]:
        row["memory"] = {"allocated": 3 * 2**29, "reserved": 2**31}
    document["grid"][1]["reference"] = {
        "source": "the paper",
        "latency_ms": 100.13,
        "memory_gib": 13.63,
    }
    return document


def show(document: dict) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables(document):
        console.print(table)
    return console.export_text()


def test_tables_show_times_on_a_gpu_and_ratios_on_a_cpu(document):
    timed, ratios = show(on_a_gpu(document)), show(document)
    assert "1.50 (2.00)" in timed and "trimtokenator@4 in the paper: 100.13 ms, 13.63 GiB" in timed
    assert "a sample" in timed and " ms" in timed and "× roofline" in timed
    assert " ms" not in ratios and "samples/s" not in ratios and "FLOPs allow" in ratios
    assert "36 visual" in timed and change_table(changes(document, document)).row_count == 6


def test_plots_are_drawn_where_there_is_something_to_draw(document, tmp_path):
    for each in (document, on_a_gpu(document)):
        assert [path.name for path in write_plots(each, tmp_path)] == ["kept.png", "batch.png"]
    with Image.open(tmp_path / "kept.png") as image:
        assert image.width > 1000
    only_dense = document | {"grid": document["grid"][:1]}
    assert write_plots(only_dense, tmp_path) == []


def test_help_and_wrong_usage_answer_without_torch():
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules, "
        "file=sys.stderr)"
    )
    for args in (
        ["bench", "--help"],
        ["bench", "nothing"],
        ["bench", "smoke", "--against", "nowhere"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert done.stderr.strip().endswith("False"), (args, done.stderr)


def test_lists_may_be_single_values():
    assert build(Grid, {"model": "a", "batch": 8, "keep": "11%"}, "x") == Grid(
        model=("a",), batch=(8,), keep=("11%",)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_stages_are_events_and_memory_is_the_devices():
    done = run("bench", "smoke", "-o", "out", "--device", "cuda")
    document = json.loads(Path("out/bench.json").read_text())
    assert "× roofline" in done.stderr and document["conditions"]["gpu"]["driver_version"]
    for row in document["grid"]:
        assert not row["error"] and 0 < row["memory"]["allocated"] <= row["memory"]["reserved"]
        for number, wall in enumerate(row["seconds"]["wall"]):
            assert 0.5 * wall < sum(row["seconds"][stage][number] for stage in STAGES) < 1.1 * wall


def test_no_collection_passes_over_a_model_while_it_is_measured(monkeypatch, thawed):
    from trimtok_cli.bench import run as whole

    def rows(*_, **__):
        yield {"frozen": gc.get_freeze_count()}

    monkeypatch.setattr(whole, "load", lambda *_: None)
    monkeypatch.setattr(whole, "overhead_rows", rows)
    task = SimpleNamespace(model="tiny", image="480x480")
    bench = SimpleNamespace(grid=[], decode=[], overhead=[task])
    before = gc.get_freeze_count()
    ((part, measured),) = [
        (part, list(each)) for part, each in whole._with_model(bench, "tiny", MANY, Path(), print)
    ]
    assert part == "overhead" and measured[0]["frozen"] > before == gc.get_freeze_count()
