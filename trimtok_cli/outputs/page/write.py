"""The page of a comparison: one HTML file of pictures, kept tokens drawn over them, and answers.

Names, questions, answers and errors are untrusted text, and the template escapes all of it; only
the page's own script may run. Knows no model: each Comparison brings the boxes of its tokens.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trimtok_cli import units
from trimtok_cli.data import Comparison
from trimtok_cli.evaluation.headline import explain
from trimtok_cli.evaluation.summary import Row, figures, groups, summarize
from trimtok_cli.outputs.page.cards import STAGES, bars, card, data
from trimtok_cli.outputs.page.plots import HEIGHT, WIDTH, plots
from trimtok_cli.outputs.page.shelf import Shelf
from trimtok_cli.outputs.pictures import Loader
from trimtok_cli.outputs.whole_files import write_whole

SAMPLES = 200  # of which a page shows cards at most
PANES = 1600  # cards are fewer where there are many settings: a page of more opens slowly

_HERE = Path(__file__).parent


def cards_shown(settings: int) -> int:
    """How many samples have a card on a page of so many settings."""
    return min(SAMPLES, max(PANES // max(settings, 1), 1))


def title_of(rows: Sequence[Row], model: str) -> str:
    """The title of a page: the model and what stands beside dense."""
    names = [row.label for row in rows[1:]]
    more = f" and {len(names) - 2} more settings" if len(names) > 3 else ""
    listed = ", ".join(names[: 2 if more else 3])
    return f"{model}: dense beside {listed}{more}" if names else f"{model}: dense"


def write_page(
    path: Path,
    comparisons: Sequence[Comparison],
    *,
    model: str,
    facts: Mapping[str, str],
    details: Mapping[str, str],
    loader: Loader,
    limit: int | None = None,
) -> None:
    """Writes the page: a card for each of the first `limit` samples, and a summary of all of them.

    model: its name. facts, details: the conditions, in order; details are folded away. loader:
    reads the pictures; one that it refuses becomes a box with the reason. limit: by default
    `cards_shown`.
    """
    rows = summarize(comparisons)
    limit = cards_shown(len(rows)) if limit is None else limit
    shelf = Shelf(loader)
    cards = [card(i, each, shelf) for i, each in enumerate(comparisons[:limit], start=1)]
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title_of(rows, model),
            sentence=explain(rows),
            facts=facts,
            details=details,
            rows=rows,
            groups=groups(comparisons),
            plots=plots(rows),
            plot_size=(WIDTH, HEIGHT),
            cards=cards,
            shelf=shelf.all,
            layers=_layers(comparisons[:limit]),
            samples=len(comparisons),
            stages=STAGES,
            style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
            data=_data(comparisons[:limit], rows),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file name that is no valid Unicode holds lone surrogates; they become "?" rather than end
    # the page. HTML has no NUL.
    write_whole(path, page.replace("\0", "�").encode("utf-8", "replace").decode("utf-8"))


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": units.duration,
        "percent": units.percent,
        "pace": units.pace,
        "bars": bars,
    }
    return environment


def _layers(comparisons: Sequence[Comparison]) -> list[int]:
    """The layers behind which any setting reduces, if some setting does so more than once."""
    stages = [
        [stage.layer for stage in result.kept]
        for comparison in comparisons
        for result in comparison.results
    ]
    several = any(len(layers) > 1 for layers in stages)
    return sorted({layer for layers in stages for layer in layers}) if several else []


def _data(comparisons: Sequence[Comparison], rows: Sequence[Row]) -> dict[str, Any]:
    """What the page's script filters by and hands out as files."""
    return {
        "summary": [figures(row) for row in rows],
        "samples": [data(i, each) for i, each in enumerate(comparisons, start=1)],
    }
