"""Samples prepared once, and their pictures encoded once, for all the settings that answer them.

What stands in front of a pruner is the same for every method and budget, and what stands in front
of the words is the same for every question about a picture. Each setting is given the same tokens,
with the times of their one pass. Knows no pruner.
"""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace

import torch

from trimtok_cli.data import Failed, Sample, Seconds
from trimtok_cli.device import free_bytes
from trimtok_cli.engine.answer import encode
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.memory import host_bytes
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.inputs import Inputs
from trimtok_cli.prepare.sample import Ask, Prepared, attempt
from trimtok_cli.tokens import VisualTokens

LEFT_FREE = 0.5  # of the memory that is free at the beginning


class Shared:
    """The prepared samples of one model and one way of asking, and the tokens of their pictures.

    Nothing is kept of samples that fail, nor once half of the free memory is taken: those samples
    are prepared and encoded again for each setting. The tokens hold what the tower's signals are
    computed from, too, so this is not for towers whose memory is written anew by the next pass.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.least = LEFT_FREE * self._free()
        self.prepared: dict[str, Prepared] = {}
        self.pictures: dict[str, bytes] = {}
        self.tokens: dict[bytes, tuple[VisualTokens, Seconds]] = {}

    def prepare(self, samples: Iterable[Sample], ask: Ask) -> Generator[Prepared | Failed]:
        """Each sample prepared or failed, in order."""
        for sample in samples:
            yield self.prepared.get(sample.key) or attempt(self.adapter.preprocessor, sample, ask)

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Prepared]) -> list[Encoded]:
        """As `answer.encode`, with signals; a picture is encoded the first time it is met."""
        pictures = [self._picture(each) for each in prepared]
        new: dict[bytes, Prepared] = {}
        for each, picture in zip(prepared, pictures, strict=True):
            if picture not in self.tokens:
                new.setdefault(picture, each)
        passed = encode(self.adapter, list(new.values())) if new else []
        made = {
            picture: (each.tokens, Seconds(encode=each.seconds.encode))
            for picture, each in zip(new, passed, strict=True)
        }
        if self._free() > self.least:
            self.tokens |= made
        return [
            self._encoded(each, picture, *(made.get(picture) or self.tokens[picture]))
            for each, picture in zip(prepared, pictures, strict=True)
        ]

    def _free(self) -> int:
        device = self.adapter.device
        return (host_bytes() if device.type == "cpu" else None) or free_bytes(device)

    def _picture(self, prepared: Prepared) -> bytes:
        """The name of what the tower is given for a sample."""
        key = prepared.sample.key
        if key in self.pictures:
            return self.pictures[key]
        return picture_of(prepared.inputs, words=self.adapter.clip_text is not None)

    def _encoded(
        self, prepared: Prepared, picture: bytes, tokens: VisualTokens, seconds: Seconds
    ) -> Encoded:
        """The sample with its dense prompt; it is kept without its pixels."""
        key = prepared.sample.key
        if picture in self.tokens and key not in self.prepared:
            left = {
                name: tensor
                for name, tensor in prepared.inputs.tensors.items()
                if not name.startswith("pixel_values")
            }
            self.prepared[key] = replace(prepared, inputs=replace(prepared.inputs, tensors=left))
            self.pictures[key] = picture
        prompt = replace(self.adapter.embed(prepared.inputs, tokens), seed=prepared.seed)
        return Encoded(prepared, tokens, prompt, prepared.seconds + seconds)


def picture_of(inputs: Inputs, *, words: bool) -> bytes:
    """A hash of all that visual tokens depend on. words: whether those of the question are."""
    found = hashlib.blake2b(repr((inputs.visuals, inputs.words if words else "")).encode())
    for name, tensor in sorted(inputs.media_tensors.items()):
        found.update(repr((name, tensor.dtype, tensor.shape)).encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return found.digest()
