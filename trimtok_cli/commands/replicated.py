"""A run in several processes: the parent's side of --gpus and --processes. Loads no model.

replicas/ starts and feeds the processes; replica.py is what runs in each.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from trimtok_cli.child_process import Child
from trimtok_cli.commands.session import Loaded, count_workers
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Result, Sample, Setting
from trimtok_cli.errors import ModelError
from trimtok_cli.outputs.fingerprint import differences_loaded
from trimtok_cli.replicas.group import Begin, Replicas
from trimtok_cli.replicas.messages import Ready, Task, packed
from trimtok_cli.replicas.places import Place

# The Python of a replica's process.
REPLICA = (
    "from trimtok_cli.child_process import inbox; messages = inbox(); from "
    "trimtok_cli.commands.replica import main; main(messages)"
)


def begin_here(place: Place, more: Mapping[str, str]) -> Child:
    """Starts a replica's process on this machine. Raises OSError."""
    return Child(REPLICA, os.environ | dict(more) | dict(place.environment))


def load_replicas(
    places: list[Place],
    config: RunConfig,
    number: int | None,
    debug: bool,
    screen: Screen,
    stack: ExitStack,
    begin: Begin = begin_here,
) -> Loaded:
    """Loads the model in a process at each place; returns when the first is ready.

    number: of the samples to be answered, None if not known. stack: ends the processes. begin:
    starts one.
    """
    count, name = len(places), "process" if len(places) == 1 else "processes"
    screen.say(f"loading {config.model} in {count} {name} ...", "dim")
    device = places[0].device
    workers = count_workers(config.workers, device, number, share=count)
    own = replace(config, device=device, workers=workers)
    first: list[Ready] = []

    def accept(ready: Ready) -> None:
        earlier = {"model": first[0].model} if first else {"model": {}}
        if found := differences_loaded(earlier, ready.model):
            raise ModelError(f"it does not load the same model: {'; '.join(found)}.")
        first.append(ready)

    def failed(sample: Sample, problem: str) -> Result:
        return Result(
            sample=sample,
            question=config.prompt if sample.question is None else sample.question,
            setting=first[0].setting if first else Setting(),
            error=problem,
            error_class="SampleError",
        )

    warn = partial(screen.say, style="yellow")
    group = Replicas(
        places,
        begin,
        packed(Task(own, config.sources, debug)),
        accept=accept,
        failed=failed,
        warn=warn,
    )
    stack.callback(group.close)
    ready = group.start()
    for note in ready.notes:
        screen.say(note, "dim")
    return Loaded(
        setting=ready.setting,
        engine=ready.engine,
        model=ready.model,
        generation=ready.generation,
        answer=partial(group.answer, total=number),
        facts={"replicas": group.facts},
    )
