"""Tower signals: what methods may read of the vision tower, recorded in a run, computed on demand.

A `TowerRecorder` is hooked around one tower run. The TowerSignals of each sample then read the
sample's own rows, through the sources of its token layouts. Knows no family and no method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtok_cli.device import on_device
from trimtok_cli.models.attention import attention_received, queries_and_keys
from trimtok_cli.models.vision.token_layout import TokenLayout
from trimtok_cli.models.vision.tower_run import inputs_of
from trimtok_cli.tokens import TowerSignals


@dataclass(frozen=True)
class Blocks:
    """The tower's layers, for a method that changes tokens between the two halves of a layer.

    A method such as ToMe merges tokens between attention and feed-forward, so it runs the layers
    itself. `attend` and `feed` are the halves of a CLIP layer.
    hidden (images, T, D): input of the first layer. has_cls: token 0 of each image is a CLS token.
    """

    hidden: Tensor
    layers: Sequence
    has_cls: bool

    def attend(
        self, number: int, hidden: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The first half of layer `number`: (B, T, D) and the keys (B, T, d), mean over heads.

        hidden (B, T, D). bias (B, T): added to the attention scores of every query.
        """
        layer = self.layers[number]
        normed = layer.layer_norm1(hidden)
        keys = layer.self_attn.k_proj(normed).unflatten(-1, (-1, layer.self_attn.head_dim)).mean(-2)
        mask = None if bias is None else bias[:, None, None].to(hidden.dtype)
        return hidden + layer.self_attn(normed, attention_mask=mask)[0], keys

    def feed(self, number: int, hidden: Tensor) -> Tensor:
        """The second half of layer `number`: (B, T, D) -> (B, T, D)."""
        layer = self.layers[number]
        return hidden + layer.mlp(layer.layer_norm2(hidden))


class TowerRecorder:
    """A context in which a tower run leaves behind what its signals are computed from.

    attention: attention modules by the prefix of their signals: "" for the layer that is read,
    whose output enters the projector, `last_` for the tower's last layer. Queries and keys of the
    last layer are taken as one head, as PruMerge defines them.
    projector: its inputs are the features.
    has_cls: token 0 of every tile is a CLS token, which is no visual token.
    layers: from the first to the one that is read, where a method may run them itself.
    behind: the layers after that one, which run only for a signal of the last one.
    """

    def __init__(
        self,
        attention: Mapping[str, torch.nn.Module] | None = None,
        projector: torch.nn.Module | None = None,
        *,
        has_cls: bool = False,
        layers: Sequence = (),
        behind: Sequence = (),
    ) -> None:
        self.attention = attention or {}
        self.projector = projector
        self.has_cls = has_cls
        self.layers = layers
        self.behind = behind
        # Recorded in the run: inputs of attention modules, of the first layer and of the projector;
        # output of the layer that is read, with the further arguments that the layers behind need.
        self.inputs: dict[str, list] = {name: [] for name in self.attention}
        self.layer_inputs: list[Tensor] = []
        self.layer_outputs: list[tuple] = []
        self.features: list[Tensor] = []
        # Computed on demand, for all samples of the run.
        self.computed: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> "TowerRecorder":
        self.hooks = []
        for name, module in self.attention.items():

            def record(_, args, kwargs, name=name):
                self.inputs[name].append((args, kwargs))

            self.hooks.append(module.register_forward_pre_hook(record, with_kwargs=True))
        if self.layers:
            first, last = self.layers[0], self.layers[-1]
            self.hooks.append(
                first.register_forward_pre_hook(lambda _, args: self.layer_inputs.append(args[0]))
            )
            self.hooks.append(last.register_forward_hook(self._record_output, with_kwargs=True))
        if self.projector is not None:
            self.hooks.append(
                self.projector.register_forward_pre_hook(
                    lambda _, args: self.features.append(args[0])
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def take(self) -> dict[str, Any]:
        """What the tower's hooks have recorded, which is gone afterwards."""
        taken = {"inputs": self.inputs, "first": self.layer_inputs, "read": self.layer_outputs}
        self.inputs = {name: [] for name in self.attention}
        self.layer_inputs, self.layer_outputs = [], []
        return taken

    def put(self, taken: Mapping[str, Any]) -> None:
        """Adds what was taken, here or from a run with the same hooks."""
        for name, calls in taken["inputs"].items():
            self.inputs[name] += calls
        self.layer_inputs += taken["first"]
        self.layer_outputs += taken["read"]

    def _record_output(self, _, args, kwargs, output) -> None:
        self.layer_outputs.append(((output, *args[1:]), kwargs))

    def signals(
        self,
        layouts: Sequence[TokenLayout],
        offsets: Sequence[int],
        project: Callable[[Tensor], Tensor],
    ) -> TowerSignals:
        """The signals of one sample.

        layouts, offsets: of each of its images and videos; the offset of their tower tokens in the
        run. A visual token that is made of several tower tokens has their mean.
        """
        known = [layout.source for layout in layouts if layout.source is not None]
        if len(known) < len(layouts):
            return TowerSignals()

        def rows_of(signal: Callable[[], Tensor]) -> Callable[[], Tensor]:
            """The sample's own rows of a signal of the whole run."""

            def read() -> Tensor:
                whole = signal()
                sources = [
                    torch.where(source < 0, -1, source + offset)
                    for source, offset in zip(known, offsets, strict=True)
                ]
                moved = [on_device(source, whole.device) for source in sources]
                return torch.cat([_gather(whole, source) for source in moved])

            return read

        offers: dict[str, Callable] = {}
        for name in self.attention:
            offers[f"{name}saliency"] = rows_of(partial(self._once, self.saliency, name))
            offers[f"{name}keys"] = rows_of(partial(self._once, self.keys, name))
        if self.projector is not None and all(source.shape[1] == 1 for source in known):
            offers |= {"features": rows_of(self.all_features), "project": project}
        if self.layers and self.has_cls:
            offers["cls"] = partial(self._class_tokens, offsets)
        if any(layout.num_tiles > 1 for layout in layouts):
            offers["tile"] = partial(_tile_of, layouts)
        if self.layers and layouts and all(layout.grid for layout in layouts):
            offers["blocks"] = partial(self._blocks, layouts[0].num_tower_tokens, offsets)
        return TowerSignals(**offers)

    # ---- signals of the whole run, in the order of its tower tokens

    def saliency(self, name: str) -> Tensor:
        """(tower tokens,): attention from the CLS token, or received on average without one."""
        received = [
            attention_received(query, key, scaling, from_first=self.has_cls)
            for query, key, scaling in self._queries_and_keys(name)
        ]
        return torch.cat([self._without_cls(attention).flatten() for attention in received])

    def keys(self, name: str) -> Tensor:
        """(tower tokens, d): keys, mean over heads."""
        keys = [key.float().mean(1) for _, key, _ in self._queries_and_keys(name)]
        return torch.cat([self._without_cls(key).flatten(0, 1) for key in keys])

    def all_features(self) -> Tensor:
        """(tower tokens, F): what enters the projector."""
        return torch.cat([features.flatten(0, -2) for features in self.features])

    def _without_cls(self, tokens: Tensor) -> Tensor:
        """(B, T, ...) without the CLS token of each tile."""
        return tokens[:, 1:] if self.has_cls else tokens

    def _queries_and_keys(self, name: str) -> list[tuple[Tensor, Tensor, float]]:
        """Query, key (B, H, S, d) and scaling of each attention call of module `name`."""
        if name == "last_" and self.behind and not self.inputs[name]:
            self.inputs[name] = [
                self._run_behind(args, kwargs) for args, kwargs in self.layer_outputs
            ]
        calls = [
            call
            for args, kwargs in self.inputs[name]
            for call in queries_and_keys(self.attention[name], *args, **kwargs)
        ]
        if name != "last_":
            return calls
        wide = [(_as_one_head(query), _as_one_head(key)) for query, key, _ in calls]
        return [(query, key, query.shape[-1] ** -0.5) for query, key in wide]

    def _run_behind(self, args: tuple, kwargs: Mapping) -> tuple[tuple, Mapping]:
        """The inputs of the last layer's attention, from the output of the layer that is read."""
        for layer in self.behind[:-1]:
            args = (layer(*args, **kwargs), *args[1:])
        return inputs_of(self.attention["last_"], partial(self.behind[-1], *args, **kwargs))

    def _once(self, signal: Callable[[str], Tensor], name: str) -> Tensor:
        """A signal of the whole run, computed once for all of its samples."""
        key = (signal.__name__, name)
        if key not in self.computed:
            self.computed[key] = signal(name)
        return self.computed[key]

    # ---- signals by image

    def _class_tokens(self, offsets: Sequence[int]) -> Tensor:
        """(len(offsets), D): output of the layer that is read, at the CLS token of each tile.

        offsets: of one tower token in each tile.
        """
        output = torch.cat([args[0] for args, _ in self.layer_outputs])
        num_tokens = output.shape[1] - 1
        return torch.stack([output[offset // num_tokens, 0] for offset in offsets])

    def _blocks(self, tokens_per_image: int, offsets: Sequence[int]) -> Blocks:
        # A list as an index would make the host wait.
        whole = torch.cat(self.layer_inputs)
        hidden = torch.stack([whole[offset // tokens_per_image] for offset in offsets])
        return Blocks(hidden, self.layers, self.has_cls)


def _as_one_head(tensor: Tensor) -> Tensor:
    """(B, H, S, d) -> (B, 1, S, H * d)."""
    return tensor.transpose(1, 2).flatten(2)[:, None]


def _tile_of(layouts: Sequence[TokenLayout]) -> Tensor:
    """(N,): number of each token's tile within its image, -1 for a token that is of none."""
    tiles = []
    for layout in layouts:
        source = layout.source[:, 0]
        tokens_per_tile = layout.num_tower_tokens // layout.num_tiles
        tiles.append(torch.where(source < 0, -1, source // tokens_per_tile))
    return torch.cat(tiles)


def _gather(whole: Tensor, source: Tensor) -> Tensor:
    """(N, ...) rows of a signal by source (N, G), mean over G; zero where it is -1 (a newline)."""
    rows = whole[source.clamp(min=0)].float().mean(1)
    shows = (source[:, 0] >= 0).to(rows.dtype)
    return rows * shows.reshape(-1, *[1] * (rows.dim() - 1))
