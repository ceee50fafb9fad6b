"""What the arithmetic of a model costs at the least: FLOPs and bytes from its configuration. Plain
Python.

1 MAC = 2 FLOPs; attention in the language model is causal, so half of its square. Time on hardware
is the larger of FLOPs over the rate of a matrix product and bytes over the rate of a copy. Norms,
activations and caches' writes are left out: a floor, not a forecast. Knows no hardware and no
timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ceilings:
    """What a device does at best: FLOP/s of a matrix product and bytes/s of a copy (read and write
    both counted).
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, moved: float) -> float:
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
            config.num_hidden_layers,
            config.hidden_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Of one layer's matrices."""
        return (
            2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
            + 3 * self.hidden * self.ffn
        )

    @property
    def weights(self) -> int:
        """Read in every forward pass: all layers and the head, not the embedding."""
        return self.layers * self.layer_weights + self.vocabulary * self.hidden

    @property
    def cache(self) -> int:
        """Numbers in the KV cache for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def prefill(self, length: float) -> float:
        """FLOPs of a prompt of `length` tokens, logits of its last one only. A mean over layers may
        be given.
        """
        attention = 2 * self.layers * self.heads * self.head_dim * length**2
        return (
            2 * self.layers * self.layer_weights * length
            + attention
            + 2 * self.vocabulary * self.hidden
        )

    def step(self, length: float) -> float:
        """FLOPs of one decoded token that sees `length` tokens."""
        return 2 * self.weights + 4 * self.layers * self.heads * self.head_dim * length

    def prefill_seconds(self, ceilings: Ceilings, lengths: Sequence[float], size: int) -> float:
        """Of a batch; `size` is the bytes of a weight."""
        return ceilings.seconds(sum(map(self.prefill, lengths)), size * self.weights)

    def decode_seconds(
        self, ceilings: Ceilings, lengths: Sequence[float], new_tokens: int, size: int
    ) -> float:
        """Of a batch's `new_tokens` - 1 steps: the first token is the prefill's."""
        steps = []
        for number in range(1, new_tokens):
            seen = sum(lengths) + number * len(lengths)
            flops = sum(self.step(length + number) for length in lengths)
            steps.append(ceilings.seconds(flops, size * (self.weights + seen * self.cache)))
        return sum(steps)


@dataclass(frozen=True)
class Vision:
    """A tower of plain attention and an ungated MLP, and the projector behind it. extra: its CLS
    tokens.

    merge: tower tokens to a visual token. joint: numbers a patch is embedded from.
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
        """From a model's configuration: CLIP and SigLIP in front of two linear layers, or
        Qwen2-VL's; None for the others.

        has_cls: whether each tile has a CLS token, which no configuration says.
        """
        vision, width = config.vision_config, config.get_text_config().hidden_size
        if hasattr(vision, "embed_dim") and hasattr(vision, "mlp_ratio"):
            hidden, merge = vision.embed_dim, vision.spatial_merge_size**2
            joint = 3 * vision.temporal_patch_size * vision.patch_size**2
            projector = (merge * hidden) ** 2 + merge * hidden * width
            return cls(
                vision.depth, hidden, int(hidden * vision.mlp_ratio), joint, projector, merge=merge
            )
        read = getattr(config, "vision_feature_layer", None)
        if (
            not isinstance(read, int)
            or not hasattr(vision, "num_hidden_layers")
            or isinstance(vision.patch_size, (list, tuple))
        ):
            return None
        layers = read if read >= 0 else vision.num_hidden_layers + 1 + read
        hidden, joint = vision.hidden_size, 3 * vision.patch_size**2
        projector = hidden * width + width**2
        return cls(layers, hidden, vision.intermediate_size, joint, projector, extra=int(has_cls))

    @property
    def weights(self) -> int:
        """Of the layers whose output is read, and the projector."""
        return self.layers * self._layer + self.joint * self.hidden + self.projector

    @property
    def _layer(self) -> int:
        return 4 * self.hidden**2 + 2 * self.hidden * self.ffn

    def encode(self, patches: Sequence[int]) -> float:
        """FLOPs of tiles or frames of so many patches, each attending within itself."""
        total = 0.0
        for count in patches:
            length = count + self.extra
            total += self.layers * (2 * length * self._layer + 4 * length**2 * self.hidden)
            total += 2 * count * self.joint * self.hidden + 2 * count / self.merge * self.projector
        return total

    def encode_seconds(self, ceilings: Ceilings, patches: Sequence[int], size: int) -> float:
        return ceilings.seconds(self.encode(patches), size * self.weights)
