"""CLIP's text tower beside a LLaVA whose vision tower is CLIP's: how relevant each patch is to the
question.

What CDPruner (arXiv 2506.10967) weighs tokens with; LLaVA checkpoints carry only the vision half.
Knows no method.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from trimtok_cli.errors import ModelError
from trimtok_cli.models.broken import Broken
from trimtok_cli.models.checkpoint import TOKENIZERS, check_one_of, read_settings
from trimtok_cli.models.folder import find_folder
from trimtok_cli.models.weight_files import check_weight_files
from trimtok_cli.models.weights import check_weights

SEGMENT = 77  # CLIP's longest text, in tokens

SHORT_ANSWER = "Answer the question using a single word or phrase."  # says nothing of the image


class ClipText:
    """The text half of a CLIP checkpoint, and of its vision half the last normalization and
    projection.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        folder, _ = find_folder(source, "--clip-text")
        with folder.sentences():
            settings = read_settings(folder.path)
            if settings.get("config.json", {}).get("model_type") != "clip":
                raise Broken(
                    "it is no CLIP checkpoint; name one that has the model's own vision tower"
                )
            check_weight_files(folder.path, settings)
            check_one_of(folder.path, TOKENIZERS, f"tokenizer ({TOKENIZERS[0]})")
        clip, info = folder.load(
            "weights",
            CLIPModel.from_pretrained,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        with folder.sentences():
            check_weights(info)
        clip = clip.to(device).eval()
        self.tokenizer = folder.load("tokenizer", AutoTokenizer.from_pretrained)
        self.clip, self.width = clip, clip.config.vision_config.hidden_size

    def relevance(self, features: Tensor, words: str) -> Tensor:
        """(N, F) patch features that enter the projector, and the question -> (N,) float32 mean
        cosine over text segments.

        Neither negated nor scaled. Words on how to answer, as the benchmarks put them behind a
        question (SHORT_ANSWER), are no question: as in CDPruner's published evaluation they are
        left out. CLIP's own marks in it are characters. A long question is cut into segments of 77
        tokens, the last one filled with zeros. Raises ModelError where the tower is not this
        CLIP's.
        """
        if features.shape[-1] != self.width:
            raise ModelError(
                f"--clip-text is {self.width} wide in its vision tower, the model's features "
                f"are {features.shape[-1]}: "
                "both must be the same CLIP."
            )
        words = words.rstrip().removesuffix(SHORT_ANSWER).rstrip() or words
        ids = torch.tensor(
            self.tokenizer(words, split_special_tokens=True, verbose=False).input_ids,
            device=features.device,
        )
        segments = F.pad(ids, (0, -len(ids) % SEGMENT)).reshape(-1, SEGMENT)
        found = self.clip.get_text_features(segments)
        text = F.normalize(getattr(found, "pooler_output", found).float(), dim=-1)
        patches = self.clip.visual_projection(
            self.clip.vision_model.post_layernorm(features.float())
        )
        return (F.normalize(patches, dim=-1) @ text.mT).mean(-1)
