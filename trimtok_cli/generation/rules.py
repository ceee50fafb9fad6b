"""The rules of an answer's tokens: the checkpoint's generation settings, overruled by the user's.

Logits processors and stopping criteria are transformers' own, made from the generation config, one
set for each answer. They see the same ids as in a `generate` of that answer alone: the dense
prompt, placeholders included, then the answer so far. Pruning takes rows from the prompt, not ids
from the processors. Knows no pruner, no cache and no image.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode

from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.generation.on_the_way import OnTheWay
from trimtok_cli.generation.seeds import mixed_seed
from trimtok_cli.sampling import COLDEST, Sampling, check_length
from trimtok_cli.tokens import Prompt

NEW_TOKENS = 128  # used if neither the user nor the checkpoint sets a length

FILE = "generation_config.json"

# Settings that a loop of single tokens cannot follow, with the values that ask for nothing.
SEARCHES: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
    "speculation_type": (None,),
    "guidance_scale": (None, 1),
    "num_return_sequences": (None, 1),
    "token_healing": (None, False),
    "max_time": (None,),
}

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


@dataclass
class Answer:
    """One answer under way: its processors, and its tokens so far, the end token included.

    prompt (S,): the ids that the processors see before the answer. finish: stop, length, error, or
    empty while the answer goes on. coming: the prompt's ids on their way to the host, for criteria.
    """

    rules: "Rules"
    prompt: Tensor
    processors: Sequence[Any]
    generator: torch.Generator | None
    limit: int
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    coming: OnTheWay | None = None

    def take(self, token: int) -> None:
        """Adds a token; a negative one is no token."""
        if token < 0:
            self.finish = "error"
            return
        self.ids.append(token)
        if token in self.rules.ends or self.rules.stops(self):
            self.finish = "stop"
        elif len(self.ids) == self.limit:
            self.finish = "length"

    @cached_property
    def prompt_here(self) -> Tensor:
        """The prompt's ids on the CPU, fetched once: criteria read them at every token."""
        return (self.coming or OnTheWay(self.prompt)).here()

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids without the end token."""
        return tuple(self.ids[:-1] if self.ids and self.ids[-1] in self.rules.ends else self.ids)

    @property
    def error(self) -> SampleError | None:
        if self.finish != "error":
            return None
        return SampleError(
            "no next token has a number as its score: the model made NaN or infinity of this "
            "input (damaged weights, or a "
            "--dtype that is too small: try float32), or its generation settings forbid "
            "every token."
        )


class Rules:
    """The generation settings of a run. Raises ModelError for settings that cannot be followed.

    network: the transformers model. name: the checkpoint's name, for sentences. stop: False ignores
    end tokens, for measuring, and also the checkpoint's settings unless `sampling` is given.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        name: str,
        end_ids: Sequence[int],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: bool = True,
    ) -> None:
        check_length(max_new_tokens)
        self.model, self.name, self.device = network, name, network.device
        self.sampling, self.given_length = sampling or Sampling(), max_new_tokens
        self.ends = frozenset(end_ids if stop else ())
        self.dropped: dict[str, Any] = {}  # settings that --greedy leaves out
        self.criteria: Sequence[Any] = ()
        self.processor_names: tuple[str, ...] = ()
        self.samples = False
        if not stop and sampling is None:
            self.config = GenerationConfig(max_new_tokens=max_new_tokens)
            return
        try:
            self.config = self._config()
            self._try(network.lm_head.weight.shape[0])
            criteria = self.model._get_stopping_criteria(
                self.config, StoppingCriteriaList(), tokenizer
            )
        except ModelError:
            raise
        except Exception as error:
            # The library raises errors of any type at a value that it does not expect.
            said = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
            raise ModelError(
                f"{FILE} of {self.name} cannot be followed: {said}. Mend the file, or "
                "overrule it (--greedy, --temperature)."
            ) from error
        self.samples = bool(self.config.do_sample)
        known = ("MaxLengthCriteria", "EosTokenCriteria")  # the loops check these themselves
        self.criteria = [each for each in criteria if type(each).__name__ not in known]

    @property
    def plain(self) -> bool:
        """Whether every token is simply the likeliest one."""
        return not self.processor_names and not self.samples

    def answer(self, prompt: Prompt) -> Answer:
        """A new answer to a prompt. Raises SampleError if the prompt leaves it no room."""
        ids = (
            prompt.ids
            if prompt.ids is not None
            else torch.empty(0, dtype=torch.long, device=self.device)
        )
        limit = self.limit(prompt)
        processors = (
            self._processors(ids, limit, self.config, self.device) if self.processor_names else ()
        )
        generator = (
            torch.Generator(self.device).manual_seed(mixed_seed(self.sampling.seed, prompt.seed))
            if self.samples
            else None
        )
        # A copy that is asked for before the prefill is there before the answer's first token.
        coming = OnTheWay(ids) if self.criteria else None
        return Answer(self, ids, processors, generator, limit, coming=coming)

    def refusal(self, prompt: Prompt) -> SampleError | None:
        """The error of a prompt that cannot be answered at all; None if it can."""
        try:
            self.limit(prompt)
        except SampleError as error:
            return error
        return None

    def limit(self, prompt: Prompt) -> int:
        """The most new tokens behind a prompt: the user's, the checkpoint's, or our own number.

        Raises SampleError if no token is left.
        """
        if self.own_length is None:
            return self.most
        own, length = self.own_length, len(prompt) if prompt.ids is None else len(prompt.ids)
        if own <= length:
            raise SampleError(
                f"the prompt has {length} tokens, and {FILE} of the model allows {own} with "
                "the answer (max_length); "
                "give --max-new-tokens."
            )
        return own - length

    @property
    def most(self) -> int:
        """The most new tokens that any answer may have."""
        return self.own_length or self.given_length or self.config.max_new_tokens or NEW_TOKENS

    @property
    def own_length(self) -> int | None:
        """The checkpoint's max_length, which counts the dense prompt.

        None if a number of new tokens is set.
        """
        counted = self.given_length is None and self.config.max_new_tokens is None
        return self.model.generation_config.max_length if counted else None

    def stops(self, answer: Answer) -> bool:
        """Whether a further criterion of the checkpoint, such as a stop string, ends an answer.

        It is asked on the host, which reads tokens while the device is at work on the next step.
        """
        if not self.criteria:
            return False
        ids = torch.cat([answer.prompt_here, torch.tensor(answer.ids)])[None]
        return any(bool(each(ids, None).any()) for each in self.criteria)

    def _config(self) -> GenerationConfig:
        """The user's settings over the checkpoint's, which stand over the library's defaults."""
        if "generate" in vars(self.model):
            raise ModelError(
                f"{self.name} brings a `generate` of its own, which cannot be followed here."
            )
        config, _ = self.model._prepare_generation_config(GenerationConfig())
        asked = {
            name: value
            for name in SEARCHES
            if (value := getattr(config, name, None)) not in SEARCHES[name]
        }
        self.dropped, refused = (asked, {}) if self.sampling.greedy else ({}, asked)
        without = {name: SEARCHES[name][-1] for name in self.dropped}
        config.update(**self.sampling.overrides, **without, eos_token_id=sorted(self.ends) or None)
        mode = config.get_generation_mode()
        if mode is GenerationMode.SAMPLE or config.top_k in (None, 0, 1):
            refused.pop("penalty_alpha", None)  # `generate` itself ignores it then
        if refused or mode not in MODES:
            said = ", ".join(f"{name} {value}" for name, value in refused.items()) or mode.value
            raise ModelError(
                f"{FILE} of {self.name} asks for {said}, which cannot be had here; --greedy "
                "answers without it."
            )
        if config.cache_implementation == "quantized":
            raise ModelError(
                f"{FILE} of {self.name} asks for a quantized cache, which cannot be had "
                "here; take it out."
            )
        if (
            config.do_sample
            and config.temperature is not None
            and not (config.temperature >= COLDEST)
        ):
            said = f"{FILE} of {self.name} asks for sampling at temperature {config.temperature}"
            raise ModelError(f"{said}; overrule it with --temperature or --greedy.")
        self.model._prepare_special_tokens(config, True, device=self.device)
        return config

    def _processors(
        self, ids: Tensor, limit: int, config: GenerationConfig, device: torch.device
    ) -> Sequence[Any]:
        """The processors that `generate` makes for a prompt of these ids alone."""
        config = copy.copy(config)
        config.max_length = len(ids) + limit
        if config.min_new_tokens is not None:
            config.min_length = len(ids) + config.min_new_tokens
        return self.model._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=len(ids),
            encoder_input_ids=ids[None],
            device=device,
            logits_processor=LogitsProcessorList(),
            model_kwargs={},
        )

    def _try(self, vocabulary: int) -> None:
        """Tries one step on the CPU, with a prompt of two tokens.

        A setting that cannot work is thus known before the run.
        """
        host, config = torch.device("cpu"), copy.copy(self.config)
        self.model._prepare_special_tokens(config, True, device=host)
        ids, scores = torch.zeros(2, dtype=torch.long), torch.linspace(-20, 20, vocabulary)[None]
        found = self._processors(ids, 2, config, host)
        self.processor_names = tuple(type(each).__name__ for each in found)
        for each in found:
            scores = each(ids[None], scores)
        if scores.shape != (1, vocabulary) or bool((scores.isnan() | (scores == torch.inf)).any()):
            raise ValueError(
                f"its settings ({', '.join(self.processor_names)}) make scores that are no numbers"
            )
