"""What methods may ask of a vision tower: noted while it runs, worked out only when asked for.
Knows no family and no method.

`TowerRecorder` is hooked around one capture; each sample's TowerSignals then reads its own rows,
through the map from visual tokens to tower tokens that the family's TokenLayouts hold.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trimtok_cli.models.attention import attention_received, queries_and_keys
from trimtok_cli.models.vision.token_layout import TokenLayout
from trimtok_cli.models.vision.tower_run import inputs_of
from trimtok_cli.tokens import TowerSignals


@dataclass(frozen=True)
class Blocks:
    """The tower's layers for a method that changes the tokens between their halves. hidden (images,
    T, C) enters the first.

    With has_cls the first place of each image is its CLS token. `attend` and `feed` are the two
    halves of a CLIP layer.
    """

    hidden: Tensor
    layers: Sequence
    has_cls: bool

    def attend(
        self, number: int, hidden: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, C), and bias (B, T) added to every query's scores -> (B, T, C) and the keys (B, T,
        d), mean over heads.
        """
        layer = self.layers[number]
        normed = layer.layer_norm1(hidden)
        keys = layer.self_attn.k_proj(normed).unflatten(-1, (-1, layer.self_attn.head_dim)).mean(-2)
        mask = None if bias is None else bias[:, None, None].to(hidden.dtype)
        return hidden + layer.self_attn(normed, attention_mask=mask)[0], keys

    def feed(self, number: int, hidden: Tensor) -> Tensor:
        layer = self.layers[number]
        return hidden + layer.mlp(layer.layer_norm2(hidden))


class TowerRecorder:
    """Attention modules by name (`""` is the layer whose output is read, `last_` the tower's last)
    and the projector.

    Of the last layer queries and keys are taken at full width, as one head: so PruMerge defines
    what it asks for. has_cls: the first place of every tile is a CLS token, which is no visual
    token. layers: from the first to the one whose output is read, where a method may run them
    itself; behind: the others, which are run only when something of the last one is asked for.
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
        self.attention, self.projector, self.has_cls, self.layers, self.behind = (
            attention or {},
            projector,
            has_cls,
            layers,
            behind,
        )
        self.entered: list[Tensor] = []
        self.left: list[tuple] = []
        self.inputs: dict[str, list] = {name: [] for name in self.attention}
        self.features: list[Tensor] = []
        self.worked_out: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> "TowerRecorder":
        self.hooks = []
        for name, module in self.attention.items():

            def note(_, args, kwargs, name=name):
                return self.inputs[name].append((args, kwargs))

            self.hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        if self.layers:
            first = self.layers[0]
            self.hooks.append(
                first.register_forward_pre_hook(lambda _, args: self.entered.append(args[0]))
            )
            self.hooks.append(
                self.layers[-1].register_forward_hook(self._note_output, with_kwargs=True)
            )
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

    def _note_output(self, _, args, kwargs, output) -> None:
        """With what else the layer was given: the layers behind it are given the same."""
        self.left.append(((output, *args[1:]), kwargs))

    def _chunks(self, name: str) -> list[tuple[Tensor, Tensor, float]]:
        if name == "last_" and self.behind and not self.inputs[name]:
            self.inputs[name] = [self._run_behind(*each) for each in self.left]
        found = [
            chunk
            for args, kwargs in self.inputs[name]
            for chunk in queries_and_keys(self.attention[name], *args, **kwargs)
        ]
        if name != "last_":
            return found
        wide = [
            (q.transpose(1, 2).flatten(2)[:, None], k.transpose(1, 2).flatten(2)[:, None])
            for q, k, _ in found
        ]
        return [(q, k, q.shape[-1] ** -0.5) for q, k in wide]

    def _run_behind(self, args: tuple, kwargs: Mapping) -> tuple[tuple, Mapping]:
        """What would have entered the last layer's attention."""
        for layer in self.behind[:-1]:
            args = (layer(*args, **kwargs), *args[1:])
        return inputs_of(self.attention["last_"], partial(self.behind[-1], *args, **kwargs))

    def _once(self, signal: Callable[[str], Tensor], name: str) -> Tensor:
        """A batch's samples share one pass over the tower's chunks."""
        key = (signal.__name__, name)
        if key not in self.worked_out:
            self.worked_out[key] = signal(name)
        return self.worked_out[key]

    def saliency(self, name: str) -> Tensor:
        """(tower tokens,): attention from CLS, or received on the mean where there is none."""
        found = [
            attention_received(*chunk, from_first=self.has_cls)[:, self.has_cls :].flatten()
            for chunk in self._chunks(name)
        ]
        return torch.cat(found)

    def keys(self, name: str) -> Tensor:
        """(tower tokens, d): mean over heads."""
        return torch.cat(
            [
                key.float().mean(1)[:, self.has_cls :].flatten(0, 1)
                for _, key, _ in self._chunks(name)
            ]
        )

    def _class_tokens(self, starts: Sequence[int]) -> Tensor:
        """(len(starts), C): what left the layer that is read at the CLS token of the tile that each
        tower token is in.
        """
        left = torch.cat([args[0] for args, _ in self.left])
        return left[[start // (left.shape[1] - 1) for start in starts], 0]

    def all_features(self) -> Tensor:
        """(tower tokens, F): what enters the projector."""
        return torch.cat([each.flatten(0, -2) for each in self.features])

    def signals(
        self,
        places: Sequence[TokenLayout],
        starts: Sequence[int],
        project: Callable[[Tensor], Tensor],
    ) -> TowerSignals:
        """The signals of one sample, each of whose images and videos has its tower tokens from one
        of `starts` on.

        A visual token made of several has their mean.
        """
        if any(place.source is None for place in places):
            return TowerSignals()
        sources = [
            torch.where(p.source < 0, -1, p.source + start)
            for p, start in zip(places, starts, strict=True)
        ]

        def mine(signal: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def read() -> Tensor:
                whole = signal()
                rows = [self._gather(whole, source.to(whole.device)) for source in sources]
                return torch.cat(rows)

            return read

        offers: dict[str, Callable] = {}
        for name in self.attention:
            offers[f"{name}saliency"] = mine(partial(self._once, self.saliency, name))
            offers[f"{name}keys"] = mine(partial(self._once, self.keys, name))
        if self.projector is not None and all(source.shape[1] == 1 for source in sources):
            offers |= {"features": mine(self.all_features), "project": project}
        if self.layers and self.has_cls:
            offers["cls"] = partial(self._class_tokens, starts)
        if any(place.tiles > 1 for place in places):
            owner = [
                torch.where(p.source[:, 0] < 0, -1, p.source[:, 0] // (p.tower // p.tiles))
                for p in places
            ]
            offers["tile"] = lambda: torch.cat(owner)
        if self.layers and len(places) == sum(bool(place.grid) for place in places):
            tile = places[0].tower
            offers["blocks"] = lambda: Blocks(
                torch.cat(self.entered)[[start // tile for start in starts]],
                self.layers,
                self.has_cls,
            )
        return TowerSignals(**offers)

    @staticmethod
    def _gather(whole: Tensor, source: Tensor) -> Tensor:
        """Rows of `whole` by (n, g) numbers, mean over g; zero where there is none (-1: a
        newline).
        """
        rows = whole[source.clamp(min=0)].float().mean(1)
        return rows * (source[:, 0] >= 0).to(rows.dtype).reshape(-1, *[1] * (rows.dim() - 1))
