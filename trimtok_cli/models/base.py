"""What a model family looks like from outside: an Adapter. Knows no pruning method and no hook.

A family writes `encode_many` (pixels to visual tokens), and where the base does not fit `messages`, `positions` or
`forward`. Everything else here is the same for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from trimtok_cli.errors import ModelError, SampleError
from trimtok_cli.tokens import Prompt, VisualTokens

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Inputs:
    """One prepared question. tensors: what the family's processor made, batch axis 1, on the CPU; input_ids (S,).

    instruction (T,): rows of the user's words. sizes: (width, height) of each image; text: the prompt as sent.
    """

    tensors: dict[str, Tensor]
    input_ids: Tensor
    instruction: Tensor
    sizes: tuple[tuple[int, int], ...]
    text: str


class Adapter(ABC):
    """A loaded model with its processor: prepare -> encode_many -> embed -> (pruning) -> forward, decode."""

    renumbers = True  # survivors close the gaps: positions are 1-D. M-RoPE families keep the original ids instead.

    def __init__(self, model, processor, *, name: str, revision: str) -> None:
        self.model, self.processor, self.name, self.revision = model, processor, name, revision
        self.device, self.dtype = model.device, model.dtype
        if getattr(processor, "chat_template", None) is None and getattr(processor.tokenizer, "chat_template", None) is None:
            raise ModelError(
                f"{name} has no chat template, so questions cannot be put to it: use an instruction-tuned checkpoint."
            )

    # ---- what a family decides

    @abstractmethod
    def encode_many(self, batch: Sequence[Inputs]) -> list[VisualTokens]:
        """The vision tower and the projector over a batch; a sample without images gives zero tokens."""

    def messages(self, num_images: int, question: str, system: str) -> list[dict]:
        """The chat that the family's template renders. `<image>` in the question says where each image goes."""
        parts = question.split(PLACEHOLDER)
        if len(parts) > 1 and len(parts) - 1 != num_images:
            raise SampleError(
                f"the question has {len(parts) - 1} {PLACEHOLDER} placeholders for {num_images} images: make them equal."
            )
        content: list[dict] = [{"type": "image"}] * num_images if len(parts) == 1 else []
        for number, part in enumerate(parts):
            if part.strip():
                content.append({"type": "text", "text": part.strip()})
            if number < len(parts) - 1:
                content.append({"type": "image"})
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        return [*chat, {"role": "user", "content": content}]

    def positions(self, inputs: Inputs) -> Tensor:
        """(S,) of the dense prompt; M-RoPE families give (3, S)."""
        return torch.arange(len(inputs.input_ids), device=self.device)

    # ---- the same for all

    @property
    def num_layers(self) -> int:
        return len(self.model.get_decoder().layers)

    @property
    def placeholder_id(self) -> int:
        return self.model.config.image_token_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, as the checkpoint's own generation settings say."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    def prepare(self, images: Sequence[Image.Image], question: str, *, system: str = "") -> Inputs:
        """Chat template, processor, and where the user's words are. SampleError where the question does not fit."""
        chat = self.messages(len(images), question, system)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        batch = self.processor(
            text=[text], images=list(images) or None, return_tensors="pt", add_special_tokens=not self._has_start(text)
        )
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        ids = tensors["input_ids"][0]
        words = [part["text"] for part in chat[-1]["content"] if part["type"] == "text"]
        rows = self._instruction_rows(text, words[-1] if words else "", ids)
        return Inputs(tensors, ids, rows, tuple(image.size for image in images), text)

    def embed(self, inputs: Inputs, tokens: VisualTokens) -> Prompt:
        """The dense prompt: text embeddings with the visual tokens at their placeholders."""
        ids = inputs.input_ids.to(self.device)
        visual = (ids == self.placeholder_id).nonzero().squeeze(1)
        if len(visual) != len(tokens):
            raise ModelError(
                f"the processor of {self.name} wrote {len(visual)} placeholders for {len(tokens)} visual tokens: "
                "its patch_size, vision_feature_select_strategy or num_additional_image_tokens does not match the model."
            )
        embeds = self.embed_ids(ids)
        embeds[visual] = tokens.embeds.to(embeds.dtype)
        alive = torch.arange(len(visual), device=self.device)
        return Prompt(embeds, self.positions(inputs), visual, alive, inputs.instruction.to(self.device))

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D); a fresh tensor."""
        return self.model.get_input_embeddings()(ids).clone()

    def forward(self, embeds: Tensor, mask: Tensor | None, positions: Tensor, cache) -> Tensor:
        """(B, S, D), mask (B, total) or None, positions (B, S) or (3, B, S) -> logits (B, V) of the last row; fills `cache`."""
        out = self.model.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )  # fmt: skip
        return self.model.lm_head(out.last_hidden_state[:, -1])

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _has_start(self, text: str) -> bool:
        """Some templates write the start token themselves; it must not come twice."""
        start = self.processor.tokenizer.bos_token
        return bool(start) and text.startswith(start)

    def _instruction_rows(self, text: str, words: str, ids: Tensor) -> Tensor:
        """The rows of `ids` that hold `words`: counted from the end, since only placeholders in front of them grow."""
        tokenizer, at = self.processor.tokenizer, text.rfind(words)
        if not words or at < 0 or not tokenizer.is_fast:
            return torch.empty(0, dtype=torch.long)
        coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not self._has_start(text))
        same = 0  # length of the common end: the text behind the last image is coded alike with and without the images
        while same < min(len(coded.input_ids), len(ids)) and coded.input_ids[-1 - same] == int(ids[-1 - same]):
            same += 1
        behind = [len(coded.input_ids) - 1 - row for row, (start, end) in enumerate(coded.offset_mapping)
                  if start < at + len(words) and end > at and end > start]  # fmt: skip
        return torch.tensor(sorted(len(ids) - 1 - back for back in behind if back < same), dtype=torch.long)
