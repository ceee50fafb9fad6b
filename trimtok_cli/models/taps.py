"""What methods may ask of a vision tower: noted while it runs, worked out only when asked for. Knows no family and no method.

`Tower` is hooked around one capture; each sample's EncoderTap then reads its own rows, through the map from visual tokens
to tower tokens that the family's Places hold.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from trimtok_cli.attention import attention_received, queries_and_keys
from trimtok_cli.models.places import Places
from trimtok_cli.tokens import EncoderTap


class Tower:
    """Attention modules by name (`""` is the layer whose output is read, `last_` the tower's last) and the projector.

    has_cls: the first place of every tile is a CLS token, which is no visual token.
    """

    def __init__(self, attention: Mapping[str, torch.nn.Module], projector: torch.nn.Module | None, *, has_cls: bool) -> None:
        self.attention, self.projector, self.has_cls = attention, projector, has_cls
        self.inputs: dict[str, list] = {name: [] for name in attention}
        self.features: list[Tensor] = []

    def __enter__(self) -> "Tower":
        self.hooks = []
        for name, module in self.attention.items():
            note = lambda _, args, kwargs, name=name: self.inputs[name].append((args, kwargs))  # noqa: E731
            self.hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        if self.projector is not None:
            self.hooks.append(self.projector.register_forward_pre_hook(lambda _, args: self.features.append(args[0])))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _chunks(self, name: str) -> list[tuple[Tensor, Tensor, float]]:
        return [chunk for args, kwargs in self.inputs[name] for chunk in queries_and_keys(self.attention[name], *args, **kwargs)]

    def saliency(self, name: str) -> Tensor:
        """(tower tokens,): attention from CLS, or received on the mean where there is none."""
        found = [attention_received(*chunk, from_first=self.has_cls)[:, self.has_cls :].flatten() for chunk in self._chunks(name)]
        return torch.cat(found)

    def keys(self, name: str) -> Tensor:
        """(tower tokens, d): mean over heads."""
        return torch.cat([key.float().mean(1)[:, self.has_cls :].flatten(0, 1) for _, key, _ in self._chunks(name)])

    def all_features(self) -> Tensor:
        """(tower tokens, F): what enters the projector."""
        return torch.cat([each.flatten(0, -2) for each in self.features])

    def tap(self, places: Sequence[Places], start: int, project: Callable[[Tensor], Tensor]) -> EncoderTap:
        """The signals of one sample, whose tower tokens begin at `start`. A visual token made of several has their mean."""
        if any(place.source is None for place in places):
            return EncoderTap()
        sources = []
        for place in places:
            sources.append(torch.where(place.source < 0, -1, place.source + start))
            start += place.tower

        def mine(signal: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def read() -> Tensor:
                whole = signal()
                rows = [self._gather(whole, source.to(whole.device)) for source in sources]
                return torch.cat(rows)

            return read

        offers: dict[str, Callable] = {}
        for name in self.attention:
            offers[f"{name}saliency"] = mine(cache(lambda name=name: self.saliency(name)))
            offers[f"{name}keys"] = mine(cache(lambda name=name: self.keys(name)))
        if self.projector is not None and all(source.shape[1] == 1 for source in sources):
            offers |= {"features": mine(self.all_features), "project": project}
        return EncoderTap(**offers)

    @staticmethod
    def _gather(whole: Tensor, source: Tensor) -> Tensor:
        """Rows of `whole` by (n, g) numbers, mean over g; zero where there is none (-1: a newline)."""
        rows = whole[source.clamp(min=0)].float().mean(1)
        return rows * (source[:, 0] >= 0).to(rows.dtype).reshape(-1, *[1] * (rows.dim() - 1))
