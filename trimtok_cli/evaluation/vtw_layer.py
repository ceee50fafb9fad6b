"""The search for VTW's layer K: how far the next token moves when all visual tokens leave.

From "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
arXiv 2405.05803. Knows no file and no command line.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import encode, prune
from trimtok_cli.engine.batch import Encoded
from trimtok_cli.engine.loops import loop_for, rules_for
from trimtok_cli.generation.rules import Rules
from trimtok_cli.generation.types import run
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.base import Pruner
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.vtw import VTW, kl_of


def withdrawal_kls(adapter: Adapter, samples: Iterable[Sample], ask: Ask) -> dict[int, float]:
    """{K: mean KL over the samples, in nats} for every layer K from 1 on.

    Raises the error of a sample that cannot be read.
    """
    kls_by_layer: dict[int, list[float]] = {layer: [] for layer in range(1, adapter.num_layers)}
    rules = rules_for(adapter, replace(ask, max_new_tokens=1), stop=False)
    for sample in samples:
        encoded = encode(adapter, [prepare(adapter.preprocessor, sample, ask)])
        dense = _next_logits(adapter, None, encoded, rules)
        for layer, kls in kls_by_layer.items():
            pruner = VTW(Budget(tokens=1), layer=layer)
            kls.append(float(kl_of(dense, _next_logits(adapter, pruner, encoded, rules))))
    return {layer: sum(kls) / len(kls) for layer, kls in kls_by_layer.items() if kls}


def _next_logits(
    adapter: Adapter, pruner: Pruner | None, encoded: Sequence[Encoded], rules: Rules
) -> Tensor:
    """(V,) logits of the first new token. Raises the error of the run."""
    loop = loop_for(adapter, pruner, rules, keep_logits=True)
    (finished,) = run(loop, prune(adapter, pruner, encoded))
    logits = finished.answer.logits
    if logits is None:
        raise LookupError("the loop kept no logits")
    return logits[0]
