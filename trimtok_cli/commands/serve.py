"""trimtok serve: vLLM's OpenAI-compatible server, whose images take as many tokens as --keep."""

from pathlib import Path
from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.run import build
from trimtok_cli.commands.session import pruning
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Setting
from trimtok_cli.errors import ModelError
from trimtok_cli.models.catalog import ALIASES, locate

EXAMPLES = (
    "Examples:\n\n"
    "trimtok serve llava-1.5-7b --keep 64\n\n"
    "trimtok serve ./model --keep 64 --port 8001 --vllm-args '--max-model-len 2048'\n\n"
    "Then any client of OpenAI's chat completions may ask at http://127.0.0.1:8000/v1, with images "
    "as image_url. `usage` counts the tokens that are left."
)

SETTINGS = ("keep", "method", "params", "dtype", "revision", "seed", "allow_urls")

SERVER = "Server"

Model = Annotated[
    str, typer.Argument(help="A LLaVA-1.5: alias, hub id or local folder.", show_default=False)
]

Host = Annotated[
    str,
    typer.Option(
        "--host",
        rich_help_panel=SERVER,
        help="The address to listen at; 0.0.0.0 lets other machines ask as well.",
    ),
]

Port = Annotated[
    int, typer.Option("--port", rich_help_panel=SERVER, min=1, max=65535, help="The port.")
]

VllmArgs = Annotated[
    str,
    typer.Option(
        "--vllm-args",
        rich_help_panel=SERVER,
        help="Further arguments of `vllm serve`, as one text: '--api-key KEY --max-num-seqs 8'.",
        show_default=False,
    ),
]


@guarded
@o.settings(
    only=SETTINGS,
    instead={"allow_urls": {"help": "Fetch images whose image_url is an http or https address."}},
)
def serve(
    model: Model,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    vllm_args: VllmArgs = "",
    settings: RunConfig,
    config: o.Config = None,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok serve`; its help is in `cli.COMMANDS`."""
    from trimtok_cli.serving import command_line, process

    screen = Screen(quiet=quiet)
    version = command_line.check_vllm()
    own = command_line.own_arguments(vllm_args)
    process.check_address(host, port)
    locate(ALIASES.get(model, model), "MODEL")
    pruner = build(settings)
    from trimtok_cli.serving.pruning import check_served

    check_served(pruner)
    folder, template = _checkpoint(model, settings.revision)
    arguments = command_line.server_arguments(
        folder,
        model,
        {"method": settings.method, "params": pruning(settings, settings.method)},
        template,
        host=host,
        port=port,
        dtype=_dtype(settings.dtype),
        allow_urls=settings.allow_urls,
        own=own,
    )
    screen.say(f"{Setting.of(pruner).name} in vLLM {version}: http://{host}:{port}/v1", "dim")
    return process.run_server(arguments, command_line.server_environment(quiet=quiet))


def _checkpoint(model: str, revision: str) -> tuple[Path, str]:
    """The folder of a checkpoint that a server can prune, and the chat template it is served with.

    The folder is whole, and its processor loads.
    """
    from trimtok_cli.models.folder import find_folder
    from trimtok_cli.models.loading import read_checkpoint
    from trimtok_cli.models.registry import ADAPTERS
    from trimtok_cli.serving.command_line import check_family
    from trimtok_cli.serving.template import served_template

    folder, _ = find_folder(ALIASES.get(model, model), "MODEL", revision=revision or None)
    found = read_checkpoint(folder, model)
    if found.base is not folder:
        raise ModelError(
            f"MODEL {model} is a PEFT adapter, which trimtok serve does not cover: merge it into "
            "its base model first, or use trimtok vqa."
        )
    check_family(found.settings["config.json"], f"MODEL {model}")
    preprocessing = ADAPTERS[found.config.model_type].preprocessing
    return folder.path, served_template(preprocessing(found.processor, f"MODEL {model}"))


def _dtype(name: str) -> str:
    """The dtype's name; auto as every other command takes it."""
    from trimtok_cli.device import pick_device, pick_dtype

    return str(pick_dtype(name, pick_device("auto"))).removeprefix("torch.")
