"""trimtok methods: the pruning methods, what each needs, and all about one of them."""

from typing import Annotated

import typer

from trimtok_cli.commands import options as o
from trimtok_cli.commands.models import Plain
from trimtok_cli.commands.session import load
from trimtok_cli.commands.terminal.exit import guarded
from trimtok_cli.commands.terminal.listing import show_list
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.errors import EXIT_OK
from trimtok_cli.readers import Reading, read_any

EXAMPLES = (
    "Examples:\n\n"
    "trimtok methods\n\n"
    "trimtok methods trimtokenator\n\n"
    "trimtok compare ./images --methods trimtokenator,divprune,random --keep 64\n\n"
    "trimtok methods --find-vtw-layer questions.jsonl --limit 20 --eta 0.003"
)

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="A method: say everything about it, with its parameters and their defaults.",
        show_default=False,
        autocompletion=o.completing(o.method_names()),
    ),
]

Search = Annotated[
    str | None,
    typer.Option(
        "--find-vtw-layer",
        metavar="SOURCE",
        help="Find VTW's layer K for a model: KL on these images or questions.",
    ),
]

Eta = Annotated[
    float,
    typer.Option(
        "--eta", help="The KL (nats) that K may cost; the paper's are 0.003 for 7B, 0.0005 for 13B."
    ),
]

# Signals of a tower whose tokens are projected one by one.
LLAVA_ONLY = {
    "features",
    "project",
    "last_saliency",
    "last_keys",
    "blocks",
}

SIGNALS = LLAVA_ONLY | {"saliency", "keys", "relevance"}


@guarded
@o.settings(file="config_file", only=("model", "device", "dtype", "params", "limit"))
def methods(
    name: Name = None,
    *,
    plain: Plain = False,
    find_vtw_layer: Search = None,
    eta: Eta = 0.003,
    config: RunConfig,
    config_file: o.Config = None,
    debug: o.Debug = False,
) -> int:
    """The command `trimtok methods`; its help is in `cli.COMMANDS`."""
    if name is not None:
        from trimtok_cli.commands.method_details import method_details

        typer.echo(method_details(name))
        return EXIT_OK
    if find_vtw_layer is not None:
        return find_layer(find_vtw_layer, eta, config)
    from trimtok_cli.pruners.registry import PRUNERS

    head = (
        "method",
        "prunes",
        "needs text",
        "needs attention",
        "families",
        "paper",
        "licence of the published code",
    )
    rows = [_row(name, kind) for name, kind in PRUNERS.items() if kind is not None]
    if plain:
        for row in rows:
            typer.echo("\t".join(row))
        return EXIT_OK
    show_list(head, rows)
    return EXIT_OK


def find_layer(source: str, eta: float, config: RunConfig) -> int:
    """VTW's K by KL on the samples of a source, printed layer by layer."""
    samples = read_any([source], Reading(limit=config.limit or 20))
    adapter, ask = load(config, Screen(noun="samples"))
    from trimtok_cli.evaluation.vtw_layer import withdrawal_kls
    from trimtok_cli.pruners.methods.vtw import first_below

    kls = withdrawal_kls(adapter, samples.samples, ask)
    for layer, kl in kls.items():
        typer.echo(f"{layer}\t{kl:.6f}")
    found = first_below(kls, eta)
    typer.echo(
        f"no layer costs {eta:g} or less"
        if found is None
        else f"K = {found}: --method vtw --param layer={found}",
        err=True,
    )
    return EXIT_OK


def _row(name: str, kind) -> tuple[str, ...]:
    needs = set(kind.needs)
    attention = [
        word
        for word, there in (
            ("language model", "attention" in needs),
            ("vision tower", bool(needs & SIGNALS)),
        )
        if there
    ]
    families = (
        "LLaVA with --clip-text, all with text=llm"
        if "relevance" in needs
        else "LLaVA"
        if needs & LLAVA_ONLY
        else "all"
    )
    paper = f"arXiv {kind.paper}" if kind.paper else ""
    return (
        name,
        kind.where,
        "yes" if "text" in needs else "no",
        ", ".join(attention) or "no",
        families,
        paper,
        kind.licence,
    )
