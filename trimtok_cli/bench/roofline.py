"""The roofline: the least FLOPs and bytes of a model, from its configuration, and their seconds.

1 MAC = 2 FLOPs. Attention in the language model is causal, so half of its square counts. The time
on a device is the larger of FLOPs over the rate of a matrix product and bytes over the rate of a
copy. Norms, activations and writes to the cache are left out: a lower bound, not a forecast. Plain
Python; knows no device and no timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ceilings:
    """A device's best rates: FLOP/s of a matrix product, and bytes/s of a copy.

    A copy counts its reads and its writes.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least seconds for so many FLOPs and bytes moved."""
        return max(flops / self.flops, moved / self.bytes)


@dataclass(frozen=True)
class Text:
    """A decoder with a gated MLP, as Llama, Mistral and Qwen2 have."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Text":
        """From a transformers text configuration."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            ffn=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """The numbers in one layer's matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.ffn

    @property
    def weights(self) -> int:
        """The numbers read in every forward pass: all layers and the head, not the embedding."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden

    @property
    def cache(self) -> int:
        """Numbers in the KV cache for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def prefill(self, length: float) -> float:
        """FLOPs of a prompt of `length` tokens, or of so many on the mean over layers.

        Logits are of the last token only.
        """
        attention = 2 * self.layers * self.heads * self.head_dim * length**2
        matrices = 2 * self.layers * self.layer_weights * length
        return matrices + attention + 2 * self.vocabulary * self.hidden

    def step(self, length: float) -> float:
        """FLOPs of one decoded token that sees `length` tokens."""
        return 2 * self.weights + 4 * self.layers * self.heads * self.head_dim * length

    def prefill_seconds(self, ceilings: Ceilings, lengths: Sequence[float], size: int) -> float:
        """Seconds of a batch's prefill; `size` is the bytes of a weight."""
        return ceilings.seconds(sum(map(self.prefill, lengths)), size * self.weights)

    def decode_seconds(
        self, ceilings: Ceilings, lengths: Sequence[float], new_tokens: int, size: int
    ) -> float:
        """Seconds of a batch's `new_tokens` - 1 steps: the prefill gives the first token."""
        steps = []
        for number in range(1, new_tokens):
            seen = sum(lengths) + number * len(lengths)
            flops = sum(self.step(length + number) for length in lengths)
            steps.append(ceilings.seconds(flops, size * (self.weights + seen * self.cache)))
        return sum(steps)


@dataclass(frozen=True)
class Vision:
    """A tower of plain attention and an ungated MLP, and the projector behind it.

    joint: the numbers that a patch is embedded from. extra: the CLS tokens of a tile. merge: the
    tower tokens of a visual token.
    """

    layers: int
    hidden: int
    ffn: int
    joint: int
    projector: int
    extra: int = 0
    merge: int = 1

    @classmethod
    def of(cls, config: Any, *, has_cls: bool) -> "Vision | None":
        """From a model's configuration; None for a tower that is not known.

        Known are CLIP and SigLIP in front of two linear layers, and Qwen2-VL's tower. has_cls:
        whether each tile has a CLS token, which no configuration says.
        """
        vision = config.vision_config
        width = config.get_text_config().hidden_size
        if hasattr(vision, "embed_dim") and hasattr(vision, "mlp_ratio"):
            hidden = vision.embed_dim
            merge = vision.spatial_merge_size**2
            return cls(
                layers=vision.depth,
                hidden=hidden,
                ffn=int(hidden * vision.mlp_ratio),
                joint=3 * vision.temporal_patch_size * vision.patch_size**2,
                projector=(merge * hidden) ** 2 + merge * hidden * width,
                merge=merge,
            )
        read = getattr(config, "vision_feature_layer", None)
        if (
            not isinstance(read, int)
            or not hasattr(vision, "num_hidden_layers")
            or isinstance(vision.patch_size, (list, tuple))
        ):
            return None
        return cls(
            layers=read if read >= 0 else vision.num_hidden_layers + 1 + read,
            hidden=vision.hidden_size,
            ffn=vision.intermediate_size,
            joint=3 * vision.patch_size**2,
            projector=vision.hidden_size * width + width**2,
            extra=1 if has_cls else 0,
        )

    @property
    def weights(self) -> int:
        """The numbers in the layers up to the one that is read, and in the projector."""
        return self.layers * self._layer + self.joint * self.hidden + self.projector

    @property
    def _layer(self) -> int:
        return 4 * self.hidden**2 + 2 * self.hidden * self.ffn

    def encode(self, patches: Sequence[int]) -> float:
        """FLOPs of tiles or frames of so many patches each, every one attending within itself."""
        total = 0.0
        for count in patches:
            length = count + self.extra
            total += self.layers * (2 * length * self._layer + 4 * length**2 * self.hidden)
            total += 2 * count * self.joint * self.hidden + 2 * count / self.merge * self.projector
        return total

    def encode_seconds(self, ceilings: Ceilings, patches: Sequence[int], size: int) -> float:
        """Seconds of a batch's tiles or frames; `size` is the bytes of a weight."""
        return ceilings.seconds(self.encode(patches), size * self.weights)
