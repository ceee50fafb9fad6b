"""The search for VTW's layer K: how far next-token distributions move when all visual tokens leave
in front of it.

From "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
arXiv 2405.05803. Knows no file and no command line.
"""

from collections.abc import Iterable

import torch

from trimtok_cli.data import Sample
from trimtok_cli.engine.answer import encode
from trimtok_cli.engine.decoder_stages import RunningStages
from trimtok_cli.generation.plain import generate
from trimtok_cli.models.adapter import Adapter
from trimtok_cli.prepare.sample import Ask, prepare
from trimtok_cli.pruners.budget import Budget
from trimtok_cli.pruners.methods.vtw import VTW, kl_of


@torch.inference_mode()
def withdrawal_kls(adapter: Adapter, samples: Iterable[Sample], ask: Ask) -> dict[int, float]:
    """{K: mean KL over the samples, in nats} for every layer K from 1 on. Raises what a sample
    raises that cannot be read.
    """
    found: dict[int, list[float]] = {layer: [] for layer in range(1, adapter.num_layers)}
    for sample in samples:
        batch = encode(adapter, [prepare(adapter.preprocessor, sample, ask)])
        prompt, tokens = batch.prompts[0], batch.tokens[0]
        (dense,), _ = generate(adapter, [prompt], max_new_tokens=1, stop=False, keep_logits=True)
        if dense.error:
            raise dense.error
        for layer, kls in found.items():
            pruner = VTW(Budget(tokens=1), layer=layer)
            with RunningStages(
                adapter.model.get_decoder(), pruner, prompt, tokens, renumber=adapter.renumbers
            ) as stages:
                (said,), _ = generate(
                    adapter, [stages.plain], max_new_tokens=1, stop=False, keep_logits=True
                )
            kls.append(float(kl_of(dense.logits[0], said.logits[0])))
    return {layer: sum(kls) / len(kls) for layer, kls in found.items() if kls}
