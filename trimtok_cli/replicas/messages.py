"""What the processes of one run say to each other, as pickles through their pipes.

The parent sends one Task, then a Turn for each `ASK`. A replica sends Ready or a Refusal, then ASK
and Results as they come. Knows no model.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtok_cli.config import RunConfig
from trimtok_cli.data import Sample, Setting
from trimtok_cli.errors import ModelError, TrimtokError, UsageError, sentence

ASK = "ask"  # a replica could take one more sample


@dataclass(frozen=True)
class Task:
    """The run, as every replica is told it. sources: where the settings came from."""

    config: RunConfig
    sources: Mapping[str, str]
    debug: bool = False


@dataclass(frozen=True)
class Turn:
    """The reply to ASK. sample: None is "answer what you hold". alone: nothing is to run beside."""

    sample: Sample | None = None
    alone: bool = False


@dataclass(frozen=True)
class Ready:
    """A model is loaded: its facts for run.json, and sentences for the user."""

    setting: Setting
    engine: Mapping[str, str]
    model: Mapping[str, str]
    generation: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A process that could not be started as yet; text: a sentence for the user, or nothing."""

    text: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a replica cannot start or go on; name: the class of the error."""

    name: str
    text: str

    @classmethod
    def of(cls, error: Exception) -> "Refusal":
        known = isinstance(error, TrimtokError)
        return cls(type(error).__name__, str(error) if known else sentence(error))

    def error(self) -> TrimtokError:
        kinds = {kind.__name__: kind for kind in (ModelError, UsageError)}
        return kinds.get(self.name, TrimtokError)(self.text)


def packed(message: Any) -> bytes:
    return pickle.dumps(message, protocol=5)
