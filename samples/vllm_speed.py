"""What vLLM's dense and pruned runs cost on a CPU, in turn, beside trimtok's own loop.

    python samples/vllm_speed.py OUT.json [--rounds 3] [--count 8] [--new-tokens 16]
        [--models demo random] [--sides vllm local]

Two models: the demo model, and a LLaVA of 0.15 billion random parameters
(configs/bench/models/small-llava.yaml). Everything runs in this process: what counts is its CPU
time, from files to answers. In every round each way answers the same samples, the order turned
round from one round to the next; a first round is thrown away. Ratios travel to other machines,
seconds do not.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers
import yaml

from trimtok_cli import Ask, Sample, answer_all, build_pruner, load_model
from trimtok_cli.bench.random_models import random_model
from trimtok_cli.models.checkpoint import read_settings
from trimtok_cli.models.weight_files import weight_bytes
from trimtok_cli.on_vllm.engine import Engine

ROOT = Path(__file__).parent.parent
KEEPS = {"dense": "all", "64": "64"}
BATCH = 8


def random_llava(folder: Path) -> Path:
    """A checkpoint whose answers end at no token: each has as many as it may."""
    described = yaml.safe_load((ROOT / "configs/bench/models/small-llava.yaml").read_text())
    adapter = random_model("small-llava", described, device="cpu", dtype="float32")
    adapter.model.generation_config.eos_token_id = None
    adapter.processor.tokenizer.eos_token = None
    adapter.model.save_pretrained(folder)
    adapter.processor.save_pretrained(folder)
    return folder


def samples(count: int) -> list[Sample]:
    rows = (ROOT / "samples/questions.jsonl").read_text().splitlines()
    found = [json.loads(row) for row in rows]
    folder = ROOT / "samples"
    return [
        Sample(row["question_id"], images=(folder / row["image"],), question=row["text"])
        for row in found[:count]
    ]


def measure(folder: Path, name: str, options: argparse.Namespace) -> dict:
    """Every round's CPU and wall seconds for each way, and whether the answers are the same."""
    front = load_model(str(folder), device="cpu", dtype="float32", front=True)
    engine = Engine(front, batch_limit=BATCH, given={})
    run = partial(
        answer_all,
        samples=samples(options.count),
        ask=Ask(max_new_tokens=options.new_tokens),
        batch_size=BATCH,
    )
    adapters = {"vllm": partial(run, front, new_loop=engine.loop)}
    if "local" in options.sides:
        adapters["local"] = partial(run, load_model(str(folder), device="cpu", dtype="float32"))
    ways = [(side, keep) for keep in KEEPS for side in adapters]
    rounds = []
    for number in range(options.rounds + 1):
        found, texts = {"load": [round(each, 1) for each in os.getloadavg()]}, {}
        for side, keep in ways[:: 1 if number % 2 else -1]:
            pruner = build_pruner("trimtokenator", {"keep": KEEPS[keep]})
            cpu, wall = time.process_time(), time.perf_counter()
            results = list(adapters[side](pruner=pruner))
            found[f"{side} {keep}"] = {
                "cpu_seconds": round(time.process_time() - cpu, 3),
                "wall_seconds": round(time.perf_counter() - wall, 3),
                "generated": sum(each.tokens.generated for each in results),
                "failed": sum(bool(each.error) for each in results),
            }
            texts[side, keep] = [each.answer for each in results]
        for keep in KEEPS if "local" in adapters else ():
            pairs = zip(texts["vllm", keep], texts["local", keep], strict=True)
            found[f"same {keep}"] = sum(one == other for one, other in pairs)
        if number:
            rounds.append(found)
            print(name, json.dumps(found), flush=True)
    engine.close()
    return {
        "parameters": num_parameters(folder),
        "samples": options.count,
        "rounds": rounds,
        "ratios_of_cpu_seconds": ratios(rounds),
    }


def ratios(rounds: list[dict]) -> dict:
    """Median, least and most over the rounds of what one way costs against another."""
    found = {}
    for name, one, other in (
        ("vllm: dense / 64 kept", "vllm dense", "vllm 64"),
        ("local: dense / 64 kept", "local dense", "local 64"),
        ("dense: local / vllm", "local dense", "vllm dense"),
        ("64 kept: local / vllm", "local 64", "vllm 64"),
    ):
        if one not in rounds[0] or other not in rounds[0]:
            continue
        each = [row[one]["cpu_seconds"] / row[other]["cpu_seconds"] for row in rounds]
        found[name] = {
            "median": round(median(each), 2),
            "least": round(min(each), 2),
            "most": round(max(each), 2),
        }
    return found


def num_parameters(folder: Path) -> int:
    """The numbers in a checkpoint's weights."""
    return weight_bytes(folder, read_settings(folder), 1)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=["demo", "random"])
    parser.add_argument("--sides", nargs="+", default=["vllm", "local"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from trimtok_cli.on_vllm.versions import vllm_version

    document = {
        "conditions": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "vllm": vllm_version(),
            "dtype": "float32",
            "batch_size": BATCH,
            "new_tokens": options.new_tokens,
            "method": "trimtokenator",
            "load": "of each round, over 1, 5 and 15 minutes, when it began",
        }
    }
    print(json.dumps(document["conditions"]), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            demo = ROOT / "samples/demo/model"
            folder = demo if name == "demo" else random_llava(Path(temporary) / name)
            document[name] = measure(folder, name, options)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(document, indent=1) + "\n")
            print(name, json.dumps(document[name]["ratios_of_cpu_seconds"]), flush=True)


if __name__ == "__main__":
    main()
