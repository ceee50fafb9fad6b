"""Recomputed attention against the library's eager attention, for every type of attention.

`seen` is held against its definition, written out.
"""

import pytest
import torch
import transformers as hf

from trimtok_cli.models.attention import attention_rows, seen, window_of

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ["full_attention", "sliding_attention", "full_attention"]
LENGTH, WINDOW = 17, 5
DECODERS = {
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(**SMALL)),
    "mistral, window": lambda: hf.MistralModel(hf.MistralConfig(**SMALL, sliding_window=WINDOW)),
    "qwen2, window": lambda: hf.Qwen2Model(
        hf.Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=WINDOW, layer_types=KINDS)
    ),
    "qwen3, norms": lambda: hf.Qwen3Model(hf.Qwen3Config(**SMALL, head_dim=16)),
    "phi3, window, one projection": lambda: hf.Phi3Model(
        hf.Phi3Config(**SMALL, sliding_window=WINDOW)
    ),
    "gemma2, window, soft cap": lambda: hf.Gemma2Model(
        hf.Gemma2Config(
            **SMALL,
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=KINDS,
            attn_logit_softcapping=2.0,
        )
    ),
    "gemma3, window, norms": lambda: hf.Gemma3TextModel(
        hf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=WINDOW, layer_types=KINDS)
    ),
    "gpt-oss, window, sinks": lambda: hf.GptOssModel(
        hf.GptOssConfig(
            **SMALL,
            head_dim=8,
            sliding_window=WINDOW,
            layer_types=KINDS,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", DECODERS)
def test_attention_rows_equal_eager_attentions_with_norms_windows_caps_and_sinks(name):
    torch.manual_seed(0)
    decoder = DECODERS[name]().eval()
    decoder.set_attn_implementation("eager")
    for layer in decoder.layers:
        if hasattr(layer.self_attn, "sinks"):
            layer.self_attn.sinks.normal_()
    entered, ran = [], []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append((args[0][0], kwargs["position_embeddings"])),
            with_kwargs=True,
        )
        layer.self_attn.register_forward_hook(lambda _, args, out: ran.append(out[1][0]))
    decoder(inputs_embeds=torch.randn(1, LENGTH, 32), use_cache=False)
    rows = torch.tensor([0, 3, LENGTH - 1])
    for layer, (hidden, spots), want in zip(decoder.layers, entered, ran, strict=True):
        assert (attention_rows(layer, hidden, spots, rows) - want[:, rows]).abs().max() < 1e-5
        reach = WINDOW if "window" in name and bool((want[0, -1] == 0).any()) else None
        assert window_of(layer, hidden[None], spots) == reach
    assert ("window" in name) == any(bool((want[0, -1] == 0).any()) for want in ran)


@pytest.mark.parametrize("window", [None, 1, 3, 99])
@pytest.mark.parametrize("blocks", [None, [-1, 0, 0, 0, -1, 1, 1, -1]])
def test_seen_is_itself_what_is_before_and_its_block_within_the_window(window, blocks):
    length = 8
    want = [
        [
            (key <= row or (blocks is not None and blocks[row] >= 0 and blocks[row] == blocks[key]))
            and (window is None or key > row - window)
            for key in range(length)
        ]
        for row in (0, 2, 5, 7)
    ]
    number = None if blocks is None else torch.tensor(blocks)
    assert seen(torch.tensor([0, 2, 5, 7]), length, window, number).tolist() == want
