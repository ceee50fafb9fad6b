"""How vLLM's server is started for pruning: the versions and models it may be, and its arguments.

Imports neither torch nor vLLM.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtok_cli.errors import ModelError, UsageError
from trimtok_cli.on_vllm.versions import check_version
from trimtok_cli.serving.plugin import ARCHITECTURE, SETTINGS
from trimtok_cli.wording import brief

# The vision towers with which each family of models has been tried.
TOWERS = {"llava": ("clip_vision_model", "siglip_vision_model")}

GROUP, PLUGIN = "vllm.general_plugins", "trimtok-serve"

# Options of vLLM's server that are not the user's, and why.
NOT_YOURS = {
    "--model": "the model is the first argument of trimtok serve",
    "--host": "use --host of trimtok serve",
    "--port": "use --port of trimtok serve",
    "--dtype": "use --dtype of trimtok serve",
    "--hf-overrides": "the pruner's settings are there",
    "--config": "a file could overrule the pruner's settings",
    "--tokenizer": "the question is read by the checkpoint's own tokenizer",
    "--skip-tokenizer-init": "the question is read by the checkpoint's own tokenizer",
    "--chat-template": "the question is told from the words of the checkpoint's own chat template",
    "--enable-mm-embeds": "such images come without the pixels that are pruned",
    "--language-model-only": "nobody would look at the images",
}

# A host name has no blanks, so this is none, and vLLM puts it into the sentence with which it
# refuses an address.
NO_URLS = "none, as trimtok serve was started without --allow-urls"


def check_vllm() -> str:
    """The version of vLLM. Raises UsageError where it is missing, untested, or knows no plug-in."""
    version = check_version("trimtok serve", "answer files by `trimtok vqa`")
    if not metadata.entry_points(group=GROUP, name=PLUGIN):
        raise UsageError(
            "vLLM finds trimtok only where it is installed, and here it is merely on Python's "
            "path: pip install it, in a checkout with pip install -e '.[vllm]'."
        )
    return version


def check_family(config: Mapping[str, Any], model: str) -> None:
    """Raises ModelError for a config.json of a family or a tower that a server does not prune."""
    family, tower = config.get("model_type"), config.get("vision_config", {}).get("model_type")
    if family not in TOWERS:
        raise ModelError(
            f"{model} is of the family {brief(family)!r}, and trimtok serve covers "
            f"{', '.join(TOWERS)}: use trimtok vqa."
        )
    if tower not in TOWERS[family]:
        raise ModelError(
            f"{model} has the vision tower {brief(tower)!r}, and trimtok serve covers "
            f"{', '.join(TOWERS[family])} in {family}: use trimtok vqa."
        )


def own_arguments(text: str) -> list[str]:
    """The user's own arguments for vLLM, of --vllm-args. Raises UsageError for one that is ours."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--vllm-args cannot be read ({error}): check its quotes.") from None
    if words and not words[0].startswith("-"):
        raise UsageError(
            f"--vllm-args begins with {brief(words[0])}, which is no option: write it as for vllm "
            "serve, for example --vllm-args '--tensor-parallel-size 2'."
        )
    for name in map(_option, words):
        if name in NOT_YOURS:
            raise UsageError(f"--vllm-args {name}: {NOT_YOURS[name]}; leave it out.")
    return words


def _option(word: str) -> str:
    """The name of an option as vLLM lists it: it may hold _ for -, .KEY of a JSON, and a value."""
    return re.split(r"[=.]", word)[0].replace("_", "-")


def server_arguments(
    folder: Path,
    model: str,
    settings: Mapping[str, Any],
    template: str,
    *,
    host: str,
    port: int,
    dtype: str,
    allow_urls: bool,
    own: Sequence[str],
) -> list[str]:
    """The arguments of vLLM for a checkpoint's folder; ours come last, and so have the last word.

    model: the name by which clients know it. settings: the method and its params. template: the
    chat template.
    """
    given = {_option(word) for word in own}
    overrides = {"architectures": [ARCHITECTURE], SETTINGS: settings}
    arguments = [*own, "--model", str(folder)]
    if "--served-model-name" not in given:
        arguments += ["--served-model-name", model]
    if not allow_urls and "--allowed-media-domains" not in given:
        arguments += ["--allowed-media-domains", NO_URLS]
    arguments += ["--host", host, "--port", str(port), "--dtype", dtype]
    return [*arguments, "--chat-template", template, "--hf-overrides", json.dumps(overrides)]


def server_environment(
    *, quiet: bool = False, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of the server: our plug-in runs, and vLLM reports to nobody unless asked."""
    given = {"VLLM_NO_USAGE_STATS": "1", **environment}
    if quiet:
        given["VLLM_LOGGING_LEVEL"] = "ERROR"
    plugins = given.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        given["VLLM_PLUGINS"] = f"{plugins},{PLUGIN}" if plugins else PLUGIN
    return given
