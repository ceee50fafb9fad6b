"""What a model family looks like from outside: an Adapter. Knows no pruning method.

A family says where the visual tokens of an image or a video lie (`image_layout`, `video_layout`),
and overrides what else is its own: preprocessing, positions, what the language model is given
besides embeddings. Visual tokens are *captured*: the model's own code turns pixels into them, and
is stopped in front of the language model. So towers, projectors, tiling, newline tokens and pooling
are the library's, in every version of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trimtok_cli.errors import ModelError
from trimtok_cli.models.leaned_on import cache_argument
from trimtok_cli.models.positions import num_positions
from trimtok_cli.models.preprocessor import OF_THE_TEXT, Inputs, Preprocessor, Visual
from trimtok_cli.models.vision.clip_text import ClipText
from trimtok_cli.models.vision.token_layout import TokenLayout
from trimtok_cli.models.vision.tower_batches import batch_by_shape, tower_offsets
from trimtok_cli.models.vision.tower_run import run_tower
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt, TowerSignals, VisualTokens


class Adapter(ABC):
    """A loaded model with its processor: prepare -> encode_many -> embed -> (pruning) -> forward,
    decode.
    """

    # survivors close the gaps: positions are 1-D. M-RoPE families keep the original ids instead.
    renumbers = True
    media_axis = 0  # the axis along which the processor lays out images and tiles
    preprocessing: type[Preprocessor] = Preprocessor
    on_host: tuple[
        str, ...
    ] = ()  # of the processor's tensors those that the model only reads numbers from, one by one
    # the most that one pass of the vision tower takes, in crops of 336 x 336 pixels; a sample is
    # never cut
    crops = 64

    def __init__(self, model, processor, *, name: str, revision: str) -> None:
        self.model, self.processor, self.name, self.revision = model, processor, name, revision
        self.device, self.dtype = model.device, model.dtype
        self.clip_text: ClipText | None = None
        self.num_positions = num_positions(model.config.get_text_config())
        self.preprocessor = self.preprocessing(processor, name)
        self.preprocessor.num_positions = self.num_positions

    # ---- what a family decides

    @abstractmethod
    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        """Where the visual tokens of the prompt's image `number` lie in it."""

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        """The same of the prompt's video. Only families with a video path of their own are
        asked.
        """
        raise ModelError(f"{self.name} has no video path of its own; show its frames as images.")

    def positions(self, inputs: Inputs) -> Tensor:
        """(S,) of the dense prompt; M-RoPE families give (3, S)."""
        return torch.arange(len(inputs.input_ids), device=self.device)

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        cache,
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """(B, S, D), mask (B, total) or None, positions (B, S) or (3, B, S) -> logits (B, V) of the
        last row; fills `cache`.

        `prompts` are given in the prefill: what `embeds` was laid out from, for families whose
        layers ask for more.
        """
        out = self.model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self.cache_argument: cache},
            **self.prefill_extras(embeds, prompts),
        )
        return self.model.lm_head(out.last_hidden_state[:, -1])

    def prefill_extras(self, embeds: Tensor, prompts: Sequence[Prompt]) -> dict:
        """Further arguments of the language model."""
        return {}

    def tower(self) -> TowerRecorder:
        """What of the vision tower methods may ask about; by default nothing."""
        return TowerRecorder()

    def reading(self) -> AbstractContextManager:
        """While it lasts, the vision tower runs no more than what is read of it; by default that is
        all.
        """
        return nullcontext()

    def project(self, features: Tensor) -> Tensor:
        """(K, F) tower features -> (K, D) visual tokens, where a token is one tower token."""
        return self.model.model.multi_modal_projector(features.to(self.dtype))

    # ---- the same for all

    @cached_property
    def cache_argument(self) -> str:
        return cache_argument(self.model.get_decoder().forward)

    @property
    def config(self) -> Any:
        """The decoder's own configuration."""
        return self.model.get_decoder().config

    @property
    def num_layers(self) -> int:
        return len(self.model.get_decoder().layers)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The token ids whose rows are visual tokens: an image's, and a video's where it has one of
        its own.
        """
        found = (
            getattr(self.model.config, name, None) for name in ("image_token_id", "video_token_id")
        )
        return tuple(id for id in found if id is not None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, as the checkpoint's own generation settings say."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    def prepare(self, images: Sequence[Image.Image], question: str, **options) -> Inputs:
        """As `Preprocessor.prepare`, which needs no network: a convenience where there is one."""
        return self.preprocessor.prepare(images, question, **options)

    def encode_many(self, batch: Sequence[Inputs], *, signals: bool = True) -> list[VisualTokens]:
        """Vision tower and projector over a batch: samples whose tensors fit together go through in
        one pass.

        signals: whether a method may ask something of the tower; else nothing of it is kept but its
        output.
        """
        places = [self._places(inputs) for inputs in batch]
        tokens: list[VisualTokens] = [self._no_tokens()] * len(batch)
        media = [self._media(inputs) if inputs.visuals else {} for inputs in batch]
        for members in batch_by_shape(media, self.media_axis, self.crops):
            counts = [sum(len(p.box) for p in places[i]) for i in members]
            with self.tower() if signals else TowerRecorder() as tower:
                embeds, layers = self._capture([batch[i] for i in members])
            deep = [None] * len(members) if layers is None else layers.split(counts, 1)
            # Where videos have tensors of their own, the library takes all of them behind all
            # images.
            apart = "pixel_values_videos" in media[members[0]]
            later = [
                [apart and visual.kind == "video" for visual in batch[i].visuals] for i in members
            ]
            begin = tower_offsets([places[i] for i in members], later)
            for i, rows, each, at in zip(members, embeds.split(counts), deep, begin, strict=True):
                signals = self._signals(tower, places[i], at, batch[i].words)
                tokens[i] = self._tokens(rows, places[i], batch[i].visuals, each, signals)
        return tokens

    def offered(self) -> TowerSignals:
        """What methods may ask of the vision tower about an image, for its `offers` alone: nothing
        is run, or can be read.
        """
        inputs = self.prepare([Image.new("RGB", (64, 64), "grey")], "?")
        places = self._places(inputs)
        return self._signals(self.tower(), places, [0] * len(places), inputs.words)

    def _signals(
        self, tower: TowerRecorder, places: Sequence[TokenLayout], at: Sequence[int], words: str
    ) -> TowerSignals:
        signals = tower.signals(places, at, self.project)
        if self.clip_text is None or not signals.offers("features"):
            return signals
        return signals.offering(relevance=partial(self._relevance, signals, words))

    def _relevance(self, signals: TowerSignals, words: str) -> Tensor:
        return self.clip_text.relevance(signals.features, words)

    def _places(self, inputs: Inputs) -> list[TokenLayout]:
        """Where every image's and video's tokens lie, in the prompt's order. ModelError if the
        processor counted otherwise.
        """
        found, number = [], 0
        for visual in inputs.visuals:
            found.append(
                self.video_layout(inputs, visual)
                if visual.kind == "video"
                else self.image_layout(inputs, number, visual)
            )
            number += visual.kind == "image"
        written, counted = (
            int(self._is_visual(inputs.input_ids).sum()),
            sum(len(place.box) for place in found),
        )
        if written != counted:
            raise ModelError(
                f"the processor of {self.name} wrote {written} placeholders for {counted} "
                "visual tokens: "
                "its settings (image_token, patch_size, vision_feature_select_strategy, "
                "num_additional_image_tokens) do not "
                "match the model."
            )
        return found

    def _is_visual(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.placeholder_ids, device=ids.device))

    @staticmethod
    def _media(inputs: Inputs) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in inputs.tensors.items() if name not in OF_THE_TEXT}

    def _capture(self, members: Sequence[Inputs]) -> tuple[Tensor, Tensor | None]:
        """The visual rows (N, D) of all members, one after the other, and their deepstack layers
        (L, N, D) or None.
        """
        ids = self._moved(
            torch.cat([inputs.input_ids[self._is_visual(inputs.input_ids)] for inputs in members])
        )
        try:
            with self.reading():
                return run_tower(self.model, ids, self.tower_inputs(members))
        except ValueError as error:
            if "do not match" in str(error):
                said = " ".join(str(error).split())
                raise ModelError(
                    f"the processor of {self.name} does not fit the model: {said}."
                ) from error
            raise

    def tower_inputs(self, members: Sequence[Inputs]) -> dict[str, Tensor]:
        """What the vision tower is given for `members` together, on the model's device and in its
        dtype.
        """
        joined = {
            n: torch.cat([inputs.tensors[n] for inputs in members], self.media_axis)
            for n in self._media(members[0])
        }
        media = {
            name: tensor if name in self.on_host else self._moved(tensor)
            for name, tensor in joined.items()
        }
        media = self.preprocessor.normalized(media)
        return {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in media.items()
        }

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the model's device. To CUDA from page-locked memory, which alone is copied while the
        host goes on.
        """
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _tokens(
        self,
        embeds: Tensor,
        places: Sequence[TokenLayout],
        visuals: Sequence[Visual],
        deepstack: Tensor | None,
        signals: TowerSignals,
    ) -> VisualTokens:
        """The frames of a clip shown as images are one video: they share a number, and with it a
        budget.
        """
        index, frames, number = [], [], -1
        for place, visual in zip(places, visuals, strict=True):
            number += not visual.frame
            index.append(torch.full((len(place.box),), number))
            frames.append(
                torch.zeros_like(index[-1]) + (visual.frame or 0)
                if place.frame is None
                else place.frame
            )
        return VisualTokens(
            embeds,
            torch.cat(index),
            torch.cat([place.box for place in places]),
            torch.cat(frames),
            tuple(place.grid for place in places),
            signals,
            deepstack,
        )

    def _no_tokens(self) -> VisualTokens:
        rows = self.embed_ids(torch.empty(0, dtype=torch.long, device=self.device))
        return VisualTokens(rows, torch.empty(0, dtype=torch.long), torch.empty(0, 4))

    def embed(self, inputs: Inputs, tokens: VisualTokens) -> Prompt:
        """The dense prompt: text embeddings with the visual tokens at their placeholders."""
        ids, words = inputs.input_ids, inputs.instruction
        places = self._is_visual(ids).nonzero().squeeze(1)
        # Worked out on the CPU, where they are known: on a device, their number would have to be
        # waited for.
        ids, visual, rows = self._moved(torch.cat([ids, places, words])).split(
            [len(ids), len(places), len(words)]
        )
        embeds = self.embed_ids(ids)
        embeds[visual] = tokens.embeds.to(embeds.dtype)
        alive = torch.arange(len(visual), device=self.device)
        return Prompt(embeds, self.positions(inputs), visual, alive, rows, tokens.deepstack, ids)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D); a fresh tensor."""
        return self.model.get_input_embeddings()(ids).clone()

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
