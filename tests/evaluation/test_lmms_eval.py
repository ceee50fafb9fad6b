"""trimtok as a model of lmms-eval, on a task of its own over the demo model's questions."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.conftest import picture
from tests.test_walls import ROOT
from trimtok_cli import Ask, Sample, answer_all, build_pruner, load_model
from trimtok_cli.errors import UsageError

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
adapter_file = pytest.importorskip("trimtok_cli.evaluation.lmms_eval")

MODEL = ROOT / "samples" / "demo" / "model"
TASK = """
task: trimtok_demo
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_visual: !function shown.doc_to_visual
doc_to_text: text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
SHOWN = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""


@pytest.fixture(scope="module")
def model():
    return adapter_file.Trimtok(str(MODEL), keep=64, device="cpu", batch_size=4)


def questions() -> list[dict]:
    rows = [
        json.loads(line) for line in (ROOT / "samples" / "questions.jsonl").read_text().splitlines()
    ]
    image = ROOT / "samples"
    return [
        {"image": str(image / row["image"]), "text": row["text"], "answer": str(row["answer"])}
        for row in rows[:12]
    ]


def test_the_entry_point_of_the_package_is_what_lmms_eval_reads():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lmms_eval.models"].items()
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    loaded = EntryPoint(name, value, "lmms_eval.models").load()
    registry = ModelRegistryV2()
    registry.register_manifest(loaded)
    assert registry.get_model_class("trimtok") is adapter_file.Trimtok
    assert registry.get_model_class("trimtok", force_simple=True) is adapter_file.Trimtok


def test_a_task_scores_what_trimtok_answers(model, tmp_path):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    rows = questions()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "trimtok_demo.yaml").write_text(TASK % (tmp_path / "rows.jsonl"))
    (tmp_path / "shown.py").write_text(SHOWN)
    found = simple_evaluate(
        model=model,
        tasks=["trimtok_demo"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
    )
    samples = [Sample(i, images=row["image"], question=row["text"]) for i, row in enumerate(rows)]
    pruner = build_pruner("trimtokenator", {"keep": 64})
    loaded = load_model(str(MODEL), device="cpu")
    want = list(answer_all(loaded, pruner, samples, Ask(max_new_tokens=8)))
    shown = sorted(found["samples"]["trimtok_demo"], key=lambda each: each["doc_id"])
    assert [each["filtered_resps"][0] for each in shown] == [result.answer for result in want]
    right = sum(a.answer == row["answer"] for a, row in zip(want, rows, strict=True))
    score = found["results"]["trimtok_demo"]["exact_match,none"]
    assert right > 0 and score == pytest.approx(right / len(rows))


class Request:
    def __init__(self, number: int, options: dict, visual=None) -> None:
        self.args = ("Why?", options, lambda doc: visual, number, "task", "test")


def test_requests_are_answered_in_their_order_whatever_their_settings(model):
    model.task_dict = {"task": {"test": [None] * 4}}
    image = picture(1, 336, 336)
    options = [{"max_new_tokens": 2}, {"max_new_tokens": 9}, {"max_new_tokens": 2}]
    asked = [
        Request(number, each, [[image]] if number else image) for number, each in enumerate(options)
    ]
    asked.append(Request(3, {"until": ["\n\n"], "max_new_tokens": 4}))
    results = model.generate_until(asked)
    assert [each.token_counts.output_tokens for each in results[:3:2]] == [2, 2]
    assert results[0].text == results[2].text and results[1].text.startswith(results[0].text)
    assert results[0].token_counts.input_tokens < results[3].token_counts.input_tokens + 64 + 9


def test_stop_strings_end_an_answer_and_failures_are_empty_and_logged(model, caplog, tmp_path):
    model.task_dict = {"task": {"test": [None]}}
    (whole,) = model.generate_until([Request(0, {"max_new_tokens": 6}, picture(1, 336, 336))])
    stop = whole.text.split()[-1]
    asked = Request(0, {"max_new_tokens": 6, "until": stop}, picture(1, 336, 336))
    (cut,) = model.generate_until([asked])
    assert stop not in cut.text and whole.text.startswith(cut.text)
    (failed,) = model.generate_until([Request(0, {}, str(tmp_path / "nowhere.png"))])
    assert failed.text == "" and "sample 0 has no answer" in caplog.text


def test_what_cannot_be_had_is_one_sentence(model, monkeypatch):
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(UsageError, match="take a task of"):
            call([])
    with pytest.raises(UsageError, match="no beams"):
        model.generate_until([Request(0, {"num_beams": 3})])
    with pytest.raises(UsageError, match="has no parameter 'pol'"):
        adapter_file.Trimtok(str(MODEL), pol=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process"):
        adapter_file.Trimtok(str(MODEL))
    assert Path(MODEL).exists()
