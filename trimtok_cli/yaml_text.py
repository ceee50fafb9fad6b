"""YAML that a stranger may have written, read within bounds of size, depth and work.

Tags and repeated keys are refused. A file is named by its path, a shipped preset by its name. Knows
no setting.
"""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from trimtok_cli.errors import UsageError
from trimtok_cli.wording import brief, suggestion

MOST_CHARACTERS, MOST_DEPTH, MOST_VALUES = 100_000, 50, 20_000

PRESETS = tuple(
    path
    for path in (Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs")
    if path.is_dir()
)

_TAG = "tag:yaml.org,2002:"

_TAGS = {
    _TAG + name
    for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")
}


def preset_names(inside: str = ".") -> list[str]:
    """The presets in the folder `inside` of configs/."""
    return sorted({path.stem for folder in PRESETS for path in (folder / inside).glob("*.yaml")})


def read_yaml(
    name: str, *, inside: str = ".", flag: str = "--config", as_text: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """A YAML file by path, or a shipped preset by its name, such as `demo`.

    inside: the folder of configs/ that holds the presets. as_text: keys whose values are taken as
    they are written, not as YAML's numbers and truth values.
    """
    path, where = Path(name), f"{flag} {brief(name)}"
    if not name.strip():
        raise UsageError(f"{flag} must not be empty: name a YAML file or a preset.")
    try:
        if not path.is_file():
            named = [folder / inside / f"{name.removesuffix('.yaml')}.yaml" for folder in PRESETS]
            path = next((p for p in named if p.is_file()), path)
        if not path.is_file() and os.path.lexists(name):
            raise UsageError(
                f"{where}: is no plain file; write the settings into a YAML file and name that."
            )
        if not path.is_file():
            presets = preset_names(inside)
            raise UsageError(
                f"{where}: there is no such file, and no preset of that name"
                f"{suggestion(name, presets)}; presets are {', '.join(presets)}."
            )
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"{where}: cannot be read as YAML ({reason}).") from None
    values = load(text, f"{where}:", as_text=as_text)
    if not isinstance(values, dict):
        raise UsageError(f"{where}: must hold `key: value` lines.")
    found = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(found) < len(values):
        raise UsageError(f"{where}: holds one key twice, with - and with _; keep one of them.")
    return str(path), found


def load(text: str, where: str, *, as_text: Collection[str] = ()) -> Any:
    """The value that `text` holds. Raises UsageError, with a sentence that begins with `where`.

    as_text: keys of the topmost mapping whose values are taken as they are written: 0012 stays
    0012, and yes stays yes.
    """
    if len(text) > MOST_CHARACTERS:
        raise UsageError(
            f"{where} is too long to be settings ({len(text)} characters, at most "
            f"{MOST_CHARACTERS})."
        )
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, where, {}, ())
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)
            node.value = [(key, _as_written(key, value, as_text)) for key, value in node.value]
        return loader.construct_document(node)
    except RecursionError:
        raise UsageError(
            f"{where} is nested too deeply: settings are at most {MOST_DEPTH} deep."
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(
            f"{where} cannot be read as YAML ({brief(' '.join(str(error).split()), 200)})."
        ) from None
    # A date that does not exist, or a number of 5,000 digits.
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise UsageError(
            f"{where} holds a value that YAML cannot read ({brief(str(error), 200)})."
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def _measure(node: yaml.Node, where: str, known: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of values that a node stands for; an alias counts as the values it repeats."""
    if node.tag not in _TAGS:
        tag = brief(node.tag.removeprefix(_TAG))
        raise UsageError(
            f"{where} has the tag {tag}: settings are plain text, numbers, lists and names."
        )
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise UsageError(f"{where} holds a list or mapping that contains itself.")
    if len(above) >= MOST_DEPTH:
        raise UsageError(f"{where} is nested too deeply: settings are at most {MOST_DEPTH} deep.")
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = Counter(
            (key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)
        )
        if twice := [key for (_, key), times in keys.items() if times > 1]:
            raise UsageError(f"{where} holds the key {brief(twice[0])} twice.")
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    count = 1
    for part in parts:
        count += _measure(part, where, known, (*above, id(node)))
        if count > MOST_VALUES:
            raise UsageError(
                f"{where} stands for too many values: settings hold at most {MOST_VALUES}."
            )
    known[id(node)] = count
    return count


def _as_written(key: yaml.Node, value: yaml.Node, names: Collection[str]) -> yaml.Node:
    plain = (
        isinstance(key, yaml.ScalarNode)
        and isinstance(value, yaml.ScalarNode)
        and value.tag != _TAG + "null"
    )
    if plain and key.value.replace("-", "_") in names:
        return yaml.ScalarNode(_TAG + "str", value.value, value.start_mark, value.end_mark)
    return value
