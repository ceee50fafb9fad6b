"""A preprocessor for a look at samples: files are decoded and questions written, no pixel is kept.

What a worker hands back is a few hundred bytes then. Without a model, files alone are looked at.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from trimtok_cli.models.inputs import Inputs
from trimtok_cli.models.preprocessor import Preprocessor


class Looking:
    """Stands in a Preprocessor's place. inner: the model's own, None without a model."""

    def __init__(self, inner: Preprocessor | None = None) -> None:
        self.inner = inner
        self.name = inner.name if inner else ""
        # Without a model nobody knows, and a clip is not refused.
        self.has_video = inner.has_video if inner else True

    def prepare(self, images: Sequence[Image.Image], question: str, **options: Any) -> Inputs:
        """As `Preprocessor.prepare`; pixels have their shape alone, as tensors without storage."""
        if self.inner is None:
            nothing = torch.empty(0, dtype=torch.long)
            return Inputs({}, nothing, nothing, visuals=(), text="")
        inputs = self.inner.prepare(images, question, **options)
        tensors = {
            name: tensor.to("meta") if name.startswith("pixel_values") else tensor
            for name, tensor in inputs.tensors.items()
        }
        return replace(inputs, tensors=tensors)
