"""The look at every sample that `check` takes: its files decoded, its question written, counted.

Samples are prepared as a run prepares them, by the same workers, and nothing is encoded. Rows that
show the same files are prepared once, unless a question is out of the ordinary.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtok_cli import interrupts
from trimtok_cli.commands.check_output import Output
from trimtok_cli.commands.terminal.progress import Screen
from trimtok_cli.config import RunConfig
from trimtok_cli.data import Failed, Result, Sample, TokenCounts
from trimtok_cli.errors import MediaError, ModelError, sentence
from trimtok_cli.media.census import Census
from trimtok_cli.models.catalog import CHECKPOINTS, locate
from trimtok_cli.prepare.processes import Processes
from trimtok_cli.readers.keys import keyed
from trimtok_cli.readers.shards import part_of
from trimtok_cli.readers.source import late
from trimtok_cli.wording import shown_name

if TYPE_CHECKING:
    from trimtok_cli.evaluation.forecast import Forecast

# Characters of a question that may be too long for a model beside other questions on its picture.
LONG_QUESTION = 2000

# Kinds of problems: of a row, of a file, of a question that the model cannot be asked.
ROW, FILE, QUESTION = ("row", "file", "question")


@dataclass(frozen=True)
class Plan:
    """What is known of a run before its samples are met.

    forecast: None where the model is not on this machine; `note` says so then, and `stated` what
    the catalog says of its tokens. method: by the name it has in measurements.
    """

    ask: Any
    looking: Any
    batch: int
    model: str
    method: str = ""
    forecast: "Forecast | None" = None
    note: str = ""
    stated: str = ""


class Survey:
    """What was found in the samples met so far.

    failed: samples that a run could not answer. complete: whether all samples were met.
    """

    def __init__(self, plan: Plan, output: Output, screen: Screen) -> None:
        self.plan, self.output, self.screen = plan, output, screen
        self.census = Census()
        self.complete = False
        self.num_samples = 0
        self.problems: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.asked_again: list[str] = []
        self.same: list[list[str]] = []
        # What is prepared once -> how many samples show it, and what came of it, None for failures.
        self.times: Counter[Any] = Counter()
        self.outcomes: dict[Any, TokenCounts | None] = {}
        self.under_way: deque[Any] = deque()
        self.longest = 0

    def look_at(self, samples: Iterable[Sample], workers: int, processes: Processes) -> None:
        from trimtok_cli.prepare.pool import prefetch

        each = prefetch(
            self.plan.looking,
            self._new(samples),
            self.plan.ask,
            workers=workers,
            processes=processes,
        )
        for prepared in each:
            interrupts.look()
            self._add(self.under_way.popleft(), prepared)
        for names in self.census.same_content():
            interrupts.look()
            self.same.append([shown_name(name) for name in names])
        self.complete = True

    def _new(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples that have to be prepared; the others are counted."""
        every = keyed(late(samples, "the source"))
        for sample in part_of(every, self.output.options.part):
            self.num_samples += 1
            self.output.note(sample)
            if sample.turn > 1:
                self.asked_again.append(_name(sample))
            media = [*sample.images, *([sample.video] if sample.video else [])]
            places = tuple(self.census.add(medium) for medium in media)
            question = sample.question or ""
            odd = len(question) > LONG_QUESTION or "<image>" in question or "<video>" in question
            what = sample.key if sample.problem or not places else (places, odd and question)
            self.times[what] += 1
            if self.times[what] > 1:
                self.screen.advance(Result(sample, question))
                continue
            self.under_way.append(what)
            yield sample

    def _add(self, what: Any, prepared: Any) -> None:
        """Takes in a sample that was prepared, or could not be."""
        sample, tokens, error = prepared.sample, TokenCounts(), ""
        forecast = self.plan.forecast
        if isinstance(prepared, Failed):
            error = sentence(prepared.error)
            kind = FILE if isinstance(prepared.error, MediaError) else QUESTION
        else:
            if forecast is not None:
                seen = forecast.tokens(prepared.inputs)
                tokens = TokenCounts(text=seen.text, visual=seen.dense, kept=seen.kept)
                self.longest = max(self.longest, forecast.prompt_length(seen))
                error, kind = forecast.problem(seen), QUESTION
            self.warnings += [
                {"sample": sample.id, "image": _name(sample), "warning": warning}
                for media in prepared.media
                for warning in media.warnings
            ]
        self.outcomes[what] = None if error else tokens
        if error:
            kind = ROW if sample.problem else kind
            self.problems.append(
                {"sample": sample.id, "image": _name(sample), "kind": kind, "error": error}
            )
        self.screen.advance(Result(sample, sample.question or "", error=error, tokens=tokens))

    @property
    def failed(self) -> int:
        return sum(self.times[what] for what, outcome in self.outcomes.items() if outcome is None)

    def found(self) -> dict[str, Any]:
        """The findings for JSON."""
        looked_at = sum(self.times[what] for what in self.outcomes)
        return {
            "samples": {
                "total": self.num_samples,
                "looked_at": looked_at,
                "sound": looked_at - self.failed,
                "failed": self.failed,
            },
            "files": {
                "count": len(self.census.met),
                "bytes": self.census.num_bytes,
                "formats": dict(self.census.formats.most_common()),
            },
            "problems": self.problems,
            "warnings": self.warnings,
            "duplicates": {"asked_again": self.asked_again, "same_content": self.same},
            "model": {
                "name": self.plan.model,
                "here": self.plan.forecast is not None,
                "note": self.plan.note,
                "stated_tokens": self.plan.stated,
            },
            "tokens": self._tokens(),
            "memory": self._memory(),
        }

    def _tokens(self) -> dict[str, Any] | None:
        """Tokens of the samples that can be asked; None where they cannot be foreseen."""
        sound = {what: tokens for what, tokens in self.outcomes.items() if tokens is not None}
        if self.plan.forecast is None or not sound:
            return None
        number = sum(self.times[what] for what in sound)
        # Methods that prune inside the language model may leave fewer at its end than --keep says.
        found: dict[str, Any] = {"exact": not self.plan.forecast.prefills_dense}
        for name, field in (("dense", "visual"), ("kept", "kept"), ("text", "text")):
            counts = {what: getattr(tokens, field) for what, tokens in sound.items()}
            total = sum(count * self.times[what] for what, count in counts.items())
            found[name] = {
                "total": total,
                "mean": total / number,
                "least": min(counts.values()),
                "most": max(counts.values()),
            }
        return found

    def _memory(self) -> dict[str, Any] | None:
        if self.plan.forecast is None:
            return None
        return self.plan.forecast.memory(self.longest, self.plan.batch)


def _name(sample: Sample) -> str:
    return ", ".join(sample.names) or str(sample.id)


def plan_of(config: RunConfig, screen: Screen) -> Plan:
    """The plan of a run: its pruner, and its model where that is on this machine.

    Raises UsageError and ModelError as the run would before its first answer.
    """
    place = locate(config.model)  # an unknown name is refused before torch is imported
    screen.say(f"looking at {config.model} ...", "dim")
    from trimtok_cli.commands.run import build
    from trimtok_cli.commands.session import ask_of
    from trimtok_cli.models.blank import blank_model, folder_here
    from trimtok_cli.models.broken import Broken
    from trimtok_cli.prepare.looking import Looking

    pruner, ask = build(config), ask_of(config)
    note, blank = "it is not on this machine", None
    try:
        folder = folder_here(config.model, revision=config.revision or None)
        if folder is not None:
            blank = blank_model(
                folder,
                config.model,
                dtype=_dtype(config),
                trust_remote_code=config.trust_remote_code,
            )
    except (Broken, ModelError) as error:
        if isinstance(place, Path):
            message = f"--model {config.model} cannot be loaded: {error}."
            raise ModelError(message) if isinstance(error, Broken) else error from None
        note = f"it is not whole on this machine ({str(error).rstrip('.')})"
    named = {"model": config.model, "batch": config.batch_limit or 1}
    if blank is None:
        known = (each for each in CHECKPOINTS if config.model in (each.alias, each.hub_id))
        stated = next((each.tokens for each in known), "")
        return Plan(ask, Looking(), note=note, stated=stated, **named)
    from trimtok_cli.commands.session import check_video
    from trimtok_cli.engine.prompt_stage import check_method
    from trimtok_cli.evaluation.forecast import Forecast

    check_video(blank.adapter, config)
    check_method(blank.adapter, pruner)
    forecast = Forecast(blank, pruner, ask)
    method = forecast.method
    return Plan(ask, Looking(blank.adapter.preprocessor), method=method, forecast=forecast, **named)


def _dtype(config: RunConfig) -> Any:
    """The dtype that a run would load weights in; a CUDA device need not be there yet."""
    import torch

    from trimtok_cli.device import pick_device, pick_dtype

    if config.device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return pick_dtype(config.dtype, pick_device(config.device))
