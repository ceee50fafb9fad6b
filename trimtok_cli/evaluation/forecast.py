"""A forecast of a run from prepared samples, before any weight is loaded: tokens and memory.

Token counts are exact where a method keeps what --keep says: they are those of the family's own
layouts. The memory is that of weights and KV cache; activations come on top.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from trimtok_cli.data import Setting
from trimtok_cli.engine.loops import prunes_in_decoder, rules_for
from trimtok_cli.generation.capacity import cache_bytes, likely_length, slot_bytes
from trimtok_cli.models.blank import Blank
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.models.positions import shortage
from trimtok_cli.prepare.sample import Ask
from trimtok_cli.pruners.base import Pruner


@dataclass(frozen=True)
class Foreseen:
    """The tokens of one prompt: text, and visual ones dense and kept."""

    text: int
    dense: int
    kept: int


class Forecast:
    """What a run of `pruner` (None for dense) on a checkpoint will take."""

    def __init__(self, blank: Blank, pruner: Pruner | None, ask: Ask) -> None:
        self.blank, self.adapter, self.pruner = blank, blank.adapter, pruner
        self.rules = rules_for(self.adapter, ask)
        self.prefills_dense = prunes_in_decoder(self.adapter, pruner)

    @property
    def method(self) -> str:
        """The method's name, as measurements have it."""
        return Setting.of(self.pruner).method

    def tokens(self, inputs: Inputs) -> Foreseen:
        """The tokens of a prepared sample; its pixels may have their shape alone."""
        sizes: Counter[int] = Counter()
        number = -1
        # The frames of a clip that is shown as images are one video with one budget.
        for layout, visual in zip(self.adapter.layouts(inputs), inputs.visuals, strict=True):
            if not visual.frame:
                number += 1
            sizes[number] += len(layout.box)
        dense = sizes.total()
        kept = dense
        if self.pruner is not None:
            kept = sum(self.pruner.keep.count(size) for size in sizes.values())
        return Foreseen(len(inputs.input_ids) - dense, dense, kept)

    def prompt_length(self, tokens: Foreseen) -> int:
        """The tokens of the prompt that the language model prefills."""
        return tokens.text + (tokens.dense if self.prefills_dense else tokens.kept)

    def problem(self, tokens: Foreseen) -> str:
        """The sentence for a prompt that has more positions than the model; "" for one that fits.

        Under M-RoPE positions are fewer than tokens, and the run itself finds out.
        """
        if not self.adapter.renumbers:
            return ""
        length = self.prompt_length(tokens)
        return shortage(self.adapter.num_positions, length, visual=length - tokens.text)

    def memory(self, longest: int, batch: int) -> dict[str, Any]:
        """Bytes of weights and of the KV cache of `batch` answers with prompts of `longest` tokens.

        The cache is that of answers as long as they may become, in slots as a run makes them.
        Layers behind a stage inside the decoder hold less.
        """
        config, dtype = self.adapter.config, self.adapter.dtype
        a_token = cache_bytes(config, dtype)
        new_tokens = likely_length(self.adapter.num_positions, self.rules, longest)
        lengths = [longest + new_tokens] * config.num_hidden_layers
        an_answer = slot_bytes(config, dtype, lengths)
        return {
            "dtype": str(dtype).removeprefix("torch."),
            "weights_bytes": self.blank.weight_bytes,
            "cache_bytes_a_token": a_token,
            "longest_prompt": longest,
            "new_tokens": new_tokens,
            "cache_bytes_an_answer": an_answer,
            "answers_at_once": batch,
            "total_bytes": self.blank.weight_bytes + batch * an_answer,
        }
