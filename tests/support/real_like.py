"""Processors with the chat templates of real checkpoints, and with tokenizers that merge characters.

The tokenizers are trained here. There is no model.
"""

import json
from functools import cache

import transformers as hf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.registry import ADAPTERS

CORPUS = (
    "What is in the image? Describe the picture in one sentence. USER: ASSISTANT: User: "
    "Assistant: system user model assistant\n"
    "You are a helpful assistant. How many people are there, and what are they doing?  The "
    "image shows   a red car.\n\n"
    "Where does the table stand? <image> <img> <table> <b> </b> [INST] a < b > c | d_e; f(x) "
    "= y[0] // start_of end_of turn pad "
    "über Straße naïve 图片 是什么 画像 \u00e9\u0301 1 2 3 10 2024\t, . ! ? ' \" -- im_start im_end "
    "soft_token row_1_col_1 context IMG"
)
WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ "
    "message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ "
    "'<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ "
    "content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ "
    "'<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ "
    "'<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' "
    "+ content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}"
)
QWEN = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' "
    "%}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] "
    "}}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif "
    "content['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ "
    "content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set prefix = "
    "messages[0]['content'][0]['text'] + '\n\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}{%- set rest = "
    "messages -%}{%- endif -%}"
    "{%- for message in rest -%}{{ '<start_of_turn>' + message['role'] + '\n' + (prefix if "
    "loop.first else '') }}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ "
    "'<start_of_image>' }}{%- else -%}"
    "{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
IDEFICS = (
    "<|begin_of_text|>{% for message in messages %}{{message['role'].capitalize()}}{% if "
    "message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if "
    "line['type'] == 'text' %}{{line['text']}}"
    "{% else %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if "
    "add_generation_prompt %}"
    "{{ 'Assistant:' }}{% endif %}"
)


def byte_level(special: list[str], *, trim: bool = False) -> Tokenizer:
    """As Qwen's, or with `trim` Llama 3's, which leaves blanks out of its tokens' spans and puts
    the start token itself.
    """
    core = Tokenizer(models.BPE())
    core.normalizer = None if trim else normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [CORPUS] * 3,
        trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False),
    )
    core.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    core.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    core.post_processor = processors.ByteLevel(trim_offsets=trim)
    if trim:
        start = (special[0], core.token_to_id(special[0]))
        core.post_processor = processors.Sequence(
            [
                core.post_processor,
                processors.TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start]),
            ]
        )
    return core


def sentence_pieces(special: list[str], *, gemma: bool = False) -> Tokenizer:
    """As Llama's, or Gemma's, whose blanks in a row and some tags are tokens that were added as
    words.
    """
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaced = normalizers.Replace(" ", "\u2581")
    core.normalizer = (
        spaced if gemma else normalizers.Sequence([normalizers.Prepend("\u2581"), spaced])
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    core.pre_tokenizer = pre_tokenizers.Split(
        "\u2581", "merged_with_next"
    )  # while it is trained: no piece goes on behind a blank
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=pieces, show_progress=False, max_token_length=12
    )
    core.train_from_iterator([CORPUS.replace(" ", "\u2581")] * 3, trainer)
    plain = json.loads(core.to_str())
    core = Tokenizer.from_str(json.dumps(plain | {"added_tokens": [], "pre_tokenizer": None}))
    core.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in ["<unk>", *special]]
    )
    if gemma:
        more = ["\n\n", "\n\n\n", "\u2581\u2581", "<table>"]
        core.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in more])
    start = next(mark for mark in special if mark in ("<s>", "<bos>"))
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, core.token_to_id(start))]
    )
    return core


def _fast(core: Tokenizer, ends: dict[str, str], **named: str) -> hf.PreTrainedTokenizerFast:
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, **ends, extra_special_tokens=named)


def _llava() -> hf.LlavaProcessor:
    words = _fast(
        sentence_pieces(["<s>", "</s>", "<pad>", "<image>"]),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        image_token="<image>",
    )
    images = hf.CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    return hf.LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA,
    )


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML_ENDS = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _qwen() -> hf.Qwen2VLProcessor:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (f"<|{name}|>" for name in names)
    named = {
        "vision_start_token": start,
        "vision_end_token": end,
        "image_token": image,
        "video_token": video,
    }
    words = _fast(byte_level([*CHATML, *named.values()]), CHATML_ENDS, **named)
    size = {"shortest_edge": 4 * 784, "longest_edge": 16 * 784}
    return hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(size=size),
        words,
        hf.Qwen2VLVideoProcessor(size=size),
        chat_template=QWEN,
    )


def _onevision() -> hf.LlavaOnevisionProcessor:
    words = _fast(
        byte_level([*CHATML, "<image>", "<video>"]),
        CHATML_ENDS,
        image_token="<image>",
        video_token="<video>",
    )
    size, pinpoints = {"height": 56, "width": 56}, [[56, 56], [56, 112], [112, 56]]
    images = hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints)
    return hf.LlavaOnevisionProcessor(
        images,
        words,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=ONEVISION,
        vision_aspect_ratio="anyres_max_9",
    )


def _gemma() -> hf.Gemma3Processor:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    special = ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    ends = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    words = _fast(sentence_pieces(special, gemma=True), ends, **named)
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        words,
        chat_template=GEMMA,
        image_seq_length=4,
    )


def _idefics() -> hf.Idefics3Processor:
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|pad|>", *named.values(), *tiles]
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
    words = _fast(byte_level(special, trim=True), ends, **named)
    images = hf.Idefics3ImageProcessor(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    return hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS)


BUILDERS = {
    "llava": _llava,
    "qwen2_vl": _qwen,
    "llava_onevision": _onevision,
    "gemma3": _gemma,
    "idefics3": _idefics,
}


@cache
def preprocessor(name: str) -> Preprocessor:
    return ADAPTERS[name].preprocessing(BUILDERS[name](), name)
