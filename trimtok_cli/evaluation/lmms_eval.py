"""trimtok as a model of lmms-eval: `lmms_eval --model trimtok --model_args pretrained=...,keep=64`.

The entry point `lmms_eval.models` leads to `MANIFEST`. Imported by lmms-eval alone, which trimtok
does not need. Knows no task.
"""

import logging
import os
from collections.abc import Iterable
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from trimtok_cli.data import FrameRule, Result, Sample
from trimtok_cli.engine.prompt_stage import check_method
from trimtok_cli.engine.stream import answer_all
from trimtok_cli.errors import UsageError
from trimtok_cli.models.loading import load_model
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.registry import build_pruner
from trimtok_cli.sampling import Sampling

log = logging.getLogger("trimtok")

MANIFEST = ModelManifest("trimtok", simple_class_path=f"{__name__}.Trimtok")


class Trimtok(lmms):
    """A checkpoint that answers with most visual tokens pruned.

    pretrained, device, dtype, revision: as in `load_model`. method, keep and whatever else: as in
    `build_pruner`. frames: of a video. batch_size: answers under way at once.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "llava-1.5-7b",
        method: str = "trimtokenator",
        keep: str | int | float = "11.1%",
        batch_size: int | str | None = 1,
        device: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("trimtok answers in one process: start lmms-eval without a launcher.")
        self.batch_size = None if batch_size == "auto" else int(batch_size or 1)
        loading = {
            name: more.pop(name) for name in ("dtype", "revision", "clip_text") if name in more
        }
        more.pop("max_batch_size", None)
        frames = {name: more.pop(name) for name in ("frames", "fps") if name in more}
        self.rule = FrameRule(**frames)
        self.pruner = build_pruner(method, {"keep": keep, **more})
        self.adapter = load_model(pretrained, device=device or "auto", **loading)
        check_method(self.adapter, self.pruner)

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """An answer for every request; a sample that fails is an empty one, and is logged."""
        found: dict[int, GenerationResult] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            options = requests[numbers[0]].args[1]
            samples = (self._sample(number, requests[number]) for number in numbers)
            results = answer_all(
                self.adapter, self.pruner, samples, self._ask(options), batch_size=self.batch_size
            )
            for result in results:
                found[int(result.sample.id)] = _answer(result, options.get("until") or ())
        return [found[number] for number in range(len(requests))]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise UsageError("trimtok gives answers, no likelihoods: take a task of generate_until.")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise UsageError("trimtok answers one question at a time: take a task of one round.")

    def _sample(self, number: int, request: Any) -> Sample:
        question, _, doc_to_visual, doc, task, split = request.args
        shown = doc_to_visual(self.task_dict[task][split][doc])
        return Sample(number, images=_flat(shown), question=question)

    def _ask(self, options: dict[str, Any]) -> Ask:
        """A task's generation settings over the checkpoint's; greedy where it names no warmth."""
        if int(options.get("num_beams") or 1) > 1:
            raise UsageError("trimtok searches with no beams: add --gen_kwargs num_beams=1.")
        warmth = options.get("temperature") or 0
        top_p = options.get("top_p")
        return Ask(
            max_new_tokens=int(options.get("max_new_tokens") or 1024),
            sampling=Sampling(temperature=warmth, top_p=top_p if warmth else None),
            frames=self.rule,
        )


def _flat(shown: Any) -> list[Any]:
    """The images and videos of a sample, which tasks give alone, in lists, or not at all."""
    if shown is None:
        return []
    if isinstance(shown, (list, tuple)):
        return [each for part in shown for each in _flat(part)]
    return [shown]


def _answer(result: Result, until: str | Iterable[str]) -> GenerationResult:
    """The answer up to the first of the task's stop strings."""
    if result.error:
        log.error("sample %s has no answer: %s", result.sample.id, result.error)
        return GenerationResult("", TokenCounts())
    text = result.answer
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    tokens = result.tokens
    return GenerationResult(
        text.strip(),
        TokenCounts(input_tokens=tokens.text + tokens.kept, output_tokens=tokens.generated),
    )
