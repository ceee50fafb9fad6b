"""Random-weight models of the real classes, saved as folders, so that `load_model` runs its real code offline.

Not trained on anything: their answers mean nothing, their logits are far from flat, which is what the oracles need.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} {% else %}USER: "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Every printable character is a token; nothing is unknown."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
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
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A LLaVA of 4 decoder layers, `grid` x `grid` visual tokens an image; grouped-query attention by default."""
    patch, words = 14, tokenizer()
    size = grid * patch
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=size,
        patch_size=patch,
        projection_dim=32,
    )
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
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=words.convert_tokens_to_ids("<image>"),
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
            image_seq_length=grid * grid + (strategy == "full"),
            tie_word_embeddings=tied,
        )
    )
    model.model.multi_modal_projector.linear_2.weight.data.mul_(20)  # visual rows as long as text rows, as far apart as real ones
    model.model.vision_tower.embeddings.patch_embedding.weight.data.mul_(4)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=0)
    model.to(dtype).save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"shortest_edge": size} if crop else {"height": size, "width": size},
        crop_size={"height": size, "width": size},
        do_center_crop=crop,
    )
    LlavaProcessor(
        images,
        words,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    ).save_pretrained(folder)
    return folder
