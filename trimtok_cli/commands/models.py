"""trimtok models: the checkpoints that have short names."""

from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.listing import show_list
from trimtok_cli.errors import EXIT_OK
from trimtok_cli.models.catalog import CHECKPOINTS, in_cache

EXAMPLES = "Examples:\n\ntrimtok models\n\ntrimtok caption ./images --model qwen2.5-vl-7b"

HEAD = ("alias", "hub id", "family", "dense visual tokens", "in the cache", "licence")

Plain = Annotated[
    bool,
    typer.Option("--plain", help="One line each, tabs between the columns, for other programs."),
]


@guarded
def models(plain: Plain = False, debug: o.Debug = False) -> int:
    """The command `trimtok models`; its help is in `cli.COMMANDS`."""
    rows = [
        (c.alias, c.hub_id, c.family, c.tokens, "yes" if in_cache(c.hub_id) else "no", c.licence)
        for c in CHECKPOINTS
    ]
    if plain:
        for row in rows:
            typer.echo("\t".join(row))
        return EXIT_OK
    show_list(HEAD, rows, names=2)
    return EXIT_OK
