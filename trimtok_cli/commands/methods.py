"""trimtok methods: what there is to prune with, and what each method needs."""

import typer
from rich.console import Console
from rich.table import Table

from trimtok_cli.commands import options as o
from trimtok_cli.commands.guard import guarded
from trimtok_cli.commands.models import Plain
from trimtok_cli.errors import EXIT_OK

EXAMPLES = "Examples:\n\ntrimtok methods\n\ntrimtok compare ./images --methods trimtokenator,divprune,random --keep 64"
LLAVA_ONLY = {
    "features",
    "project",
    "last_saliency",
    "last_keys",
    "blocks",
}  # signals of a tower whose tokens are projected one by one
SIGNALS = LLAVA_ONLY | {"saliency", "keys", "relevance"}


@guarded
def methods(plain: Plain = False, debug: o.Debug = False) -> int:
    """List the pruning methods: where they prune, what they need, on which families, paper, licence of the published code."""
    from trimtok_cli.pruners import PRUNERS

    head = ("method", "prunes", "needs text", "needs attention", "families", "paper", "licence of the published code")
    rows = [_row(name, kind) for name, kind in PRUNERS.items() if kind is not None]
    if plain:
        for row in rows:
            typer.echo("\t".join(row))
        return EXIT_OK
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return EXIT_OK


def _row(name: str, kind) -> tuple[str, ...]:
    needs = set(kind.needs)
    attention = [
        word for word, there in (("language model", "attention" in needs), ("vision tower", bool(needs & SIGNALS))) if there
    ]
    families = "with a CLIP text tower, or --param text=llm" if "relevance" in needs else "LLaVA" if needs & LLAVA_ONLY else "all"
    paper = f"arXiv {kind.paper}" if kind.paper else ""
    return (name, kind.where, "yes" if "text" in needs else "no", ", ".join(attention) or "no", families, paper, kind.licence)
