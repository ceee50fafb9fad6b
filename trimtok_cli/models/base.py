"""What a model family looks like from outside: an Adapter. Knows no pruning method.

A family says where the visual tokens of an image or a video lie (`image_places`, `video_places`), and overrides what
else is its own: chat, positions, what the language model is given besides embeddings. Visual tokens are *captured*: the
model's own code turns pixels into them, and is stopped in front of the language model. So towers, projectors, tiling,
newline tokens and pooling are the library's, in every version of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from trimtok_cli.errors import ModelError
from trimtok_cli.media.video import Clip
from trimtok_cli.models.capture import capture
from trimtok_cli.models.chat import has_start, instruction_rows, message_parts
from trimtok_cli.models.clip_text import ClipText
from trimtok_cli.models.places import Places
from trimtok_cli.models.taps import Tower
from trimtok_cli.tokens import EncoderTap, Prompt, VisualTokens

_OF_THE_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Visual:
    """An image or a video of a prompt: kind, (width, height), and the times in seconds of a video's frames.

    frame: its number where it is one frame of a clip that is shown as images; None where it is an image of its own.
    """

    kind: str
    size: tuple[int, int]
    times: tuple[float, ...] = ()
    frame: int | None = None


@dataclass(frozen=True)
class Inputs:
    """One prepared question. tensors: what the family's processor made, batch axis 1, on the CPU; input_ids (S,).

    instruction (T,): rows of the user's words. visuals: images and videos in the prompt's order; text: the prompt as sent;
    words: the user's own.
    """

    tensors: dict[str, Tensor]
    input_ids: Tensor
    instruction: Tensor
    visuals: tuple[Visual, ...]
    text: str
    words: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """image or video, for every number that a visual token's `visual_index` can be."""
        return tuple("image" if v.kind == "image" and v.frame is None else "video" for v in self.visuals if not v.frame)


class Adapter(ABC):
    """A loaded model with its processor: prepare -> encode_many -> embed -> (pruning) -> forward, decode."""

    renumbers = True  # survivors close the gaps: positions are 1-D. M-RoPE families keep the original ids instead.
    media_axis = 0  # the axis along which the processor lays out images and tiles
    mixes = True  # images and a video may stand in one prompt; elsewhere the video is then shown as frames

    def __init__(self, model, processor, *, name: str, revision: str) -> None:
        self.model, self.processor, self.name, self.revision = model, processor, name, revision
        self.device, self.dtype = model.device, model.dtype
        self.clip_text: ClipText | None = None
        if getattr(processor, "chat_template", None) is None:  # a tokenizer's own knows no images
            raise ModelError(
                f"{name} has no chat template for images, so questions cannot be put to it: use an instruction-tuned checkpoint."
            )

    # ---- what a family decides

    @abstractmethod
    def image_places(self, inputs: Inputs, number: int, visual: Visual) -> Places:
        """Where the visual tokens of the prompt's image `number` lie in it."""

    def video_places(self, inputs: Inputs, visual: Visual) -> Places:
        """The same of the prompt's video. Only families with a video path of their own are asked."""
        raise ModelError(f"{self.name} has no video path of its own; show its frames as images.")

    @property
    def has_video(self) -> bool:
        """Whether videos have a path of their own in this family; elsewhere their frames are shown as images."""
        return getattr(self.processor, "video_processor", None) is not None

    def video_inputs(self, clip: Clip) -> dict:
        """What the processor is given for a video whose frames were chosen already: it may neither sample nor date them again.

        The rate is that of the frames given, and a frame's index is its time in that rate, whole or not.
        """
        count, times = len(clip.frames), clip.times
        gap = (times[-1] - times[0]) / (count - 1) if count > 1 else max(clip.duration, 0.001)
        facts = {"total_num_frames": count, "fps": 1 / gap, "duration": clip.duration, "frames_indices": [t / gap for t in times]}
        return {"videos": [[list(clip.frames)]], "video_metadata": [facts], "do_sample_frames": False}

    def positions(self, inputs: Inputs) -> Tensor:
        """(S,) of the dense prompt; M-RoPE families give (3, S)."""
        return torch.arange(len(inputs.input_ids), device=self.device)

    def forward(self, embeds: Tensor, mask: Tensor | None, positions: Tensor, cache, prompts: Sequence[Prompt] = ()) -> Tensor:
        """(B, S, D), mask (B, total) or None, positions (B, S) or (3, B, S) -> logits (B, V) of the last row; fills `cache`.

        `prompts` are given in the prefill: what `embeds` was laid out from, for families whose layers ask for more.
        """
        out = self.model.get_decoder()(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            **self.prefill_extras(embeds, prompts),
        )  # fmt: skip
        return self.model.lm_head(out.last_hidden_state[:, -1])

    def prefill_extras(self, embeds: Tensor, prompts: Sequence[Prompt]) -> dict:
        """Further arguments of the language model."""
        return {}

    def tower(self) -> Tower:
        """What of the vision tower methods may ask about; by default nothing."""
        return Tower({}, None, has_cls=False)

    def project(self, features: Tensor) -> Tensor:
        """(K, F) tower features -> (K, D) visual tokens, where a token is one tower token."""
        return self.model.model.multi_modal_projector(features.to(self.dtype))

    # ---- the same for all

    @property
    def num_layers(self) -> int:
        return len(self.model.get_decoder().layers)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The token ids whose rows are visual tokens: an image's, and a video's where it has one of its own."""
        found = (getattr(self.model.config, name, None) for name in ("image_token_id", "video_token_id"))
        return tuple(id for id in found if id is not None)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, as the checkpoint's own generation settings say."""
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    def prepare(
        self, images: Sequence[Image.Image], question: str, *, system: str = "", clip: Clip | None = None, as_frames: bool = False
    ) -> Inputs:
        """Chat template, processor, and where the user's words are. SampleError where the question does not fit.

        as_frames shows a clip as so many images, as it always is where the family has no video path.
        """
        as_frames = clip is not None and (as_frames or not self.has_video or (bool(images) and not self.mixes))
        content = message_parts(question, len(images), clip is not None)
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        pictures, visuals, shown, rest = [], [], [], iter(images)
        for part in content:
            if part["type"] == "video" and as_frames:
                pictures += clip.frames
                visuals += [Visual("image", frame.size, (), i) for i, frame in enumerate(clip.frames)]
                shown += [{"type": "image"}] * len(clip.frames)
                continue
            if part["type"] == "video":
                visuals.append(Visual("video", (clip.width, clip.height), clip.times))
            elif part["type"] == "image":
                pictures.append(next(rest))
                visuals.append(Visual("image", pictures[-1].size))
            shown.append(part)
        text = self.processor.apply_chat_template([*chat, {"role": "user", "content": shown}], add_generation_prompt=True)
        more = self.video_inputs(clip) if clip is not None and not as_frames else {}
        batch = self.processor(
            text=[text], images=[pictures] if pictures else None, return_tensors="pt",
            add_special_tokens=not has_start(self.processor.tokenizer, text), **more,
        )  # fmt: skip
        tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        ids = tensors["input_ids"][0]
        words = [part["text"] for part in content if part["type"] == "text"]
        rows = instruction_rows(self.processor.tokenizer, text, words, ids)
        return Inputs(tensors, ids, rows, tuple(visuals), text, " ".join(words))

    def encode_many(self, batch: Sequence[Inputs]) -> list[VisualTokens]:
        """Vision tower and projector over a batch: samples whose tensors fit together go through in one pass."""
        places = [self._places(inputs) for inputs in batch]
        tokens: list[VisualTokens] = [self._no_tokens()] * len(batch)
        groups: dict[tuple, list[int]] = {}
        for i, inputs in enumerate(batch):
            if inputs.visuals:
                media = self._media(inputs)
                shapes = ((n, *t.shape[: self.media_axis], *t.shape[self.media_axis + 1 :]) for n, t in sorted(media.items()))
                groups.setdefault(tuple(shapes), []).append(i)
        for members in groups.values():
            counts = [sum(len(p.box) for p in places[i]) for i in members]
            with self.tower() as tower:
                embeds, layers = self._capture([batch[i] for i in members])
            deep, start = [None] * len(members) if layers is None else layers.split(counts, 1), 0
            for i, rows, each in zip(members, embeds.split(counts), deep, strict=True):
                tap = tower.tap(places[i], start, self.project)
                if self.clip_text is not None and tap.offers("features"):
                    tap = tap.offering(relevance=partial(self._relevance, self.clip_text, tap, batch[i].words))
                tokens[i] = self._tokens(rows, places[i], batch[i].visuals, each, tap)
                start += sum(place.tower for place in places[i])
        return tokens

    @staticmethod
    def _relevance(clip_text: ClipText, tap: EncoderTap, words: str) -> Tensor:
        return clip_text.relevance(tap.features, words)

    def _places(self, inputs: Inputs) -> list[Places]:
        """Where every image's and video's tokens lie, in the prompt's order. ModelError if the processor counted otherwise."""
        found, number = [], 0
        for visual in inputs.visuals:
            found.append(
                self.video_places(inputs, visual) if visual.kind == "video" else self.image_places(inputs, number, visual)
            )
            number += visual.kind == "image"
        written, counted = int(self._is_visual(inputs.input_ids).sum()), sum(len(place.box) for place in found)
        if written != counted:
            raise ModelError(
                f"the processor of {self.name} wrote {written} placeholders for {counted} visual tokens: "
                "its settings (patch_size, vision_feature_select_strategy, num_additional_image_tokens) do not match the model."
            )
        return found

    def _is_visual(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.placeholder_ids, device=ids.device))

    @staticmethod
    def _media(inputs: Inputs) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in inputs.tensors.items() if name not in _OF_THE_TEXT}

    def _capture(self, members: Sequence[Inputs]) -> tuple[Tensor, Tensor | None]:
        """The visual rows (N, D) of all members, one after the other, and their deepstack layers (L, N, D) or None."""
        ids = torch.cat([inputs.input_ids[self._is_visual(inputs.input_ids)] for inputs in members]).to(self.device)
        media = {name: torch.cat([inputs.tensors[name] for inputs in members], self.media_axis).to(self.device)
                 for name in self._media(members[0])}  # fmt: skip
        media = {name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in media.items()}
        try:
            return capture(self.model, ids, media)
        except ValueError as error:
            if "do not match" in str(error):
                said = " ".join(str(error).split())
                raise ModelError(f"the processor of {self.name} does not fit the model: {said}.") from error
            raise

    def _tokens(
        self, embeds: Tensor, places: Sequence[Places], visuals: Sequence[Visual], deepstack: Tensor | None, tap: EncoderTap
    ) -> VisualTokens:
        """The frames of a clip shown as images are one video: they share a number, and with it a budget."""
        index, frames, number = [], [], -1
        for place, visual in zip(places, visuals, strict=True):
            number += not visual.frame
            index.append(torch.full((len(place.box),), number))
            frames.append(torch.zeros_like(index[-1]) + (visual.frame or 0) if place.frame is None else place.frame)
        return VisualTokens(
            embeds, torch.cat(index), torch.cat([place.box for place in places]),
            torch.cat(frames), tuple(place.grid for place in places), tap, deepstack,
        )  # fmt: skip

    def _no_tokens(self) -> VisualTokens:
        width = self.model.get_input_embeddings().weight.shape[1]
        empty = torch.empty(0, dtype=torch.long)
        return VisualTokens(torch.empty(0, width, device=self.device, dtype=self.dtype), empty, torch.empty(0, 4))

    def embed(self, inputs: Inputs, tokens: VisualTokens) -> Prompt:
        """The dense prompt: text embeddings with the visual tokens at their placeholders."""
        ids = inputs.input_ids.to(self.device)
        visual = self._is_visual(ids).nonzero().squeeze(1)
        embeds = self.embed_ids(ids)
        embeds[visual] = tokens.embeds.to(embeds.dtype)
        alive = torch.arange(len(visual), device=self.device)
        rows = inputs.instruction.to(self.device)
        return Prompt(embeds, self.positions(inputs), visual, alive, rows, tokens.deepstack)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D); a fresh tensor."""
        return self.model.get_input_embeddings()(ids).clone()

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
