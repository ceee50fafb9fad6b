"""A model without its language model's layers, which another engine loads and runs.

What is left is what stands in front of them: vision tower, projector and embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trimtok_cli.errors import ModelError


@contextmanager
def no_layers(config: Any) -> Iterator[None]:
    """A block in which a model made of this configuration has no decoder layers."""
    text = config.get_text_config()
    count = text.num_hidden_layers
    text.num_hidden_layers = 0
    try:
        yield
    finally:
        text.num_hidden_layers = count


def keep_front(network: Any, num_layers: int) -> Any:
    """Lets go of the rest of the language model; its configuration says `num_layers` again."""
    decoder = network.get_decoder()
    for config in (network.config.get_text_config(), decoder.config):
        config.num_hidden_layers = num_layers
    rest = [module for name, module in decoder.named_children() if name == "norm"]
    head = network.lm_head
    if head.weight is not network.get_input_embeddings().weight:
        rest.append(head)
    for module in rest:
        module.to(torch.device("meta"))
    return network


def check_front(named_by: str, *, quantized: str, adapted: bool) -> None:
    """Raises ModelError for a checkpoint whose parts two libraries would read differently."""
    if quantized:
        raise ModelError(
            f"{named_by} is quantized by {quantized}, which another engine than trimtok's own may "
            "compute otherwise: use --engine local, or the checkpoint without quantization."
        )
    if adapted:
        raise ModelError(
            f"{named_by} is an adapter beside its base model, which another engine than trimtok's "
            "own would not add: use --engine local, or merge it into a checkpoint."
        )
