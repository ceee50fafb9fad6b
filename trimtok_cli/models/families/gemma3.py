"""Gemma 3 (`gemma3`): 256 tokens for each image, pooled from a SigLIP grid.

"Gemma 3 Technical Report", arXiv 2503.19786. The tokens of an image see each other in both
directions. Positions are 1-D. Most layers see a window of rows: with fewer visual tokens in the
prompt, words see farther back than in the dense prompt.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtok_cli.errors import ModelError
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.faster import replaced
from trimtok_cli.models.inputs import Inputs, Visual
from trimtok_cli.models.vision.token_layout import TokenLayout, single_grid
from trimtok_cli.models.vision.tower_signals import TowerRecorder
from trimtok_cli.tokens import Prompt


class Gemma3(Adapter):
    """`gemma3`: one square grid for each image."""

    def image_layout(self, inputs: Inputs, number: int, visual: Visual) -> TokenLayout:
        if self.processor.image_processor.do_pan_and_scan:
            raise ModelError(
                f"{self.name} is set to pan and scan, which is not supported: set "
                "do_pan_and_scan to false."
            )
        side = math.isqrt(self.model.config.mm_tokens_per_image)
        vision = self.model.config.vision_config
        return single_grid(side, side, vision.image_size // vision.patch_size // side)

    def tower(self) -> TowerRecorder:
        return TowerRecorder(
            {"": self.model.model.vision_tower.encoder.layers[-1].self_attn}, None, has_cls=False
        )

    def forward(
        self,
        embeds: Tensor,
        mask: Tensor | dict[str, Tensor] | None,
        positions: Tensor,
        cache,
        prompts: Sequence[Prompt] = (),
        last: Tensor | None = None,
    ) -> Tensor:
        """As `Family.forward`, but through the outer model.

        The outer model alone builds the masks by which the tokens of an image see each other.
        `last` is never given: the masks are the prompts'.
        """
        token_types = None
        if prompts:
            token_types = torch.zeros(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            for row, prompt in enumerate(prompts):
                token_types[row, prompt.visual] = 1
        with replaced(self.faster), self.kernels():
            output = self.model.model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                token_type_ids=token_types,
                **{self.cache_argument: cache},
            )
            return self.model.lm_head(self.last_rows(output.last_hidden_state, embeds, prompts))
