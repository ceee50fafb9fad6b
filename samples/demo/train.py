"""Trains the demo model from scratch on two CPU cores and scores it: an ordinary, dense, very small
LLaVA-1.5.

python train.py tower      the vision tower alone on windows of scenes: what covers each patch?
(one core) python train.py language   the language model alone on the truth, spelled in its own word
embeddings  (one core) python train.py joint      both through the projector, on pictures, questions
and answers             (two cores) python train.py export     half-precision weights, tokenizer and
processor into model/ python train.py score      the exported model on 1,000 held-out scenes, task
by task

`tower` and `language` can run at the same time; half an hour each is enough, `joint` wants all the
time there is (six pictures a second on two cores, still learning after 30,000). Each writes a
checkpoint into --work every few minutes and goes on from it. No token is ever dropped in training.
Every question of a scene is a turn of its own that sees the picture and itself only (a block mask
and its own positions), so one pass over a picture teaches all of them and equals separate prompts.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import scenes
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scenes import CHARACTERS, COLOR_NAMES, GRID, KINDS, MAX_VALUE, PATCH, SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AttentionInterface,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
HELD_OUT_SEED = 20_000_001  # no training run starts from it
WIDTH, TOWER_LAYERS, LANGUAGE_LAYERS = (
    160,
    6,
    4,
)  # the last tower layer is not read: vision_feature_layer is -2
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% for c in m['content'] %}{{ "
    "c['text'] }} {% endfor %}"
    "{% elif m['role'] == 'user' %}USER: {% for c in m['content'] %}{% if c['type'] == "
    "'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% else %}ASSISTANT: {% for c in m['content'] %}{{ c['text'] }}{% endfor %}</s>{% endif "
    "%}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
HEADS = {
    "kind": len(KINDS),
    "shape": len(SHAPES),
    "color": len(COLOR_NAMES),
    "character": len(CHARACTERS),
    "order": 3,
    "value": MAX_VALUE,
    "center": 2,
    "background": len(scenes.BACKGROUND_NAMES),
    "row": GRID,
    "column": GRID,
}


# ---- the model -------------------------------------------------------------------------------------------------------


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the demo's language; anything else, printed text and numbers too, falls apart
    into characters.
    """
    more = [
        "USER",
        "ASSISTANT",
        "photo",
        "picture",
        "colour",
        "which",
        "Which",
        "object",
        "objects",
        "was",
        "it",
        "with",
    ]
    vocabulary = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "<image>",
        "\u2581",
        *(chr(c) for c in range(33, 127)),
    ]
    vocabulary += sorted({f"\u2581{word}" for word in scenes.words() + more})
    # WordPiece takes the longest piece that fits; with no mark for "goes on" a character is one
    # token wherever it stands.
    pieces = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.WordPiece(
            pieces, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=1000
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    images = CLIPImageProcessor(
        size={"shortest_edge": scenes.SIZE},
        crop_size={"height": scenes.SIZE, "width": scenes.SIZE},
        image_mean=MEAN,
        image_std=STD,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=WIDTH // 32,
        image_size=scenes.SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=448,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=WIDTH // 32,
        num_key_value_heads=WIDTH // 32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    # Pixels come in with a norm of about 100; places as small as CLIP draws them would drown, and
    # the tower would see a bag of patches.
    model.model.vision_tower.embeddings.position_embedding.weight.data[1:] = 30 * places()
    return model


def places() -> torch.Tensor:
    """(576, D) unit vectors: sines and cosines of the row in one half, of the column in the
    other.
    """
    turns = torch.exp(torch.linspace(np.log(2 * np.pi / 2.5), np.log(2 * np.pi / 60), WIDTH // 4))
    waves = torch.arange(GRID)[:, None] * turns
    line = torch.cat([waves.sin(), waves.cos()], 1) / WIDTH**0.5 * 2**0.5
    return torch.cat(
        [line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)], 2
    ).reshape(GRID * GRID, WIDTH)


class Lesson(NamedTuple):
    """What the language model reads in one step: scenes of side x side patches, and which tasks are
    asked of them.
    """

    side: int
    scenes: int
    max_shapes: int
    label: float
    chart: float
    tasks: tuple[str, ...]


TASKS = ("caption", "exist", "count", "color", "side", "read", "bar")
LESSONS = (
    Lesson(12, 8, 4, 0.6, 0.5, TASKS),
    Lesson(8, 24, 2, 0.0, 0.0, ("side",)),
    Lesson(8, 20, 3, 0.3, 0.0, ("color", "read")),
    Lesson(12, 8, 4, 0.6, 0.5, TASKS),
    Lesson(8, 20, 2, 0.0, 0.0, ("side",)),
    Lesson(8, 32, 0, 0.6, 0.6, ("read", "bar")),
)
WHOLE = Lesson(GRID, 6, 5, 0.6, 0.5, TASKS)
NOTHING = ("exist", "Is there any text in the image?", "no")


class Spelling(nn.Module):
    """The truth of a patch as a visual token: the sum of the embeddings of the words for it, and a
    little of its place.

    The language model learns on these; the projector then learns to make them from pixels.
    Background comes out longer than things (1.5 against 1), so it lies farther from every word: the
    alignment that CLIP training gives a real LLaVA, and what the paper's first stage relies on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        find = tokenizer.convert_tokens_to_ids
        spelled = {
            "shape": [f"\u2581{w}" for w in SHAPES],
            "color": [f"\u2581{w}" for w in COLOR_NAMES],
            "character": list(CHARACTERS),
            "value": [str(v + 1) for v in range(MAX_VALUE)],
            "background": [f"\u2581{w}" for w in scenes.BACKGROUND_NAMES],
            "kind": [f"\u2581{w}" for w in ("background", "shapes", "text", "bar")],
        }
        self.words = {name: [find(word) for word in found] for name, found in spelled.items()}
        self.center = nn.Parameter(0.06 * torch.randn(WIDTH))
        self.order = nn.Parameter(0.06 * torch.randn(3, WIDTH))
        # A place is a point on a line (and a little of its own), so that "left of" can be read off
        # by one direction.
        ramp = torch.linspace(-1, 1, GRID)[:, None] * F.normalize(torch.randn(2, 1, WIDTH), dim=-1)
        self.row = nn.Parameter(0.5 * ramp[0] + 0.03 * torch.randn(GRID, WIDTH))
        self.column = nn.Parameter(0.5 * ramp[1] + 0.03 * torch.randn(GRID, WIDTH))

    def forward(self, truth: dict[str, torch.Tensor], embedding: torch.Tensor) -> torch.Tensor:
        """Truths (B, P) and the word embeddings (V, D) to visual tokens (B, P, D)."""
        thing = truth["kind"] > 0
        total = 0.0
        for name, ids in self.words.items():
            present = truth[name] >= 0
            if name == "background":
                present = ~thing
            if name == "color":
                present = present & (truth["kind"] != KINDS.index("character"))
            rows = F.embedding(torch.tensor(ids)[truth[name].clamp(min=0)], embedding)
            total = total + rows * present[..., None] * (0.5 if name == "kind" else 1.0)
        total = (
            F.normalize(total, dim=-1)
            + 0.8 * F.normalize(self.center, dim=-1) * truth["center"][..., None]
        )
        total = (
            total
            + 0.8
            * F.normalize(self.order, dim=-1)[truth["order"].clamp(min=0)]
            * (truth["order"] >= 0)[..., None]
        )
        total = total + self.row[truth["row"]] + self.column[truth["column"]]
        return F.normalize(total, dim=-1) * torch.where(thing, 1.0, 1.5)[..., None]


# ---- data ------------------------------------------------------------------------------------------------------------


def truth_of(
    scene: scenes.Scene, size: int = scenes.SIZE, at: tuple[int, int] = (0, 0)
) -> dict[str, np.ndarray]:
    """The patch truths of a scene, with each patch's row and column when the scene stands at `at`
    in the grid.
    """
    truth = scenes.patch_truth(scene, size)
    grid = size // PATCH
    rows, columns = np.meshgrid(np.arange(grid) + at[0], np.arange(grid) + at[1], indexing="ij")
    return truth | {"row": rows, "column": columns}


def stack(truths: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.stack([t[name].reshape(-1) for t in truths]))
        for name in truths[0]
    }


def pixels_of(images: list[np.ndarray]) -> torch.Tensor:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def windows(rng: Random, count: int, side: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`count` windows of side x side patches cut from scenes, most with a thing in them, at random
    places of the grid.
    """
    images, truths = [], []
    while len(images) < count:
        scene = scenes.layout(rng)
        picture, truth = np.asarray(scenes.render(scene)), truth_of(scene)
        shift = (rng.randint(0, side - 1), rng.randint(0, side - 1)) if side < GRID else (0, 0)
        for top in range(shift[0], GRID - side + 1, side):
            for left in range(shift[1], GRID - side + 1, side):
                cut = {
                    name: grid[top : top + side, left : left + side] for name, grid in truth.items()
                }
                if not cut["kind"].any() and rng.random() > 0.1:
                    continue
                row, column = rng.randint(0, GRID - side), rng.randint(0, GRID - side)
                moved = {"row": cut["row"] - top + row, "column": cut["column"] - left + column}
                truths.append(cut | moved)
                images.append(
                    picture[
                        top * PATCH : (top + side) * PATCH, left * PATCH : (left + side) * PATCH
                    ]
                )
    order = rng.sample(range(len(images)), count)
    return pixels_of([images[i] for i in order]), stack([truths[i] for i in order])


def labels(
    rng: Random, count: int, side: int = 12
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[list[tuple[str, str, str]]]]:
    """Small scenes with a label, often a chart, at random places of the grid, with their questions
    of reading.

    A window may cut a label in two, and then which character is the first cannot be seen: here it
    always can.
    """
    found = [scenes.layout(rng, side * PATCH, 1, 1.0, 0.5) for _ in range(count)]
    places = [(rng.randint(0, GRID - side), rng.randint(0, GRID - side)) for _ in found]
    truth = stack([truth_of(s, side * PATCH, at) for s, at in zip(found, places, strict=True)])
    asked = [
        [one for one in scenes.questions(s, rng, dense=True) if one[0] in ("read", "bar")]
        or [NOTHING]
        for s in found
    ]
    return pixels_of([np.asarray(scenes.render(s, side * PATCH)) for s in found]), truth, asked


class Turns:
    """All questions of a scene as one row: ids, labels, a block mask over (prefix, visual, turns),
    positions, weights.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self.prefix = [1, *self.encode("USER:")]

    def row(self, asked: list[tuple[str, str, str]], num_visual: int) -> dict[str, np.ndarray]:
        ids, labels, block, positions, weights = [], [], [], [], []
        start = len(self.prefix) + num_visual
        for number, (_, question, answer) in enumerate(asked):
            head, tail = self.encode(f"{question} ASSISTANT:"), [*self.encode(answer), 2]
            ids += head + tail
            labels += (
                [-100] * (len(head) - 1) + tail + [-100]
            )  # already shifted: what the next token is
            block += [number + 1] * len(head + tail)
            positions += range(start, start + len(head + tail))
            weights += [len(tail) ** -0.5] * len(head + tail)
        return {
            name: np.array(v)
            for name, v in {
                "ids": ids,
                "labels": labels,
                "block": block,
                "positions": positions,
                "weights": weights,
            }.items()
        }

    def batch(
        self, asked: list[list[tuple[str, str, str]]], num_visual: int
    ) -> dict[str, torch.Tensor]:
        rows = [self.row(a, num_visual) for a in asked]
        longest = max(len(r["ids"]) for r in rows)
        fill = {"ids": 0, "labels": -100, "block": -1, "positions": 0, "weights": 0}
        out = {
            n: torch.from_numpy(
                np.stack([np.pad(r[n], (0, longest - len(r[n])), constant_values=f) for r in rows])
            )
            for n, f in fill.items()
        }
        shared = len(self.prefix) + num_visual
        block = F.pad(out["block"], (shared, 0))
        causal = torch.ones(shared + longest, shared + longest, dtype=torch.bool).tril()
        sees = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
        out["mask"] = (causal & sees)[:, None, shared:]
        first = torch.arange(shared).expand(len(rows), -1)
        out["position_ids"] = torch.cat([first, out["positions"]], 1)
        return out


# ---- forward passes --------------------------------------------------------------------------------------------------


def tower_features(model, pixels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w) pixels, (B, P) places in the 576 -> (B, 1 + P, D), the hidden state that the
    projector reads.
    """
    tower = model.model.vision_tower
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([tower.embeddings.class_embedding.expand(len(pixels), 1, -1), patches], 1)
    tokens = tokens + tower.embeddings.position_embedding(F.pad(places + 1, (1, 0)))
    tokens = tower.pre_layrnorm(tokens)
    for layer in tower.encoder.layers[:-1]:
        tokens = layer(tokens, None)
    return tokens


def attend_turns(
    module, query, key, value, attention_mask, scaling=None, **_
) -> tuple[torch.Tensor, None]:
    """Attention in two parts, at half the cost of one with a full mask: what all turns share,
    causal; then the turns, masked.
    """
    shared = key.shape[2] - attention_mask.shape[2]
    first = F.scaled_dot_product_attention(
        query[:, :, :shared],
        key[:, :, :shared],
        value[:, :, :shared],
        is_causal=True,
        scale=scaling,
    )
    rest = F.scaled_dot_product_attention(
        query[:, :, shared:], key, value, attn_mask=attention_mask, scale=scaling
    )
    return torch.cat([first, rest], 2).transpose(1, 2), None


AttentionInterface.register("turns", attend_turns)


def read_turns(
    model, visual: torch.Tensor, turns: dict[str, torch.Tensor], prefix: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The language model over prefix, visual tokens and turns: its hidden states at the turns'
    tokens, and where a label is.
    """
    language = model.model.language_model
    embed = language.get_input_embeddings()
    first = embed(torch.tensor(prefix)).expand(len(visual), -1, -1)
    hidden = torch.cat([first, visual.to(first.dtype), embed(turns["ids"])], 1)
    mask = torch.zeros(turns["mask"].shape).masked_fill_(~turns["mask"], -1e9)
    if torch.is_autocast_enabled("cpu"):
        mask = mask.bfloat16()
    language.config._attn_implementation = "turns"
    out = language(
        inputs_embeds=hidden,
        attention_mask=mask,
        position_ids=turns["position_ids"],
        use_cache=False,
    )
    out = out.last_hidden_state[:, first.shape[1] + visual.shape[1] :]
    return out, turns["labels"] >= 0


def answer_loss(
    model, visual: torch.Tensor, turns: dict[str, torch.Tensor], prefix: list[int]
) -> torch.Tensor:
    out, wanted = read_turns(model, visual, turns, prefix)
    loss = F.cross_entropy(
        model.lm_head(out[wanted]).float(), turns["labels"][wanted], reduction="none"
    )
    weights = turns["weights"][wanted].float()
    return (loss * weights).sum() / weights.sum()


def patch_loss(
    features: torch.Tensor, truth: dict[str, torch.Tensor], heads: nn.ModuleDict
) -> torch.Tensor:
    """Cross-entropy of every truth at every patch that has it; empty background counts a tenth."""
    loss = 0.0
    thing = truth["kind"] > 0
    weight = torch.where(thing, 1.0, 0.1)
    for name, head in heads.items():
        if name == "present":
            continue
        has = truth[name] >= 0
        if name == "character":
            has = has & (truth["kind"] == KINDS.index("character"))
        if not has.any():
            continue
        each = F.cross_entropy(
            head(features[:, 1:][has]).float(), truth[name][has], reduction="none"
        )
        w = weight[has] * (1 + 2 * truth["center"][has])
        loss = loss + (each * w).sum() / w.sum() * (0.2 if name in ("row", "column") else 1.0)
    # The CLS token says which colored shapes are in view, as a caption's text would in CLIP
    # training.
    combined = torch.where(
        truth["shape"] >= 0,
        truth["shape"] * len(COLOR_NAMES) + truth["color"],
        len(SHAPES) * len(COLOR_NAMES),
    )
    present = torch.zeros(len(features), len(SHAPES) * len(COLOR_NAMES) + 1).scatter_(
        1, combined, 1.0
    )[:, :-1]
    logits = heads["present"](features[:, 0]).float()
    return loss + 5 * F.binary_cross_entropy_with_logits(logits, present)


@torch.no_grad()
def shares_right(
    features: torch.Tensor, truth: dict[str, torch.Tensor], heads: nn.ModuleDict
) -> dict[str, torch.Tensor]:
    """Of the patches that have one: how many shapes, colors, characters and bar tops' values are
    named right.
    """
    found = {}
    for name in ("shape", "color", "character", "value"):
        where = truth[name] >= 0
        if where.any():
            found[name] = (
                (heads[name](features[:, 1:][where]).argmax(-1) == truth[name][where])
                .float()
                .mean()
            )
    return found


def new_heads() -> nn.ModuleDict:
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in HEADS.items()})
    heads["present"] = nn.Linear(WIDTH, len(SHAPES) * len(COLOR_NAMES))
    return heads


# ---- training --------------------------------------------------------------------------------------------------------


class Run:
    """One stage of training against the clock: optimizer, schedule, checkpoints, a line every half
    minute.
    """

    def __init__(
        self,
        stage: str,
        work: Path,
        minutes: float,
        groups: list[dict],
        parts: dict[str, nn.Module],
        start: Path | None = None,
    ) -> None:
        self.path, self.limit, self.parts, self.stage = (
            work / f"{stage}.pt",
            minutes * 60,
            parts,
            stage,
        )
        self.groups: list[dict] = []
        self.optimizers = [self._muon(groups), self._adam(groups)]
        self.peaks = [g["lr"] for g in self.groups]
        self.spent, self.steps, self.seen, self.shown, self.saved = 0.0, 0, 0, 0.0, 0.0
        self.means: dict[str, float] = {}
        found = self.path if self.path.exists() else start
        if found:
            state = torch.load(found, weights_only=False)
            for name, part in parts.items():
                part.load_state_dict(state[name])
        if found == self.path:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.groups = [g for o in self.optimizers for g in o.param_groups]
            self.spent, self.steps, self.seen = state["clock"]
        self.last = time.perf_counter()

    def _muon(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Muon for the matrices of the layers: here it learns in half the steps that AdamW
        takes.
        """
        chosen = [
            {
                "params": [p for n, p in g["named"] if ".layers." in f".{n}" and p.ndim == 2],
                "lr": g["lr"],
            }
            for g in groups
        ]
        muon = torch.optim.Muon(
            [g for g in chosen if g["params"]], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        )
        self.groups += muon.param_groups
        return muon

    def _adam(self, groups: list[dict]) -> torch.optim.Optimizer:
        taken = {id(p) for g in self.groups for p in g["params"]}
        rest = [
            {"params": [p for _, p in g["named"] if id(p) not in taken], "lr": g["lr"]}
            for g in groups
        ]
        adam = torch.optim.AdamW(
            [g for g in rest if g["params"]], betas=(0.9, 0.98), weight_decay=0.01
        )
        self.groups += adam.param_groups
        return adam

    @property
    def share(self) -> float:
        return self.spent / self.limit

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "clock": (self.spent, self.steps, self.seen),
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def step(self, loss: torch.Tensor, count: int, **shown: torch.Tensor) -> None:
        warm = min(1.0, (self.steps + 1) / 100)
        factor = warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, self.share))))
        for group, peak in zip(self.groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in self.groups for p in g["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        self.spent, self.last = self.spent + now - self.last, now
        self.steps, self.seen = self.steps + 1, self.seen + count
        for name, value in {"loss": loss, **shown}.items():
            self.means[name] = 0.98 * self.means.get(name, float(value.detach())) + 0.02 * float(
                value.detach()
            )
        if self.spent - self.shown > 30:
            self.shown = self.spent
            line = " ".join(f"{k} {v:.3f}" for k, v in self.means.items())
            print(
                f"{self.stage} {self.spent / 60:5.1f} min, step {self.steps}, {self.seen} "
                f"seen: {line}",
                flush=True,
            )
        if self.spent - self.saved > 180:
            self.saved = self.spent
            self.save()


def named(*parts: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [pair for part in parts for pair in part.named_parameters()]


def train_tower(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """Windows of 6 x 6 patches: local sight, cheaply; from half the time on 12 x 12, small scenes
    with labels, whole pictures.
    """
    model, heads, rng = build_model(tokenizer), new_heads(), Random(options.seed)
    tower = model.model.vision_tower
    run = Run(
        "tower",
        options.work,
        options.minutes,
        [{"named": named(tower, heads), "lr": 2e-3}],
        {"tower": tower, "heads": heads},
        options.start,
    )
    rng.seed(options.seed + run.steps)
    while run.share < 1:
        kind = 3 if run.share < 0.5 and not options.start else run.steps % 3
        if kind == 0:
            pixels, truth, _ = labels(rng, 16)
        else:
            pixels, truth = windows(rng, *((12, 12), (4, GRID), (48, 6))[kind - 1])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            features = tower_features(model, pixels, truth["row"] * GRID + truth["column"])
        features = features.float()
        loss = patch_loss(features, truth, heads)
        run.step(loss, len(pixels), **shares_right(features, truth, heads))
    run.save()


def train_language(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """The language model reads spelled truths: small scenes, some with one kind of question only;
    later mostly whole ones.
    """
    model, spelling, turns, rng = (
        build_model(tokenizer),
        Spelling(tokenizer),
        Turns(tokenizer),
        Random(options.seed),
    )
    language = model.model.language_model
    run = Run(
        "language",
        options.work,
        options.minutes,
        [{"named": named(language, spelling), "lr": 2e-3}],
        {"language": language, "spelling": spelling},
        options.start,
    )
    rng.seed(options.seed + run.steps)
    while run.share < 1:
        late = run.share > 0.4 or options.start
        lesson = (
            WHOLE
            if late and run.steps % 3
            else LESSONS[run.steps // (3 if late else 1) % len(LESSONS)]
        )
        side = lesson.side
        found = [
            scenes.layout(rng, side * PATCH, lesson.max_shapes, lesson.label, lesson.chart)
            for _ in range(lesson.scenes)
        ]
        places = [(rng.randint(0, GRID - side), rng.randint(0, GRID - side)) for _ in found]
        lessons = [
            scenes.questions(s, rng, dense=True, left=at[1] * PATCH)
            for s, at in zip(found, places, strict=True)
        ]
        asked = [
            [one for one in lesson_asks if one[0] in lesson.tasks] or [NOTHING]
            for lesson_asks in lessons
        ]
        truth = stack([truth_of(s, side * PATCH, at) for s, at in zip(found, places, strict=True)])
        batch = turns.batch(asked, side * side)
        visual = spelling(truth, language.get_input_embeddings().weight)
        visual = visual + 0.02 * torch.randn_like(visual)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = answer_loss(model, visual, batch, turns.prefix)
        run.step(loss, len(found))
    run.save()


def train_joint(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """Pictures to answers. The projector first learns the spelling on windows (a tenth of the
    time), then all train.
    """
    model, heads, spelling, turns, rng = (
        build_model(tokenizer),
        new_heads(),
        Spelling(tokenizer),
        Turns(tokenizer),
        Random(options.seed),
    )
    tower, language, projector = (
        model.model.vision_tower,
        model.model.language_model,
        model.model.multi_modal_projector,
    )
    parts = {
        "tower": tower,
        "heads": heads,
        "spelling": spelling,
        "language": language,
        "projector": projector,
    }
    if options.start:
        from_export(options.start, parts)
    elif not (options.work / "joint.pt").exists():
        for stage, names in {
            "tower": ("tower", "heads"),
            "language": ("language", "spelling"),
        }.items():
            state = torch.load(options.work / f"{stage}.pt", weights_only=False)
            for name in names:
                parts[name].load_state_dict(state[name])
    groups = [
        {"named": named(tower, heads), "lr": 8e-4 * options.rate},
        {"named": named(projector), "lr": 1.5e-3 * options.rate},
        {"named": named(language, spelling), "lr": 1e-3 * options.rate},
    ]
    if options.only_language:
        groups = [{"named": named(language), "lr": 7e-4}]
    run = Run("joint", options.work, options.minutes, groups, parts)
    rng.seed(options.seed + 7 + run.steps)
    while run.share < 1:
        whole = run.share > 0.08 or options.start is not None
        if whole and run.steps % 4 == 3 and not options.only_language:
            pixels, truth, asked = labels(rng, 24)
        elif whole:
            found = [scenes.layout(rng) for _ in range(12)]
            pixels, truth = (
                pixels_of([np.asarray(scenes.render(s)) for s in found]),
                stack([truth_of(s) for s in found]),
            )
            asked = [scenes.questions(s, rng) for s in found]
        else:
            pixels, truth = windows(rng, 12, 12)
        if options.only_language:
            run.step(language_loss(model, found, turns, rng, options.bf16), len(found))
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            features = tower_features(model, pixels, truth["row"] * GRID + truth["column"])
            visual = projector(features[:, 1:]).float()
        target = spelling(truth, language.get_input_embeddings().weight).detach()
        weight = torch.where(truth["kind"] > 0, 1.0, 0.1) * (1 + 2 * truth["center"])
        spelled = (((visual - target) ** 2).sum(-1) * weight).sum() / weight.sum()
        seen = patch_loss(features.float(), truth, heads)
        # What is not taught is still measured.
        loss = spelled * options.spelling + 0.3 * seen
        shown = {"spelled": spelled, "seen": seen}
        if whole:
            batch = turns.batch(asked, visual.shape[1])
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                answered = answer_loss(model, visual, batch, turns.prefix)
            loss = loss * 0.5 + answered
            shown["answered"] = answered
        run.step(loss, len(pixels), **shown)
    run.save()


def language_loss(
    model, found: list[scenes.Scene], turns: Turns, rng: Random, bf16: bool
) -> torch.Tensor:
    """Whole pictures through a tower and a projector that stay as they are, with more counting of
    shapes than elsewhere.
    """
    truth = stack([truth_of(s) for s in found])
    asked = []
    for scene in found:
        there = [s.name for s in scene.shapes]
        picks = dict.fromkeys([rng.choice(there), rng.choice(there), rng.choice(SHAPES)])
        more = [
            ("count", f"How many {scenes.plural(pick)} are there?", str(there.count(pick)))
            for pick in picks
        ]
        asked.append(scenes.questions(scene, rng) + more)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            pixels = pixels_of([np.asarray(scenes.render(s)) for s in found])
            features = tower_features(model, pixels, truth["row"] * GRID + truth["column"])
            visual = model.model.multi_modal_projector(features[:, 1:]).float()
        return answer_loss(model, visual, turns.batch(asked, GRID * GRID), turns.prefix)


# ---- scores and files ------------------------------------------------------------------------------------------------


PARTS = {
    "tower": "vision_tower",
    "language": "language_model",
    "projector": "multi_modal_projector",
}


def load_trained(state: dict, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    model = build_model(tokenizer)
    for name, part in PARTS.items():
        getattr(model.model, part).load_state_dict(state[name])
    return model.eval()


def score(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """The exported model, dense, on held-out scenes: the share of questions of each task answered
    exactly right.

    Greedy decoding writes the reference if and only if every next token, given the reference so
    far, is the likeliest: so one pass over a scene scores all its questions, with the same outcome
    as asking them one by one.
    """
    model = LlavaForConditionalGeneration.from_pretrained(
        options.model, dtype=torch.float32, trust_remote_code=False
    ).eval()
    turns, rng = Turns(tokenizer), Random(HELD_OUT_SEED)
    right, asked_of = Counter(), Counter()
    for number in range(options.count):
        scene = scenes.layout(rng)
        asked, truth = scenes.questions(scene, rng), stack([truth_of(scene)])
        batch = turns.batch([asked], GRID * GRID)
        with torch.inference_mode():
            features = tower_features(
                model,
                pixels_of([np.asarray(scenes.render(scene))]),
                truth["row"] * GRID + truth["column"],
            )
            hidden, _ = read_turns(
                model, model.model.multi_modal_projector(features[:, 1:]), batch, turns.prefix
            )
            hits = model.lm_head(hidden).argmax(-1)[0] == batch["labels"][0]
        for turn, (task, _, answer) in enumerate(asked):
            good = hits[(batch["block"][0] == turn + 1) & (batch["labels"][0] >= 0)]
            asked_of[task] += 1
            right[task] += bool(good.all())
            if task == "caption":  # without what follows the shapes: text, chart, background
                shapes = re.split(r"(?:,| and) (?:the text|a bar chart)| on a ", answer)[0]
                asked_of["caption, shapes"] += 1
                right["caption, shapes"] += bool(good[: len(turns.encode(shapes))].all())
        if (number + 1) % 100 == 0:
            print(
                number + 1,
                {
                    task: f"{right[task] / asked_of[task]:.1%} of {asked_of[task]}"
                    for task in sorted(asked_of)
                },
                flush=True,
            )


def export(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """model/ is what users load; teacher.safetensors beside it is what `joint --start model` needs
    to go on from there.
    """
    state = torch.load(options.work / "joint.pt", weights_only=False)
    model = load_trained(state, tokenizer).half()
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_length=None)
    model.save_pretrained(options.model)
    build_processor(tokenizer).save_pretrained(options.model)
    teacher = {
        f"{part}.{name}": value.half()
        for part in ("heads", "spelling")
        for name, value in state[part].items()
    }
    save_file(teacher, options.model.with_name("teacher.safetensors"))


def from_export(folder: Path, parts: dict[str, nn.Module]) -> None:
    """Fill the joint stage's parts from an exported model and the teacher file beside it."""
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    teacher = load_file(folder.with_name("teacher.safetensors"))
    for name, part in PARTS.items():
        parts[name].load_state_dict(getattr(model.model, part).state_dict())
    for name in ("heads", "spelling"):
        parts[name].load_state_dict(
            {
                key.removeprefix(f"{name}."): v.float()
                for key, v in teacher.items()
                if key.startswith(f"{name}.")
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("tower", "language", "joint", "export", "score"))
    parser.add_argument(
        "--work", type=Path, default=HERE / "work", help="checkpoints (not kept in the repository)"
    )
    parser.add_argument("--model", type=Path, default=HERE / "model", help="where export writes")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--count", type=int, default=1000, help="score: held-out scenes")
    parser.add_argument(
        "--start",
        type=Path,
        help="weights to begin from: a checkpoint (tower, language) or an exported folder (joint)",
    )
    parser.add_argument(
        "--only-language", action="store_true", help="joint: tower and projector stay as they are"
    )
    parser.add_argument(
        "--spelling",
        type=float,
        default=1.0,
        help="joint: weight of the loss that teaches visual tokens to lie near the words for what "
        "they show; 0 is without",
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="joint: share of the learning rates"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    stages = {
        "tower": train_tower,
        "language": train_language,
        "joint": train_joint,
        "export": export,
        "score": score,
    }
    stages[options.stage](options, tokenizer)


if __name__ == "__main__":
    main()
