"""Adapter: a loaded model as the rest of the package sees it. Knows no pruning method.

The steps are prepare -> encode_many -> embed -> (pruning) -> forward, decode. The vision tower is
run by the model's own forward pass, which is stopped in front of the language model. `family` holds
what differs between families.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trimtok_cli.device import joined
from trimtok_cli.errors import ModelError
from trimtok_cli.models.dense_prompts import dense_prompts
from trimtok_cli.models.family import Family
from trimtok_cli.models.faster import replaced
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.vision.clip_text import ClipText
from trimtok_cli.models.vision.token_layout import TokenLayout
from trimtok_cli.models.vision.tower_batches import batch_by_shape, tower_offsets
from trimtok_cli.models.vision.tower_run import run_tower
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt, TowerSignals, VisualTokens


class Adapter(Family):
    """A loaded model with its processor: prepare -> encode_many -> embed -> forward, decode."""

    # CLIP's text tower beside the model, where the user named one.
    clip_text: ClipText | None = None
    # The checkpoint's folder, where it was loaded from one.
    folder: Path | None = None

    def __repr__(self) -> str:
        of = type(self.model).__name__
        return f"<{of} of {self.name} on {self.device}, {self.dtype}, {self.num_layers} layers>"

    # ---- facts of the checkpoint

    @property
    def config(self) -> Any:
        """The decoder's own configuration."""
        return self.model.get_decoder().config

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return int(self.config.num_hidden_layers)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, by the checkpoint's own generation settings."""
        ids = self.model.generation_config.eos_token_id
        if ids is None:
            ids = self.processor.tokenizer.eos_token_id
        if ids is None:
            return ()
        return (ids,) if isinstance(ids, int) else tuple(ids)

    # ---- prepare

    def prepare(self, images: Sequence[Image.Image], question: str, **options) -> Inputs:
        """The prepared question; see `Preprocessor.prepare`, which runs without the model."""
        return self.preprocessor.prepare(images, question, **options)

    def layouts(self, inputs: Inputs) -> list[TokenLayout]:
        """The layout of each image and video in the prompt's order.

        Raises ModelError where the layouts have another number of tokens than the processor wrote
        placeholders.
        """
        layouts = []
        num_images = 0
        for visual in inputs.visuals:
            if visual.kind == "video":
                layouts.append(self.video_layout(inputs, visual))
            else:
                layouts.append(self.image_layout(inputs, num_images, visual))
                num_images += 1
        num_written = int(self.is_visual(inputs.input_ids).sum())
        num_tokens = sum(len(layout.box) for layout in layouts)
        if num_written != num_tokens:
            raise ModelError(
                f"the processor of {self.name} wrote {num_written} placeholders for {num_tokens} "
                "visual tokens: "
                "its settings (image_token, patch_size, vision_feature_select_strategy, "
                "num_additional_image_tokens) do not "
                "match the model."
            )
        return layouts

    # ---- encode

    def encode_many(self, batch: Sequence[Inputs], *, signals: bool = True) -> list[VisualTokens]:
        """The visual tokens of each sample. Samples of one shape go through the tower together.

        signals: whether a method may read signals of the tower; without, only its output is kept.
        """
        layouts = [self.layouts(inputs) for inputs in batch]
        media = [inputs.media_tensors if inputs.visuals else {} for inputs in batch]
        encoded = [self._no_tokens()] * len(batch)
        for members in batch_by_shape(media, self.media_axis, self.crops_per_batch):
            some = [batch[i] for i in members]
            together = self._encode_together(
                some, [layouts[i] for i in members], self.tower_inputs(some), signals=signals
            )
            for i, tokens in zip(members, together, strict=True):
                encoded[i] = tokens
        return encoded

    def encode_joined(
        self, batch: Sequence[Inputs], media: dict[str, Tensor], *, signals: bool = True
    ) -> list[VisualTokens]:
        """As `encode_many`, for samples whose images and videos a processor joined: `media`."""
        encoded = [self._no_tokens()] * len(batch)
        members = [i for i, inputs in enumerate(batch) if inputs.visuals]
        if not members:
            return encoded
        some = [batch[i] for i in members]
        layouts = [self.layouts(inputs) for inputs in some]
        together = self._encode_together(some, layouts, self._ready(media), signals=signals)
        for i, tokens in zip(members, together, strict=True):
            encoded[i] = tokens
        return encoded

    def _encode_together(
        self,
        batch: Sequence[Inputs],
        layouts: Sequence[Sequence[TokenLayout]],
        media: dict[str, Tensor],
        *,
        signals: bool,
    ) -> list[VisualTokens]:
        """The visual tokens of samples by one run of the tower, whose inputs are `media`."""
        with self.tower() if signals else TowerRecorder() as recorder:
            embeds, deepstack = self._run_tower(batch, media, recorder)
        counts = [sum(len(layout.box) for layout in own) for own in layouts]
        # A video with tensors of its own: the library runs all videos behind all images.
        videos_last = "pixel_values_videos" in media
        later = [
            [videos_last and visual.kind == "video" for visual in inputs.visuals]
            for inputs in batch
        ]
        return [
            self._tokens(
                embeds=own_embeds,
                deepstack=own_deepstack,
                layouts=own_layouts,
                visuals=inputs.visuals,
                signals=self._signals(recorder, own_layouts, offsets, inputs.words),
            )
            for inputs, own_layouts, own_embeds, own_deepstack, offsets in zip(
                batch,
                layouts,
                embeds.split(counts),
                [None] * len(batch) if deepstack is None else deepstack.split(counts, 1),
                tower_offsets(layouts, later),
                strict=True,
            )
        ]

    def _run_tower(
        self, batch: Sequence[Inputs], media: dict[str, Tensor], recorder: TowerRecorder
    ) -> tuple[Tensor, Tensor | None]:
        """Visual rows (N, D) of all samples, and deepstack layers (L, N, D) or None."""
        ids = torch.cat([inputs.input_ids for inputs in batch])
        ids = ids[self.is_visual(ids)]
        try:
            with (
                self.early_exit(),
                self.recording(recorder),
                self.packing(),
                replaced(self.faster_tower),
            ):
                return run_tower(self.model, self.to_device(ids), media)
        except ValueError as error:
            if "do not match" in str(error):
                reason = " ".join(str(error).split())
                raise ModelError(
                    f"the processor of {self.name} does not fit the model: {reason}."
                ) from error
            raise

    def tower_inputs(self, batch: Sequence[Inputs]) -> dict[str, Tensor]:
        """The vision tower's inputs for a batch, on the model's device and in its dtype."""
        return self._ready(
            {
                name: joined(
                    [inputs.tensors[name] for inputs in batch], self.media_axis, self.device
                )
                for name in batch[0].media_tensors
            }
        )

    def _ready(self, media: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of images and videos as the tower takes them: placed, and in its dtype."""
        media = self.preprocessor.normalized(
            {
                name: tensor if name in self.host_tensors else self.to_device(tensor)
                for name, tensor in media.items()
            }
        )
        return {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in media.items()
        }

    def _tokens(
        self,
        *,
        embeds: Tensor,
        deepstack: Tensor | None,
        layouts: Sequence[TokenLayout],
        visuals: Sequence[Visual],
        signals: TowerSignals,
    ) -> VisualTokens:
        """The visual tokens of one sample.

        The frames of a clip that is shown as images share a number, as they are one video with one
        budget.
        """
        numbers = []
        frames = []
        number = -1
        for layout, visual in zip(layouts, visuals, strict=True):
            if not visual.frame:
                number += 1
            numbers.append(torch.full((len(layout.box),), number))
            own_frame = torch.full((len(layout.box),), visual.frame or 0)
            frames.append(own_frame if layout.frame is None else layout.frame)
        return VisualTokens(
            embeds=embeds,
            visual_index=_in_a_row(numbers),
            box=_in_a_row([layout.box for layout in layouts]),
            frame=_in_a_row(frames),
            grids=tuple(layout.grid for layout in layouts),
            signals=signals,
            deepstack=deepstack,
        )

    def _no_tokens(self) -> VisualTokens:
        """The visual tokens of a sample without images."""
        return VisualTokens(
            embeds=self.embed_ids(torch.empty(0, dtype=torch.long, device=self.device)),
            visual_index=torch.empty(0, dtype=torch.long),
            box=torch.empty(0, 4),
        )

    # ---- signals

    def offered(self) -> TowerSignals:
        """Signals that only answer `offers`: those that methods may read of this model's tower.

        Runs nothing, so no signal can be read.
        """
        inputs = self.prepare([Image.new("RGB", (64, 64), "grey")], "?")
        layouts = self.layouts(inputs)
        return self._signals(self.tower(), layouts, [0] * len(layouts), inputs.words)

    def _signals(
        self,
        recorder: TowerRecorder,
        layouts: Sequence[TokenLayout],
        offsets: Sequence[int],
        words: str,
    ) -> TowerSignals:
        """The signals of one sample, with the relevance to its words where CLIP's text tower is."""
        signals = recorder.signals(layouts, offsets, self.project)
        if self.clip_text is None or not signals.offers("features"):
            return signals
        return signals.offering(relevance=partial(self._relevance, signals, words))

    def _relevance(self, signals: TowerSignals, words: str) -> Tensor:
        return self.clip_text.relevance(signals.features, words)

    # ---- embed, decode

    def embed(self, inputs: Inputs, tokens: VisualTokens) -> Prompt:
        """The dense prompt: text embeddings, with the visual tokens at their placeholders."""
        return self.embed_many([inputs], [tokens])[0]

    def embed_many(self, batch: Sequence[Inputs], tokens: Sequence[VisualTokens]) -> list[Prompt]:
        """The dense prompts of a batch."""
        return dense_prompts(self, batch, tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def _in_a_row(parts: Sequence[Tensor]) -> Tensor:
    """The parts one behind the other; a single one, of which nobody changes a value, as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
