"""No checkpoint runs code, although standard input says yes to every question.

There is one malicious folder for every setting that can name code.

All of them are captioned in one real process, each by the command itself; its standard input is a
pipe of "y" lines, of which none may be missing afterwards.
"""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import picture
from tests.support.families import FAMILIES
from tests.test_walls import PACKAGE, ROOT

YES = 2000  # lines on standard input
EVIL = """
import pathlib
pathlib.Path({mark!r}).write_text("run")
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

class Processor(LlavaProcessor): pass
class Images(CLIPImageProcessor): pass
class Config(LlavaConfig): pass
class Model(LlavaForConditionalGeneration): pass
class Words(PreTrainedTokenizerFast): pass
class Videos: pass
def generate(*args, **kwargs): raise SystemExit
"""
REMOTE = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForImageTextToText": "evil.Model",
    "AutoProcessor": "evil.Processor",
    "AutoImageProcessor": "evil.Images",
    "AutoFeatureExtractor": "evil.Images",
    "AutoVideoProcessor": "evil.Videos",
    "AutoTokenizer": ["evil.Words", "evil.Words"],
    "GenerationConfig": "evil.Config",
}


def edit(path: Path, drop: tuple[str, ...] = (), **values) -> None:
    """A JSON file with some keys set and some left out; `auto_map` comes by itself."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps(
            {key: value for key, value in found.items() if key not in drop}
            | {"auto_map": REMOTE}
            | values
        )
    )


def everything(folder: Path) -> None:
    """auto_map in every file, over classes that the library knows."""
    for name in (
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ):
        edit(folder / name)


def images_apart(folder: Path, **values) -> None:
    """The image processor in a file of its own, as older checkpoints have it."""
    whole = json.loads((folder / "processor_config.json").read_text())
    edit(folder / "preprocessor_config.json", **whole.pop("image_processor") | values)
    (folder / "processor_config.json").write_text(json.dumps(whole))


def nameless(folder: Path) -> None:
    """No file names the processor's class, so the library chooses one, and forgets about trust."""
    images_apart(folder, image_processor_type="Unknown")
    (folder / "processor_config.json").unlink()
    edit(folder / "tokenizer_config.json", drop=("processor_class",))


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').write('run')",)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(folder / "mark")}))


def kernels(folder: Path) -> None:
    found = json.loads((folder / "config.json").read_text())
    for part in (found, found["text_config"], found["vision_config"]):
        part |= {
            key: "evil/kernel:attention" for key in ("attn_implementation", "_attn_implementation")
        }
        part |= {
            key: "evil/kernel:attention"
            for key in ("_attn_implementation_internal", "experts_implementation")
        }
    (folder / "config.json").write_text(json.dumps(found))


def own_generate(folder: Path) -> None:
    edit(folder / "generation_config.json", custom_generate="evil", trust_remote_code=True)
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    (folder / "custom_generate" / "requirements.txt").write_text("transformers\n")


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    said = {"base_model_class": "Model", "parent_library": "evil"}
    edit(
        folder / "adapter_config.json",
        base_model_name_or_path=str(folder),
        auto_mapping=said,
        peft_type="LORA",
    )


TRUST, PLAIN = "--trust-remote-code", ""
PLACES: dict[str, tuple[str, Callable[[Path], object], int, str]] = {
    # family, what is done to its folder, exit code, words of the sentence
    "everywhere": ("llava", everything, 0, PLAIN),
    "everywhere, of a family with videos": ("qwen2_vl", everything, 0, PLAIN),
    "an unknown family": (
        "llava",
        lambda f: edit(f / "config.json", model_type="evil"),
        1,
        "of the family 'evil'",
    ),
    "an unknown text model": (
        "llava",
        lambda f: edit(
            f / "config.json", text_config={"model_type": "evil"} | {"auto_map": REMOTE}
        ),
        1,
        "config.json",
    ),
    "an unknown processor": (
        "llava",
        lambda f: edit(f / "processor_config.json", processor_class="Unknown"),
        1,
        TRUST,
    ),
    "an unknown image processor": (
        "llava",
        lambda f: images_apart(f, image_processor_type="Unknown"),
        1,
        TRUST,
    ),
    "an unknown image processor, nothing else said": ("llava", nameless, 1, TRUST),
    "an unknown tokenizer": (
        "llava",
        lambda f: edit(f / "tokenizer_config.json", tokenizer_class="Unknown"),
        0,
        PLAIN,
    ),
    "an unknown video processor": (
        "qwen2_vl",
        lambda f: edit(f / "video_preprocessor_config.json", video_processor_type="Unknown"),
        0,
        PLAIN,
    ),
    "another repository's code": (
        "llava",
        lambda f: (
            edit(f / "processor_config.json", processor_class="Unknown")
            or edit(
                f / "processor_config.json", auto_map={"AutoProcessor": "evil/repo--evil.Processor"}
            )
        ),
        1,
        TRUST,
    ),
    "an audio tokenizer": (
        "llava",
        lambda f: edit(
            f / "processor_config.json",
            audio_tokenizer={
                "audio_tokenizer_class": "AutoModel",
                "audio_tokenizer_name_or_path": str(f.parent / "an unknown family"),
            },
        ),
        1,
        "processor",
    ),
    "generation": ("llava", own_generate, 0, PLAIN),
    "weights": ("llava", pickled, 1, "pickle"),
    "attention": ("llava", kernels, 0, PLAIN),
    "an adapter": ("llava", adapter, 1, "peft"),
    "a quantizer": (
        "llava",
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "evil"}),
        1,
        "evil",
    ),
    "a template": (
        "llava",
        lambda f: (f / "chat_template.jinja").write_text(
            "{{ cycler.__init__.__globals__.os.system('touch ' ~ '" + str(f / "mark") + "') }}"
        ),
        3,
        PLAIN,
    ),
}
TRUSTED = "an unknown processor, trusted"

CAPTION = """
import json, sys
from trimtok_cli.cli import main

picture, *folders = sys.argv[1:]
codes = []
for i, folder in enumerate(folders):
    print("\\n#", file=sys.stderr, flush=True)
    trusted = ["--trust-remote-code"] if folder.endswith(" trusted") else []
    sys.argv = ["trimtok", "caption", picture, "-m", folder, "--keep", "3", "--max-new-tokens", "2", "-q", "-o", f"{i}.jsonl", *trusted]
    try:
        main()
    except SystemExit as error:
        codes.append(error.code)
print(json.dumps({"codes": codes, "left": len(sys.stdin.readlines())}))
"""


def prepare(folder: Path, plain: Path, change: Callable[[Path], object]) -> None:
    shutil.copytree(plain, folder)
    (folder / "evil.py").write_text(EVIL.format(mark=str(folder / "mark")))
    change(folder)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory, llava_folder):
    """({name: (exit code, stderr)} of every malicious folder, what is left of standard input)."""
    place = tmp_path_factory.mktemp("evil")
    plain = {"llava": llava_folder, "qwen2_vl": FAMILIES["qwen2_vl"](place / "plain")}
    for name, (family, change, _, _) in PLACES.items():
        prepare(place / name, plain[family], change)
    prepare(place / TRUSTED, llava_folder, PLACES["an unknown processor"][1])
    picture(1).save(place / "p.png")
    names = [*PLACES, TRUSTED]
    environment = os.environ | {
        "HF_MODULES_CACHE": str(place / "modules"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CAPTION, "p.png", *(str(place / name) for name in names)],
        input="y\n" * YES,
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *printed, last = done.stdout.splitlines()
    found = json.loads(last)
    said = [part.strip() for part in done.stderr.split("\n#\n")[1:]]
    assert len(found["codes"]) == len(said) == len(names)
    return (
        place,
        dict(zip(names, zip(found["codes"], said, strict=True), strict=True)),
        found["left"],
        printed,
    )


@pytest.mark.parametrize("name", PLACES)
def test_no_folder_runs_code(captioned, name):
    place, ends, _, _ = captioned
    code, said = ends[name]
    _, _, wanted, words = PLACES[name]
    assert not (place / name / "mark").exists(), "its code was run"
    assert code == wanted and words in said and "Traceback" not in said and "Error:" not in said, (
        said
    )
    if code == 1:
        assert len(said.splitlines()) == 1 or len(said) < 400, said


def test_nothing_asks_on_standard_input_or_prints_on_standard_output(captioned):
    _, _, left, printed = captioned
    assert left == YES and not printed


def test_code_runs_where_it_is_trusted(captioned):
    place, ends, _, _ = captioned
    assert ends[TRUSTED] == (0, "") and (place / TRUSTED / "mark").exists()


def test_a_run_says_in_its_manifest_whether_code_was_trusted():
    from trimtok_cli.resolve import resolve

    assert resolve({}, None, {}).trust_remote_code is False
    assert resolve({"trust_remote_code": True}, None, {}).trust_remote_code is True
    Path("c.yaml").write_text("trust_remote_code: true")
    assert resolve({}, "c.yaml", {"TRIMTOK_TRUST_REMOTE_CODE": "no"}).trust_remote_code is False


def loads(path: Path) -> dict[str, bool]:
    """The calls in a file that load a checkpoint, and whether each is safe."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), {}
    handed = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "load"
        for argument in call.args
    }
    safe = {
        id(call.func)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and any(keyword.arg == "trust_remote_code" for keyword in call.keywords)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in (
            "from_pretrained",
            "pipeline",
            "get_config_dict",
        ):
            found[f"{path.name}, line {node.lineno}"] = id(node) in handed | safe
        if (
            isinstance(node, ast.Call)
            and PACKAGE in path.parents
            and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads")
        ):
            found[f"{path.name}, line {node.lineno}: pickles are for our own workers"] = (
                path.name in ("pool.py", "worker.py", "group.py", "replica.py")
            )
    return found


def test_whatever_transformers_loads_goes_through_the_one_loader_or_says_that_code_is_not_trusted():
    """`from_pretrained` is handed to `Folder.load`, or called with trust_remote_code; `from_config`
    builds no code of a folder.
    """
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "samples").rglob("*.py")]
    found = {place: safe for path in paths for place, safe in loads(path).items()}
    assert len(found) > 9 and [place for place, safe in found.items() if not safe] == []
