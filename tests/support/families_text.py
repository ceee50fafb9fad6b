"""Tokenizers, chat templates and text configurations for the tiny models of `families`."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2Config,
    Qwen2VLTextConfig,
    Qwen3VLTextConfig,
)

PAD, BOS, EOS = 0, 1, 2
HIDDEN, HEADS = 64, 4
HEAD_DIM = HIDDEN // HEADS

TEXTS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen2_vl": Qwen2VLTextConfig,
    "qwen2_5_vl": Qwen2_5_VLTextConfig,
    "qwen3_vl": Qwen3VLTextConfig,
    "gemma3": Gemma3TextConfig,
}
EXTRAS = {
    "mistral": {"sliding_window": None},
    "qwen2_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    },
    "qwen2_5_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    },
    "qwen3_vl": {
        "head_dim": HEAD_DIM,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    },
    "gemma3": {"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM},
}


def text_config(kind: str, words, *, kv_heads: int, tied: bool, layers: int, **extra):
    """A decoder whose logits are far from flat."""
    return TEXTS[kind](
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        **EXTRAS.get(kind, {}),
        **extra,
    )


def tokenizer(
    ends: tuple[str, ...], named: dict[str, str], more: tuple[str, ...] = (), *, bos: bool
) -> PreTrainedTokenizerFast:
    """Every printable character is a token, and so is every special token; `ends` are pad, bos and
    eos, ids 0, 1 and 2.

    `named` become attributes of it, as some processors want (`words.image_token`); `bos` puts the
    bos token before every text.
    """
    special = [*dict.fromkeys([*ends, "<unk>", *named.values(), *more])]
    vocabulary = [*special, "\n", *map(chr, range(32, 127))]
    core = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece in special]
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{ends[1]} $A", special_tokens=[(ends[1], BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=ends[0],
        bos_token=ends[1],
        eos_token=ends[2],
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
    )


def template(
    image: str,
    video: str,
    *,
    user: str,
    assistant: str,
    ask: str,
    system: str = "{}",
    head: str = "",
) -> str:
    """A chat template with every content item where it stands; `{}` in a turn is its content."""
    content = (
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] "
        "%}{% if c['type'] == 'image' %}"
        + image
        + "{% elif c['type'] == 'video' %}"
        + video
        + "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    system, user, assistant = (turn.format(content) for turn in (system, user, assistant))
    return (
        head
        + "{% for m in messages %}{% if m['role'] == 'system' %}"
        + system
        + "{% elif m['role'] == 'user' %}"
        + user
        + "{% else %}"
        + assistant
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
        + ask
        + "{% endif %}"
    )


LLAMA_ENDS = ("<pad>", "<s>", "</s>")
CHATML_ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MULTIMODAL = {"image_token": "<image>", "video_token": "<video>"}


def vicuna() -> tuple[PreTrainedTokenizerFast, str]:
    words = tokenizer(LLAMA_ENDS, MULTIMODAL, bos=True)
    return words, template(
        "<image>\n",
        "<video>\n",
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT: {}</s>",
        ask="ASSISTANT:",
    )


def mistral() -> tuple[PreTrainedTokenizerFast, str]:
    words = tokenizer(LLAMA_ENDS, MULTIMODAL, bos=True)
    system = "<<SYS>>\n{}\n<</SYS>>\n\n"
    return words, template(
        "<image>\n",
        "<video>\n",
        system=system,
        user="[INST] {} [/INST]",
        assistant=" {}</s>",
        ask="",
    )


CHATML = {
    "system": "<|im_start|>system\n{}<|im_end|>\n",
    "user": "<|im_start|>user\n{}<|im_end|>\n",
    "assistant": "<|im_start|>assistant\n{}<|im_end|>\n",
    "ask": "<|im_start|>assistant\n",
}


def onevision() -> tuple[PreTrainedTokenizerFast, str]:
    return tokenizer(CHATML_ENDS, MULTIMODAL, bos=False), template(
        "<image>\n", "<video>\n", **CHATML
    )


def qwen() -> tuple[PreTrainedTokenizerFast, str]:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    image, video = (
        f"<|vision_start|>{named[name]}<|vision_end|>" for name in ("image_token", "video_token")
    )
    return tokenizer(CHATML_ENDS, named, bos=False), template(image, video, **CHATML)


def internvl() -> tuple[PreTrainedTokenizerFast, str]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return tokenizer(CHATML_ENDS, named, bos=False), template(
        "<IMG_CONTEXT>\n", "<video>\n", **CHATML
    )


IDEFICS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS_TURNS = {
    "system": "System: {}<end_of_utterance>\n",
    "user": "User:{}<end_of_utterance>\n",
    "assistant": "Assistant: {}<end_of_utterance>\n",
    "ask": "Assistant:",
}


def idefics3() -> tuple[PreTrainedTokenizerFast, str]:
    words = tokenizer(("<pad>", "<|begin_of_text|>", "<|eot_id|>"), IDEFICS, TILES, bos=True)
    return words, template("<image>", "<video>", head="<|begin_of_text|>", **IDEFICS_TURNS)


def smolvlm() -> tuple[PreTrainedTokenizerFast, str]:
    words = tokenizer(CHATML_ENDS, {**IDEFICS, "video_token": "<video>"}, TILES, bos=False)
    return words, template("<image>", "<video>", head="<|im_start|>", **IDEFICS_TURNS)


def gemma3() -> tuple[PreTrainedTokenizerFast, str]:
    """Gemma has no system turn: its template puts the system text in front of the first user's."""
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer(
        ("<pad>", "<bos>", "<eos>"), named, ("<start_of_turn>", "<end_of_turn>"), bos=True
    )
    first = (
        "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{% set said = "
        "messages[0]['content'] %}"
    )
    first += "{{ said if said is string else said[0]['text'] }}\n\n{% endif %}"
    turns = template(
        "<start_of_image>",
        "",
        system="",
        user="<start_of_turn>user\n@{}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{}<end_of_turn>\n",
        ask="<start_of_turn>model\n",
        head="{{ bos_token }}",
    )
    return words, turns.replace("@", first)
