"""Family: the questions that each model family answers about itself. Knows no pruning method.

A new family is one file in families/ and one line in registry.py. It says where visual tokens lie
in an image or a video, and overrides the defaults here that do not hold for it: positions,
preprocessing, the signals of its vision tower, the arguments of its language model. Everything that
turns pixels into visual tokens (tower, projector, tiling, newline tokens, pooling) is the model's
own code in transformers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from trimtok_cli.device import no_cudnn_attention, on_device
from trimtok_cli.errors import ModelError
from trimtok_cli.memory import keep_freed
from trimtok_cli.models.faster import faster_forms, faster_tower, replaced
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.leaned_on import cache_argument
from trimtok_cli.models.positions import num_positions
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.told import by_counts
from trimtok_cli.models.vision.token_layout import TokenLayout
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt


class Family(ABC):
    """A loaded model with its processor, and what is particular to its family."""

    # Kept tokens close the gaps between their positions, which are 1-D. A family with M-RoPE keeps
    # the positions of the dense prompt.
    renumbers = True

    # The decoder layers behind each of which features are added to the visual rows.
    deepstack_layers = 0

    # The axis along which the processor lays out images and tiles.
    media_axis = 0

    preprocessing: type[Preprocessor] = Preprocessor

    # The processor's tensors that stay on the CPU, as the model reads them number by number.
    host_tensors: tuple[str, ...] = ()

    # The largest batch of the vision tower, in crops of 336 x 336 pixels. A sample is never split.
    crops_per_batch = 64

    # Whether attention may be cuDNN's on CUDA.
    cudnn_attention = False

    def __init__(self, model, processor, *, name: str, revision: str) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.revision = revision
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.num_positions = num_positions(model.config.get_text_config())
        self.preprocessor = self.preprocessing(processor, name)
        self.preprocessor.num_positions = self.num_positions
        if self.device.type == "cpu":
            keep_freed()

    # ---- 1. where visual tokens lie

    @abstractmethod
    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        """The layout of the visual tokens of image `number` of the prompt."""

    def video_layout(self, inputs: Inputs, visual: Visual) -> TokenLayout:
        """The layout of the visual tokens of the prompt's video.

        Only called for a family with a video path of its own.
        """
        raise ModelError(f"{self.name} has no video path of its own; show its frames as images.")

    def image_sizes(self, tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
        """(width, height) of the images in a processor's tensors, as far as these tell.

        The boxes of visual tokens hang on it, and in tiled images their number.
        """
        height, width = tensors["pixel_values"].shape[-2:]
        return [(width, height)] * len(tensors["pixel_values"])

    def shown(
        self, ids: Tensor, tensors: Mapping[str, Tensor], images: int, videos: int
    ) -> tuple[Visual, ...]:
        """The images and videos of a prompt (S,) that somebody else's processor made.

        tensors: of the prompt's whole batch; images, videos: the number of those that belong to the
        prompts before it. Raises UsageError where they cannot be told.
        """
        return by_counts(self, ids, tensors, images, videos)

    # ---- 2. which positions the dense prompt has

    def positions(self, inputs: Inputs) -> Tensor:
        """(S,) positions of the dense prompt; (3, S) for a family with M-RoPE."""
        return torch.arange(len(inputs.input_ids), device=self.device)

    # ---- 3. what the vision tower tells methods

    def tower(self) -> TowerRecorder:
        """A recorder for the signals that methods may read of the vision tower; none by default."""
        return TowerRecorder()

    # ---- 4. how much of the vision tower runs

    def early_exit(self) -> AbstractContextManager:
        """A context in which the tower ends behind the last layer that is read.

        By default it runs to its end.
        """
        return nullcontext()

    def recording(self, recorder: TowerRecorder) -> AbstractContextManager:
        """A context in which a tower of few crops is recorded and replayed, where a device can.

        recorder: the one that is hooked around the run. By default nothing is recorded.
        """
        return nullcontext()

    def packing(self) -> AbstractContextManager:
        """A context in which a tower for images of any size takes them in one row.

        By default the tower runs as it is.
        """
        return nullcontext()

    def project(self, features: Tensor) -> Tensor:
        """(K, F) tower features -> (K, D) visual tokens, one for each."""
        return self.model.model.multi_modal_projector(features.to(self.dtype))

    # ---- 5. what the language model is given

    def prefill_extras(self, embeds: Tensor, prompts: Sequence[Prompt]) -> dict:
        """Further arguments of the language model in the prefill of `prompts`; none by default."""
        return {}

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | dict[str, Tensor] | None,
        positions: Tensor,
        cache,
        prompts: Sequence[Prompt] = (),
        last: Tensor | None = None,
    ) -> Tensor:
        """One pass of the language model: logits (B, V) of each last row. Fills `cache`.

        embeds (B, S, D); mask (B, 1, 1, total) or None; positions (B, S) or (3, B, S). prompts: in
        the prefill, the prompts that `embeds` holds, padded on the right; empty afterwards.
        last (B,): in place of the prompts, the number of each one's last row, on the device.
        """
        with replaced(self.faster), self.kernels():
            output = self.model.get_decoder()(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self.cache_argument: cache},
                **self.prefill_extras(embeds, prompts),
            )
            hidden = output.last_hidden_state
            if last is None:
                rows = self.last_rows(hidden, embeds, prompts)
            else:
                rows = hidden[torch.arange(len(last), device=last.device), last]
            return self.model.lm_head(rows)

    # ---- the same for all families

    def kernels(self) -> AbstractContextManager[None]:
        """A block in which the tower and the language model run with the kernels they may use."""
        return nullcontext() if self.cudnn_attention else no_cudnn_attention(self.device)

    @property
    def plain_prefill(self) -> bool:
        """Whether a prefill reads nothing of its prompts but their lengths, and no family's code.

        Such a prefill can be recorded: its inputs are rows, positions and lengths alone.
        """
        own = type(self)
        return own.forward is Family.forward and own.prefill_extras is Family.prefill_extras

    def last_rows(self, hidden: Tensor, embeds: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(B, D): the last row of each prompt, or of each step where there are no prompts.

        hidden (B, S, D): the output for `embeds`; shorter if rows left inside the decoder, which
        happens to a prompt by itself alone.
        """
        lengths = [len(prompt) for prompt in prompts]
        if all(length == embeds.shape[1] for length in lengths):
            return hidden[:, -1]
        last = self.to_device(torch.tensor(lengths) - 1)
        return hidden[torch.arange(len(lengths), device=hidden.device), last]

    @cached_property
    def faster(self) -> list:
        """The modules of the language model that have a faster form on this device, with it."""
        modules = [*self.model.get_decoder().modules(), self.model.lm_head]
        return faster_forms(modules, self.device)

    @cached_property
    def faster_tower(self) -> list:
        """The modules outside the language model that have a faster form, with it."""
        decoder = set(self.model.get_decoder().modules())
        modules = [each for each in self.model.model.modules() if each not in decoder]
        return faster_tower(modules, self.device)

    @cached_property
    def cache_argument(self) -> str:
        """The name of the decoder's argument for its KV cache."""
        return cache_argument(self.model.get_decoder().forward)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """(...,) token ids -> (..., D); a fresh tensor."""
        return self.model.get_input_embeddings()(ids).clone()

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """The token ids whose rows are visual tokens: an image's, and a video's of its own."""
        config = self.model.config
        ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
        return tuple(id for id in ids if id is not None)

    def is_visual(self, ids: Tensor) -> Tensor:
        """(S,) bool: which token ids are placeholders of visual tokens."""
        found = torch.zeros_like(ids, dtype=torch.bool)
        for each in self.placeholder_ids:
            found |= ids == each
        return found

    def to_device(self, tensor: Tensor) -> Tensor:
        """A CPU tensor on the model's device, without a wait."""
        return on_device(tensor, self.device)
