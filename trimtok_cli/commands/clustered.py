"""A run on a Ray cluster: the command's side of --engine ray. Loads no model.

on_ray/ starts the processes, replicas/ feeds them, and replica.py is what runs in each.
"""

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from trimtok_cli.bounds import field_of, flag
from trimtok_cli.commands import replicated
from trimtok_cli.commands.options import AnswerOptions
from trimtok_cli.commands.resume import Begun
from trimtok_cli.commands.session import Loaded
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.models.catalog import locate
from trimtok_cli.on_ray.cluster import Asked, connected, places
from trimtok_cli.on_ray.host import Order


def load_on_ray(
    config: RunConfig, begun: Begun, options: AnswerOptions, screen: Screen, stack: ExitStack
) -> Loaded:
    """Loads the model in actors of the cluster; returns when the first is ready.

    stack: ends the actors, and a cluster that was started for the run.
    """
    cluster = stack.enter_context(connected(options.ray_address))
    device = "cpu" if config.device == "cpu" else "cuda"
    asked = Asked.by(device, options.ray_resources)
    count = cluster.count(options.processes, asked)
    workers = config.workers
    if workers == "auto":
        workers = 0 if device == "cpu" else cluster.workers(asked)
    own = replace(config, engine="local", device=device, workers=workers)
    own.sources.update(config.sources)
    order = Order(
        replicated.REPLICA,
        os.getcwd(),
        needed=(begun.root,) if begun.root else (),
        models=_models(config, begun),
    )
    loaded = replicated.load_replicas(
        places(count, device),
        own,
        begun.number,
        options.debug,
        screen,
        stack,
        partial(cluster.begin, order, asked),
    )
    return replace(loaded, engine={"name": "ray", "version": cluster.ray.__version__})


def _models(config: RunConfig, begun: Begun) -> dict[str, tuple[str, str]]:
    """The folder of each model that is one, by its option, and the identity of its files."""
    found = {}
    for name in ("model", "clip_text"):
        option = flag(field_of(RunConfig, name))
        if begun.identity.get(option):
            place = locate(getattr(config, name), option)
            found[option] = (str(Path(place).absolute()), begun.identity[option])
    return found
