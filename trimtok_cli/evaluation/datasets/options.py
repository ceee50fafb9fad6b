"""Questions with options: as they are written out, and how they are scored. Knows no file."""

from collections.abc import Mapping

from trimtok_cli.data import Sample


def with_letters(options: Mapping[str, str]) -> str:
    """The options a line: `A. a cat`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def options_of(sample: Sample) -> dict[str, str]:
    """The options of a sample by letter, as its reader left them in `extra`."""
    options = sample.extra.get("options")
    return dict(options) if isinstance(options, Mapping) else {}
