"""Tiny LLaVA models with random weights, saved as folders, so that `load_model` runs offline.

They are trained on nothing: their answers mean nothing, and their logits are far from flat, as the
oracles need.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} {% "
    "else %}USER: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] "
    "}}{% endif %}{% endfor %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Every printable character is a token; nothing is unknown."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "\n", *map(chr, range(32, 127))]
    core = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def llava(
    folder: Path,
    *,
    grid: int = 6,
    strategy: str = "default",
    layer: int | list[int] = -2,
    kv_heads: int = 2,
    tied: bool = False,
    seed: int = 0,
    end: int | list[int] | None = 2,
    crop: bool = True,
) -> Path:
    """LLaVA-1.5 in small: CLIP tower, 4 decoder layers, `grid` x `grid` visual tokens an image,
    grouped-query attention by default.
    """
    words, size = tokenizer(), grid * 14
    vision = CLIPVisionConfig(**VISION, num_hidden_layers=3, image_size=size, projection_dim=32)
    options = {
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "image_seq_length": grid * grid + (strategy == "full"),
    }
    _save(folder, vision, words, seed, kv_heads=kv_heads, tied=tied, end=end, **options)
    images = CLIPImageProcessor(
        size={"shortest_edge": size} if crop else {"height": size, "width": size},
        crop_size={"height": size, "width": size},
        do_center_crop=crop,
    )
    LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder


def clip(folder: Path, *, width: int = 32, layers: int = 2) -> Path:
    """A whole CLIP, for its text tower. width: its vision tower's; 32 is that of the others."""
    words = tokenizer()
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={"vocab_size": len(words), "hidden_size": 24, **sizes, **ends},
        vision_config={**VISION, "hidden_size": width, "num_hidden_layers": 1, "image_size": 84},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A `llava` with a SigLIP tower: no CLS token, no crop."""
    words = tokenizer()
    vision = SiglipVisionConfig(**VISION, num_hidden_layers=3, image_size=84)
    _save(
        folder,
        vision,
        words,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=36,
    )
    LlavaProcessor(
        SiglipImageProcessor(size={"height": 84, "width": 84}),
        words,
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder


def pixtral(folder: Path) -> Path:
    """A `llava` whose tower takes images of any size, with a break token behind every row of visual
    tokens.
    """
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>", "[IMG_BREAK]", "[IMG_END]"]})
    vision = PixtralVisionConfig(**VISION, num_hidden_layers=2, image_size=84)
    _save(folder, vision, words, vision_feature_layer=-1, vision_feature_select_strategy="full")
    images = PixtralImageProcessor(
        size={"longest_edge": 84}, patch_size={"height": 14, "width": 14}
    )
    PixtralProcessor(
        images, words, patch_size=14, chat_template=TEMPLATE, image_token="<image>"
    ).save_pretrained(folder)
    return folder


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "patch_size": 14}


def _save(
    folder: Path,
    vision,
    words,
    seed: int = 0,
    *,
    kv_heads: int = 2,
    tied: bool = False,
    end=2,
    **options,
) -> None:
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    torch.manual_seed(seed)
    image_id = words.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image_id,
            tie_word_embeddings=tied,
            **options,
        )
    )
    # Visual rows are as long as text rows and as far from each other as real ones, so that a
    # dropped token changes the answer.
    model.model.multi_modal_projector.linear_2.weight.data.mul_(20)
    for name, parameter in model.model.vision_tower.named_parameters():
        if "patch_embedding.weight" in name or "patch_conv.weight" in name:
            parameter.data.mul_(4)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=0)
    model.save_pretrained(folder)
