"""Tiny models of every family with random weights, saved as folders that load offline.

As in `tiny`, their answers mean nothing, their logits are far from flat, and their visual rows are
as long as their text rows. `grid` is the side of the square of visual tokens that one tile has.
SmolVLM's processor needs the package num2words.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

from tests.support import families_text as text

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "patch_size": 14}
"""Settings that the CLIP, SigLIP and Idefics towers share."""


@dataclass(frozen=True)
class Shape:
    """The language model of a family, and what its checkpoint ends at; every builder takes these.

    tied: the head has the weights of the embeddings. end: the end token, or several.
    """

    kv_heads: int = 2
    tied: bool = False
    seed: int = 0
    end: Any = text.EOS
    layers: int = 4

    def decoder(self, kind: str, words, **extra: Any):
        """The config of a decoder whose logits are far from flat."""
        sizes = {"kv_heads": self.kv_heads, "tied": self.tied, "layers": self.layers}
        return text.text_config(kind, words, **sizes, **extra)


def llava_next(
    folder: Path,
    *,
    grid: int = 4,
    text_model: str = "llama",
    layer: int | list[int] = -2,
    **given: Any,
) -> Path:
    """CLIP tower; an overview, then up to 2x2, 1x3 or 3x1 tiles without padding, with newlines."""
    shape = Shape(**given)
    words, chat = text.mistral() if text_model == "mistral" else text.vicuna()
    config = hf.LlavaNextConfig(
        text_config=shape.decoder(text_model, words),
        **_next_options(words, grid, layer, shape.tied),
    )
    processor = hf.LlavaNextProcessor(
        _next_images(grid),
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    return _save(
        folder,
        hf.LlavaNextForConditionalGeneration,
        config,
        processor,
        r"projector\.linear_2",
        shape,
    )


def llava_next_video(
    folder: Path,
    *,
    grid: int = 4,
    layer: int | list[int] = -2,
    **given: Any,
) -> Path:
    """`llava_next` with videos, whose frames are pooled 2x2; `grid` should be even."""
    shape = Shape(**given)
    words, chat = text.vicuna()
    config = hf.LlavaNextVideoConfig(
        text_config=shape.decoder("llama", words),
        **_next_options(words, grid, layer, shape.tied),
        video_token_index=words.video_token_id,
        video_seq_length=grid * grid // 4,
        spatial_pool_mode="average",
        spatial_pool_stride=2,
    )
    side = grid * 14
    videos = hf.LlavaNextVideoVideoProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor = hf.LlavaNextVideoProcessor(
        videos,
        _next_images(grid),
        words,
        chat_template=chat,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return _save(
        folder,
        hf.LlavaNextVideoForConditionalGeneration,
        config,
        processor,
        r"projector\.linear_2",
        shape,
    )


def _pinpoints(grid: int) -> list[list[int]]:
    return [
        [rows * grid * 14, columns * grid * 14]
        for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    ]


def _next_options(words, grid: int, layer: int | list[int], tied: bool) -> dict:
    return {
        "vision_config": hf.CLIPVisionConfig(
            **VISION, num_hidden_layers=3, image_size=grid * 14, projection_dim=32
        ),
        "image_token_index": words.image_token_id,
        "image_grid_pinpoints": _pinpoints(grid),
        "image_seq_length": grid * grid,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
    }


def _next_images(grid: int):
    side = grid * 14
    return hf.LlavaNextImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=_pinpoints(grid),
    )


def llava_onevision(
    folder: Path,
    *,
    grid: int = 4,
    **given: Any,
) -> Path:
    """SigLIP tower; up to 4x4 tiles, shrunk when they give more visual tokens than nine; a video's
    frames are pooled 2x2.
    """
    shape = Shape(**given)
    words, chat = text.onevision()
    side = grid * 14
    pinpoints = [[rows * side, columns * side] for rows in range(1, 5) for columns in range(1, 5)]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(
            **VISION, num_hidden_layers=3, image_size=side, vision_use_head=False
        ),
        text_config=shape.decoder("qwen2", words),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=shape.tied,
    )
    size = {"height": side, "width": side}
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        words,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=grid * grid,
        vision_feature_select_strategy="full",
        chat_template=chat,
        vision_aspect_ratio="anyres_max_9",
    )
    return _save(
        folder,
        hf.LlavaOnevisionForConditionalGeneration,
        config,
        processor,
        r"projector\.linear_2",
        shape,
    )


def qwen2_vl(folder: Path, **given: Any) -> Path:
    """From 4 to 40 visual tokens an image, by its size; 2x2 patches a token, two frames a token."""
    vision = {
        "depth": 3,
        "embed_dim": 32,
        "hidden_size": text.HIDDEN,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 14,
    }
    return _qwen(
        folder,
        "qwen2_vl",
        hf.Qwen2VLConfig,
        hf.Qwen2VLForConditionalGeneration,
        hf.Qwen2VLProcessor,
        hf.Qwen2VLVideoProcessor,
        vision,
        r"visual\.merger\.mlp\.2",
        Shape(**given),
    )


def qwen2_5_vl(folder: Path, **given: Any) -> Path:
    """`qwen2_vl` with a tower that attends within windows of 2x2 visual tokens, in all layers but
    its second and its last.
    """
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": text.HIDDEN,
        "num_heads": 4,
        "intermediate_size": 48,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    }
    return _qwen(
        folder,
        "qwen2_5_vl",
        hf.Qwen2_5_VLConfig,
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLProcessor,
        hf.Qwen2VLVideoProcessor,
        vision,
        r"visual\.merger\.mlp\.2",
        Shape(**given),
    )


def qwen3_vl(
    folder: Path,
    *,
    deepstack: tuple[int, ...] = (0, 2),
    **given: Any,
) -> Path:
    """Tower layers `deepstack` feed the text model's first layers; a video's frame pairs stand
    apart, each after its time.
    """
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "out_hidden_size": text.HIDDEN,
        "num_heads": 4,
        "intermediate_size": 48,
        "patch_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": list(deepstack),
    }
    return _qwen(
        folder,
        "qwen3_vl",
        hf.Qwen3VLConfig,
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
        vision,
        r"merger.*\.linear_fc2",
        Shape(**given),
    )


def _qwen(
    folder: Path,
    kind: str,
    config_class,
    model_class,
    processor_class,
    video_class,
    vision: dict,
    last: str,
    shape: Shape,
) -> Path:
    words, chat = text.qwen()
    patch = vision["patch_size"]
    config = config_class(
        text_config=shape.decoder(kind, words).to_dict(),
        vision_config=vision,
        tie_word_embeddings=shape.tied,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        vision_start_token_id=words.vision_start_token_id,
        vision_end_token_id=words.vision_end_token_id,
    )
    token = (2 * patch) ** 2  # pixels to a visual token
    frames = (
        1 if video_class is hf.Qwen2VLVideoProcessor else 6
    )  # Qwen3's budget is that of the whole video
    images = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": 4 * token, "longest_edge": 40 * token}, patch_size=patch
    )
    videos = video_class(
        size={"shortest_edge": 4 * token * frames, "longest_edge": 12 * token * frames},
        patch_size=patch,
    )
    return _save(
        folder,
        model_class,
        config,
        processor_class(images, words, videos, chat_template=chat),
        last,
        shape,
    )


def internvl(
    folder: Path,
    *,
    grid: int = 3,
    tiles: int = 4,
    text_model: str = "qwen2",
    **given: Any,
) -> Path:
    """Up to `tiles` tiles, and the whole image behind them when there are several; a video's frames
    are tiles, each named.
    """
    shape = Shape(**given)
    words, chat = text.internvl()
    side = grid * 28
    vision = hf.InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_hidden_layers=3,
        image_size=[side, side],
        patch_size=[14, 14],
    )
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=shape.decoder(text_model, words),
        image_token_id=words.context_image_token_id,
        image_seq_length=grid * grid,
        downsample_ratio=0.5,
        tie_word_embeddings=shape.tied,
    )
    size = {"height": side, "width": side}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size, max_patches=tiles),
        words,
        hf.InternVLVideoProcessor(size=size),
        image_seq_length=grid * grid,
        chat_template=chat,
    )
    return _save(
        folder,
        hf.InternVLForConditionalGeneration,
        config,
        processor,
        r"projector\.linear_2",
        shape,
    )


def idefics3(
    folder: Path,
    *,
    grid: int = 3,
    tiles: int = 2,
    **given: Any,
) -> Path:
    """An image's longer side is `tiles` tiles long, whatever its size; the whole image comes last,
    text between them.
    """
    shape = Shape(**given)
    words, chat = text.idefics3()
    config = _idefics_config(hf.Idefics3Config, hf.Idefics3VisionConfig, words, grid, shape)
    side = grid * 28
    images = hf.Idefics3ImageProcessor(
        size={"longest_edge": tiles * side}, max_image_size={"longest_edge": side}
    )
    processor = hf.Idefics3Processor(images, words, image_seq_len=grid * grid, chat_template=chat)
    return _save(
        folder,
        hf.Idefics3ForConditionalGeneration,
        config,
        processor,
        r"modality_projection\.proj",
        shape,
    )


def smolvlm(
    folder: Path,
    *,
    grid: int = 3,
    tiles: int = 2,
    **given: Any,
) -> Path:
    """`idefics3` with videos, whose frames are images of one tile, each behind its time."""
    shape = Shape(**given)
    words, chat = text.smolvlm()
    config = _idefics_config(hf.SmolVLMConfig, hf.SmolVLMVisionConfig, words, grid, shape)
    side = grid * 28
    images = hf.SmolVLMImageProcessor(
        size={"longest_edge": tiles * side}, max_image_size={"longest_edge": side}
    )
    videos = hf.SmolVLMVideoProcessor(
        size={"longest_edge": side}, max_image_size={"longest_edge": side}, num_frames=8, fps=1
    )
    processor = hf.SmolVLMProcessor(
        images, words, videos, image_seq_len=grid * grid, chat_template=chat
    )
    return _save(
        folder,
        hf.SmolVLMForConditionalGeneration,
        config,
        processor,
        r"modality_projection\.proj",
        shape,
    )


def _idefics_config(config_class, vision_class, words, grid: int, shape: Shape):
    return config_class(
        vision_config=vision_class(**VISION, num_hidden_layers=3, image_size=grid * 28),
        scale_factor=2,
        image_token_id=words.image_token_id,
        text_config=shape.decoder("llama", words),
        tie_word_embeddings=shape.tied,
        pad_token_id=text.PAD,
    )


def gemma3(
    folder: Path,
    *,
    grid: int = 4,
    window: int = 512,
    **given: Any,
) -> Path:
    """`grid` x `grid` visual tokens an image, each a mean of 2x2 patches; all layers but the last
    see `window` tokens only.
    """
    shape = Shape(**{"tied": True} | given)
    words, chat = text.gemma3()
    side = grid * 28
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(
            **VISION, num_hidden_layers=3, image_size=side, vision_use_head=False
        ),
        text_config=shape.decoder(
            "gemma3",
            words,
            sliding_window=window,
            layer_types=["sliding_attention"] * (shape.layers - 1) + ["full_attention"],
        ),
        mm_tokens_per_image=grid * grid,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id,
        initializer_range=0.15,
        tie_word_embeddings=shape.tied,
    )
    images = hf.Gemma3ImageProcessor(size={"height": side, "width": side})
    processor = hf.Gemma3Processor(images, words, chat_template=chat, image_seq_length=grid * grid)
    return _save(
        folder,
        hf.Gemma3ForConditionalGeneration,
        config,
        processor,
        r"mm_input_projection_weight",
        shape,
    )


def _save(folder: Path, model_class, config, processor, last: str, shape: Shape) -> Path:
    torch.manual_seed(shape.seed)
    model = model_class(config).eval()
    _scale_visual(model, processor, last)
    model.generation_config = hf.GenerationConfig(
        bos_token_id=text.BOS, eos_token_id=shape.end, pad_token_id=text.PAD
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _scale_visual(model, processor, last: str) -> None:
    """Scales the visual weights: pixels make a difference, visual rows are as long as text rows.

    last: pattern of the weights that visual rows are proportional to.
    """
    decoder = {
        id(parameter)
        for parameter in (*model.get_decoder().parameters(), *model.lm_head.parameters())
    }
    visual = {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in decoder
    }
    for name, parameter in visual.items():
        if parameter.ndim > 1:
            is_position = re.search(r"pos_embed|position_embedding|cls_token", name)
            parameter.normal_(
                0, 0.3 if is_position else (parameter.numel() / parameter.shape[0]) ** -0.5
            )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    # InternVL's processor of transformers 5.17 gives numpy a tensor.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        inputs = processor(
            text=[processor.apply_chat_template(chat)], images=[image], return_tensors="pt"
        )
    seen = {}
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs, use_cache=False)
    hook.remove()
    rows = seen["inputs_embeds"][inputs["input_ids"] == model.config.image_token_id]
    words = model.get_input_embeddings()(torch.arange(model.config.get_text_config().vocab_size))
    for name, parameter in visual.items():
        if re.search(last, name) and parameter.ndim > 1:
            parameter.mul_(words.norm(dim=-1).mean() / rows.norm(dim=-1).mean())


FAMILIES: dict[str, Callable[..., Path]] = {
    build.__name__: build
    for build in (
        llava_next,
        llava_next_video,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        idefics3,
        smolvlm,
        gemma3,
    )
}
VIDEO_FAMILIES = {
    "llava_next_video",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "smolvlm",
}
