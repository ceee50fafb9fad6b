"""A model of the caller's own, pruned while a block lasts: `with pruned(model, pruner): generate`.

Within the block the model's forward pass is the engine's: the first pass of an answer encodes,
prunes and runs the prompt, every further one takes one token. `generate` and its kin run as they
are, with the tensors that the model's own processor made. The block belongs to one thread; it sets
two attributes of the model, this pass and how `generate` repeats a prompt, and gives them back.
Knows no method and no family.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from trimtok_cli.data import Kept, Setting, TokenCounts
from trimtok_cli.engine.decoder_stages import Ragged, RunningStages
from trimtok_cli.engine.loops import prunes_in_decoder
from trimtok_cli.engine.prompt_stage import check_method, layer_mean, reduce_prompts
from trimtok_cli.engine.results import positions_used
from trimtok_cli.errors import SampleError, UsageError
from trimtok_cli.generation.plain import Steps
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.models.loaded import CACHES, adapter_of, is_media, samples_of
from trimtok_cli.models.positions import shortage
from trimtok_cli.models.question import Question
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.registry import reads_tower
from trimtok_cli.tokens import Prompt, VisualTokens

ENCODED = "mm_encoder_outputs"
EXPAND = "_expand_inputs_for_generation"


def pruned(
    model: Any, pruner: Pruner | None, processor: Any = None, *, clip_text: str | None = None
) -> "PrunedModel":
    """A block in which a loaded transformers model reads what `pruner` leaves of its images.

    processor: the model's own; by default the one beside the model's weights. clip_text: as in
    `load_model`. Raises UsageError for a model or a method that cannot be had so.
    """
    return PrunedModel(adapter_of(model, processor, clip_text), pruner)


class PrunedModel:
    """The block, and what the last prompts in it were left with.

    kept: for each prompt of the last batch, the visual tokens that each stage left, as numbers in
    the dense prompt. counts: its tokens. words: the text that methods took as the question.
    """

    def __init__(self, adapter: Adapter, pruner: Pruner | None) -> None:
        check_method(adapter, pruner)
        self.adapter, self.pruner = adapter, pruner
        self.kept: list[tuple[Kept, ...]] = []
        self.counts: list[TokenCounts] = []
        self.words: list[str] = []
        self._question = Question(adapter.preprocessor)
        self._steps: Steps | None = None
        self._length = 0  # of the dense prompts, their padding and the tokens behind them
        self._copies = 1  # rows of the next batch for each of its prompts: beams, or samples
        self._stages = ExitStack()
        self._before: dict[str, Any] = {}

    def __repr__(self) -> str:
        counts = "; ".join(f"{each.visual} → {each.kept}" for each in self.counts)
        of = type(self.adapter.model).__name__
        return f"<{Setting.of(self.pruner).name} on {of}, visual tokens: {counts or 'none yet'}>"

    def __enter__(self) -> "PrunedModel":
        attributes = vars(self.adapter.model)
        if isinstance(attributes.get("forward"), _Forward):
            raise UsageError("the model is pruned already: leave that block before the next.")
        ours = {
            "forward": _Forward(self.adapter.model.forward, self._forward),
            EXPAND: partial(self._expand, getattr(self.adapter.model, EXPAND)),
        }
        self._before = {name: attributes[name] for name in ours if name in attributes}
        attributes |= ours
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("forward", EXPAND):
            vars(self.adapter.model).pop(name, None)
        vars(self.adapter.model).update(self._before)
        self._end()

    def _expand(
        self, original: Callable[..., Any], expand_size: int = 1, **given: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """A batch with `expand_size` rows for each prompt, its images and videos once.

        So each prompt is encoded and pruned once. Newer libraries count on images that they have
        encoded, and would repeat others row by row.
        """
        self._copies = expand_size
        media = {name: value for name, value in given.items() if is_media(name, value)}
        rest = {name: value for name, value in given.items() if name not in media}
        ids, expanded = original(expand_size=expand_size, **rest)
        return ids, expanded | media

    def _end(self) -> None:
        """Lets go of the answers under way."""
        self._stages.close()
        self._steps = None

    @torch.no_grad()
    def _forward(self, input_ids: Tensor | None = None, **given: Any) -> CausalLMOutputWithPast:
        caches = [given[name] for name in CACHES if given.get(name) is not None]
        if input_ids is None:
            raise UsageError("a pruned model takes input_ids, as its processor returns them.")
        if given.get("use_cache") is False:
            raise UsageError("a pruned model needs its cache: leave out use_cache=False.")
        if isinstance(last := given.get("logits_to_keep"), int) and last > 1:
            raise UsageError(
                "assisted generation asks for the logits of several tokens at once, which a pruned "
                "model does not have: generate without it."
            )
        if self._steps is not None and caches and caches[0] is self._steps.cache:
            logits = self._step(self._steps, input_ids, given.get("attention_mask"))
        else:
            _check_cache(caches)
            logits = self._prefill(input_ids, given)
        cache = {self.adapter.cache_argument: self._steps and self._steps.cache}
        return CausalLMOutputWithPast(logits=logits[:, None], **cache)

    def _step(self, steps: Steps, ids: Tensor, mask: Tensor | None) -> Tensor:
        self._length += 1
        together = mask is None or mask.dim() != 2 or mask.shape[1] == self._length
        if ids.shape[1] != 1 or not together:
            raise UsageError(
                "behind a pruned prompt an answer goes on by one token at a time, from where it "
                "was: assisted generation, and a second question to the same cache, are not to "
                "be had."
            )
        return steps.step(ids[:, 0].to(self.adapter.device))

    def _prefill(self, ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        self._end()
        adapter, pruner = self.adapter, self.pruner
        copies, self._copies = self._copies, 1
        samples, media = samples_of(adapter, ids, given, copies)
        samples = [self._with_question(inputs) for inputs in samples]
        tokens = adapter.encode_joined(samples, media, signals=reads_tower(pruner))
        dense = adapter.embed_many(samples, tokens)
        prompts, self.kept = reduce_prompts(
            pruner, dense, tokens, num_layers=adapter.num_layers, renumber=adapter.renumbers
        )
        self._check_lengths(prompts)
        self.words = [inputs.words for inputs in samples]
        self._length = ids.shape[1]
        try:
            logits = self._run(prompts, tokens, copies)
        except Ragged:
            raise UsageError(
                f"{Setting.of(pruner).name} prunes inside the decoder, where the prompts of a "
                "batch need the same number of rows: generate their answers one by one."
            ) from None
        self.counts = [
            TokenCounts(
                text=len(prompt) - len(prompt.visual),
                visual=len(each),
                kept=len(kept[-1].tokens),
                layer_mean=layer_mean(kept, adapter.num_layers),
            )
            for prompt, each, kept in zip(prompts, tokens, self.kept, strict=True)
        ]
        return logits

    def _run(
        self, prompts: Sequence[Prompt], tokens: Sequence[VisualTokens], copies: int
    ) -> Tensor:
        adapter, pruner = self.adapter, self.pruner
        prompts, tokens = _repeated(prompts, copies), _repeated(tokens, copies)
        if pruner is None or not prunes_in_decoder(adapter, pruner):
            self._steps = Steps(adapter, prompts)
            return self._steps.prefill()
        decoder, renumber = adapter.model.get_decoder(), adapter.renumbers
        stages = RunningStages(decoder, pruner, prompts, tokens, renumber=renumber)
        self._stages.enter_context(stages)
        self._steps = Steps(adapter, stages.plain)
        logits = self._steps.prefill()
        self.kept = [tuple(kept) for kept in stages.kept[::copies]]
        return logits

    def _with_question(self, inputs: Inputs) -> Inputs:
        rows = self._question.rows(inputs.input_ids, self.adapter.is_visual(inputs.input_ids))
        words = self.adapter.processor.tokenizer.decode(inputs.input_ids[rows].tolist())
        return replace(inputs, instruction=rows, words=words.strip())

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            used, visual = positions_used(self.adapter, prompt), len(prompt.visual)
            if said := shortage(self.adapter.num_positions, used, visual=visual):
                raise SampleError(said)


class _Forward:
    """The engine's forward pass, with the signature of the model's own, which `generate` reads.

    Without the argument by which newer libraries hand over images that they have encoded: the
    engine encodes them, as a method may ask the tower for more.
    """

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        update_wrapper(self, original)
        told = inspect.signature(original)
        self.__signature__ = told.replace(
            parameters=[each for name, each in told.parameters.items() if name != ENCODED]
        )
        self.ours = ours

    def __call__(self, *args: Any, **given: Any) -> Any:
        return self.ours(*args, **given)


def _check_cache(caches: Sequence[Any]) -> None:
    """Raises UsageError for a cache that the engine's own cannot take the place of."""
    for cache in caches:
        if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
            raise UsageError(
                f"a pruned model has a cache of its own, not a {type(cache).__name__}: leave out "
                "cache_implementation."
            )
        if cache.get_seq_length():
            raise UsageError(
                "a pruned model answers prompts from their beginning: leave out the cache of an "
                "earlier answer, and ask with the whole conversation."
            )


def _repeated(items: Sequence[Any], copies: int) -> list[Any]:
    return [item for item in items for _ in range(copies)]
