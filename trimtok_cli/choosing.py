"""From logits to tokens: the checkpoint's generation settings, overruled by the user's, applied as `generate` would.

The processors and the stopping criteria are those that transformers itself makes of a generation config, one set for each answer,
which sees what it would see in a `generate` of its own: the ids of the dense prompt, placeholders included, then the answer so
far. Pruning takes rows from the prompt, not ids from what is penalised. Knows no pruner, no cache and no image.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMode

from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.models.base import Adapter
from trimtok_cli.sampling import COLDEST, Sampling, check_length, mixed
from trimtok_cli.tokens import Prompt

NEW_TOKENS = 128  # where neither the user nor the checkpoint says
FILE = "generation_config.json"

# What one token after the other cannot give: the setting, and its values that ask for nothing.
SEARCHES: dict[str, tuple] = {
    "num_beams": (None, 1), "num_beam_groups": (None, 1), "constraints": (None,), "force_words_ids": (None,),
    "penalty_alpha": (None, 0), "dola_layers": (None,), "prompt_lookup_num_tokens": (None,), "assistant_early_exit": (None,),
    "use_mtp": (None, False), "speculation_type": (None,), "guidance_scale": (None, 1), "num_return_sequences": (None, 1),
    "token_healing": (None, False), "max_time": (None,),
}  # fmt: skip
MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

# Processors that read scores alone, and one that reads which ids there are, run once for all rows; any other runs row by row.
OF_SCORES = {
    "TemperatureLogitsWarper", "TopHLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper",
    "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "LogitNormalization", "InfNanRemoveLogitsProcessor",
    "SuppressTokensLogitsProcessor",
}  # fmt: skip
# What is said in any case, what only sampling looks at, and what says nothing of tokens.
SAID = {"max_new_tokens", "seed", "eos_token_id", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty"}
WARPING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
SILENT = {
    "transformers_version", "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache",
    "cache_implementation", "cache_config", "max_cache_len", "return_dict_in_generate", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "compile_config", "disable_compile",
}  # fmt: skip
OF_WHICH_IDS = {"RepetitionPenaltyLogitsProcessor"}


@dataclass
class Answer:
    """One answer under way: what decides about its next token, and what it said so far, the end token included.

    prompt (S,): ids that its processors see before it. finish: stop, length, error, or nothing while it goes on.
    """

    rules: "Rules"
    prompt: Tensor
    processors: Sequence[Any]
    die: torch.Generator | None
    limit: int
    ids: list[int] = field(default_factory=list)
    finish: str = ""

    def take(self, token: int) -> None:
        """One token more; a negative one is none."""
        if token < 0:
            self.finish = "error"
            return
        self.ids.append(token)
        if token in self.rules.ends or self.rules.stops(self):
            self.finish = "stop"
        elif len(self.ids) == self.limit:
            self.finish = "length"

    @property
    def said(self) -> tuple[int, ...]:
        """The ids without the end token."""
        return tuple(self.ids[:-1] if self.ids and self.ids[-1] in self.rules.ends else self.ids)

    @property
    def error(self) -> SampleError | None:
        if self.finish != "error":
            return None
        return SampleError(
            "no next token has a number as its score: the model made NaN or infinity of this input (damaged weights, or a "
            "--dtype that is too small: try float32), or its generation settings forbid every token."
        )


class Rules:
    """The generation settings of a run. ModelError for what cannot be followed.

    stop False ignores end tokens, for measuring, and with them the checkpoint's settings unless `sampling` is given.
    """

    def __init__(
        self, adapter: Adapter, *, max_new_tokens: int | None = None, sampling: Sampling | None = None, stop: bool = True
    ) -> None:
        check_length(max_new_tokens)
        self.model, self.name, self.device = adapter.model, adapter.name, adapter.device
        self.sampling, self.said_length = sampling or Sampling(), max_new_tokens
        self.ends = frozenset(adapter.end_ids if stop else ())
        self.dropped: dict[str, Any] = {}  # what --greedy does without
        self.criteria: Sequence[Any] = ()
        self.kinds: tuple[str, ...] = ()
        self.samples = False
        if not stop and sampling is None:
            self.config = GenerationConfig(max_new_tokens=max_new_tokens)
            return
        try:
            self.config = self._config()
            self._try(adapter.model.lm_head.weight.shape[0])
            criteria = self.model._get_stopping_criteria(self.config, StoppingCriteriaList(), adapter.processor.tokenizer)
        except ModelError:
            raise
        except Exception as error:  # whatever the library, and what it is given, raises at a value that is not of its kind
            said = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
            raise ModelError(
                f"{FILE} of {self.name} cannot be followed: {said}. Mend the file, or overrule it (--greedy, --temperature)."
            ) from error
        self.samples = bool(self.config.do_sample)
        known = ("MaxLengthCriteria", "EosTokenCriteria")  # of these the loops think themselves
        self.criteria = [each for each in criteria if type(each).__name__ not in known]

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all there is to it."""
        return not self.kinds and not self.samples

    def answer(self, prompt: Prompt) -> Answer:
        """A new answer to a prompt. SampleError where the prompt leaves no room for one."""
        ids = prompt.ids if prompt.ids is not None else torch.empty(0, dtype=torch.long, device=self.device)
        limit = self.limit(len(ids) or len(prompt))
        processors = self._processors(ids, limit, self.config, self.device) if self.kinds else ()
        die = torch.Generator(self.device).manual_seed(mixed(self.sampling.seed, prompt.seed)) if self.samples else None
        return Answer(self, ids, processors, die, limit)

    def limit(self, length: int) -> int:
        """The most new tokens behind a dense prompt of so many: the user's number, then the checkpoint's, then our own."""
        asked, own = self.said_length or self.config.max_new_tokens, self.model.generation_config.max_length
        if asked is not None or own is None:
            return asked or NEW_TOKENS
        if own <= length:
            raise SampleError(
                f"the prompt has {length} tokens, and {FILE} of the model allows {own} with the answer (max_length); "
                "give --max-new-tokens."
            )
        return own - length

    @property
    def most(self) -> int:
        """The most new tokens that any answer may have."""
        return self.limit(0)

    def stops(self, answer: Answer) -> bool:
        """Whether one of the checkpoint's further criteria, as a stop string, ends an answer here. Waits for the device."""
        if not self.criteria:
            return False
        ids = torch.cat([answer.prompt.cpu(), torch.tensor(answer.ids)])[None]
        return any(bool(each(ids, None).any()) for each in self.criteria)

    def described(self, sources: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """{setting: {value, from}} of all that decides about tokens. sources: where the user gave what, by RunConfig's names."""
        own = self.model.generation_config.to_dict()
        own = {name: value for name, value in own.items() if value is not None and name not in SILENT}
        said, greedy = self.sampling.overrides, self.sampling.greedy
        user = {name: sources.get(name, "given") for name in said} | {"seed": sources.get("seed", "default")}
        if "do_sample" in said:
            user["do_sample"] = sources.get("greedy" if greedy else "temperature", "given")
        if self.said_length is not None:
            user["max_new_tokens"] = sources.get("max_new_tokens", "given")
        if self.dropped:
            user |= dict.fromkeys(self.dropped, user["do_sample"])
        length = self.said_length or own.get("max_new_tokens") or (None if "max_length" in own else NEW_TOKENS)
        found = {"max_new_tokens": length, "seed": self.sampling.seed, "eos_token_id": sorted(self.ends)}
        found |= {name: getattr(self.config, name) for name in ("do_sample", *WARPING, "repetition_penalty")}
        found |= {name: getattr(self.config, name, None) for name in own if not name.startswith("_") and name not in found}
        found = {name: value for name, value in found.items() if name in user or name in own or name in SAID}
        return {
            name: {"value": _plain(value), "from": user.get(name) or ("checkpoint" if name in own else "default")}
            for name, value in found.items()
        }

    def notes(self, sources: Mapping[str, str]) -> list[str]:
        """What a user should know before the run, a line each: what the checkpoint asks for, and what has no effect."""
        described, lines = self.described(sources), []
        idle = {"eos_token_id", "max_new_tokens", "max_length", "do_sample", *(() if self.samples else WARPING)}
        mine = [
            f"{name} {each['value']}" for name, each in described.items() if each["from"] == "checkpoint" and name not in idle
        ]
        if described["do_sample"] == {"value": True, "from": "checkpoint"}:
            mine = ["sampling", *mine]
        if mine and (self.kinds or self.criteria or self.samples):
            lines.append(f"the checkpoint asks for {', '.join(mine)}" + ("; --greedy for none of the sampling" * self.samples))
        idle = [f"--{name.replace('_', '-')}" for name in ("top_p", "top_k") if name in self.sampling.overrides]
        if idle and not self.samples:
            lines.append(f"{' and '.join(idle)} changes nothing: answers are greedy; --temperature samples them")
        if self.dropped:
            lines.append("--greedy leaves out " + ", ".join(f"{name} {value}" for name, value in self.dropped.items()))
        return lines

    def _config(self) -> GenerationConfig:
        """The checkpoint's settings, the library's defaults where it says nothing, and the user's word over both."""
        if "generate" in vars(self.model):
            raise ModelError(f"{self.name} brings a `generate` of its own, which cannot be followed here.")
        config, _ = self.model._prepare_generation_config(GenerationConfig())
        config.update(**self.sampling.overrides, eos_token_id=sorted(self.ends) or None)
        if self.sampling.greedy:
            asked = {name: getattr(config, name, None) for name in SEARCHES}
            self.dropped = {name: value for name, value in asked.items() if value not in SEARCHES[name]}
            config.update(**{name: SEARCHES[name][-1] for name in self.dropped})
        mode = config.get_generation_mode()
        refused = {name: value for name in SEARCHES if (value := getattr(config, name, None)) not in SEARCHES[name]}
        if mode is GenerationMode.SAMPLE or config.top_k in (None, 0, 1):
            refused.pop("penalty_alpha", None)  # `generate` itself does not look at it then
        if refused or mode not in MODES:
            said = ", ".join(f"{name} {value}" for name, value in refused.items()) or mode.value
            raise ModelError(f"{FILE} of {self.name} asks for {said}, which cannot be had here; --greedy answers without it.")
        if config.cache_implementation == "quantized":
            raise ModelError(f"{FILE} of {self.name} asks for a quantized cache, which cannot be had here; take it out.")
        if config.do_sample and config.temperature is not None and not (config.temperature >= COLDEST):
            said = f"{FILE} of {self.name} asks for sampling at temperature {config.temperature}"
            raise ModelError(f"{said}; overrule it with --temperature or --greedy.")
        self.model._prepare_special_tokens(config, True, device=self.device)
        return config

    def _processors(self, ids: Tensor, limit: int, config: GenerationConfig, device: torch.device) -> Sequence[Any]:
        """As `generate` makes them for a prompt of these ids alone."""
        config = copy.copy(config)
        config.max_length = len(ids) + limit
        if config.min_new_tokens is not None:
            config.min_length = len(ids) + config.min_new_tokens
        return self.model._get_logits_processor(
            generation_config=config, input_ids_seq_length=len(ids), encoder_input_ids=ids[None], device=device,
            logits_processor=LogitsProcessorList(), model_kwargs={},
        )  # fmt: skip

    def _try(self, vocabulary: int) -> None:
        """One step on the CPU, of a prompt of two tokens: what a setting cannot do is known before the run."""
        host, config = torch.device("cpu"), copy.copy(self.config)
        self.model._prepare_special_tokens(config, True, device=host)
        ids, scores = torch.zeros(2, dtype=torch.long), torch.linspace(-20, 20, vocabulary)[None]
        found = self._processors(ids, 2, config, host)
        self.kinds = tuple(type(each).__name__ for each in found)
        for each in found:
            scores = each(ids[None], scores)
        if scores.shape != (1, vocabulary) or bool((scores.isnan() | (scores == torch.inf)).any()):
            raise ValueError(f"its settings ({', '.join(self.kinds)}) make scores that are no numbers")


class Chooser:
    """Chooses a token for each of the answers under way, answer by answer a row of the logits. Waits for nothing by itself."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.clear()

    def clear(self) -> None:
        self.answers: list[Answer] = []
        self.lengths: list[int] = []
        self.seen = torch.zeros(0, 0, dtype=torch.long, device=self.rules.device)

    def admit(self, answers: Sequence[Answer]) -> None:
        """New rows behind those there are."""
        first, lengths = len(self.answers), [len(answer.prompt) for answer in answers]
        self.answers += answers
        self.lengths += lengths
        if not self.rules.kinds:
            return
        self._room(len(self.answers), max(lengths) + 1)
        for row, (answer, length) in enumerate(zip(answers, lengths, strict=True), first):
            # What stands behind the last id is the first one over again, so that no id is seen that is not there.
            self.seen[row] = answer.prompt[0] if length else 0
            self.seen[row, :length] = answer.prompt

    def remove(self, row: int) -> None:
        """The last row takes the place of one that has ended."""
        last = len(self.answers) - 1
        self.answers[row], self.lengths[row] = self.answers[last], self.lengths[last]
        if self.rules.kinds:
            self.seen[row] = self.seen[last]
        self.answers.pop()
        self.lengths.pop()

    def __call__(self, logits: Tensor, first: int = 0) -> Tensor:
        """(B, V) of the rows from `first` on -> (B,) token ids; -1 where no score is a number."""
        answers = self.answers[first : first + len(logits)]
        scores = logits if self.rules.plain else self._processed(logits.to(torch.float32, copy=True), first)
        if self.rules.samples:
            chosen, top = draw(scores.softmax(-1), [answer.die for answer in answers]), scores.amax(-1)
        else:
            chosen = scores.argmax(-1)
            top = scores.gather(-1, chosen[:, None]).squeeze(-1)
        chosen = chosen.where(top.isfinite(), -1)
        if self.rules.kinds:
            self._note(chosen.clamp(min=0), first)
        return chosen

    def _processed(self, scores: Tensor, first: int) -> Tensor:
        rows = range(first, first + len(scores))
        longest = max(self.lengths[row] for row in rows)
        seen, known = self.seen[first : first + len(scores), :longest], all(self.lengths[row] for row in rows)
        for column in zip(*(self.answers[row].processors for row in rows), strict=True):
            kind = type(column[0]).__name__
            if kind in OF_SCORES or (kind in OF_WHICH_IDS and known):
                scores = column[0](seen, scores)
            else:
                alone = [
                    each(self.seen[row : row + 1, : self.lengths[row]], scores[i : i + 1])
                    for i, (row, each) in enumerate(zip(rows, column, strict=True))
                ]
                scores = torch.cat(alone)
        return scores

    def _note(self, tokens: Tensor, first: int) -> None:
        rows = range(first, first + len(tokens))
        self._room(len(self.answers), max(self.lengths[row] for row in rows) + 1)
        places = torch.tensor([self.lengths[row] for row in rows]).to(self.seen.device, non_blocking=True)
        self.seen[first : first + len(tokens)].scatter_(1, places[:, None], tokens[:, None])
        for row in rows:
            self.lengths[row] += 1

    def _room(self, rows: int, length: int) -> None:
        have_rows, have = self.seen.shape
        if rows <= have_rows and length <= have:
            return
        more = self.seen.new_zeros(max(rows, have_rows), max(length + 64, have) if length > have else have)
        if have:
            more[:have_rows] = self.seen[:, :1]
            more[:have_rows, :have] = self.seen
        self.seen = more


def draw(shares: Tensor, dice: Sequence[torch.Generator]) -> Tensor:
    """(B, V) shares -> (B,) one id of each row, by that row's own lot.

    As torch.multinomial draws one, which checks its shares on the host and so waits for the device.
    """
    times = torch.stack([torch.empty_like(row).exponential_(generator=die) for row, die in zip(shares, dice, strict=True)])
    return (shares / times).argmax(-1)


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(value.to_dict()) if hasattr(value, "to_dict") else str(value)
