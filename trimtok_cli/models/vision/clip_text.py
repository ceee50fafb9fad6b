"""ClipText: CLIP's text tower, which says how relevant each patch is to the question.

CDPruner (arXiv 2506.10967) weighs tokens by this relevance. LLaVA's vision tower is CLIP's, but its
checkpoints lack the text tower. Knows no method.
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

# The benchmarks put this behind a question; it says nothing of the image.
SHORT_ANSWER = "Answer the question using a single word or phrase."


class ClipText:
    """A CLIP checkpoint's text tower, with the last normalization and projection of its patches."""

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
        clip = folder.placed(clip, device)
        self.tokenizer = folder.load("tokenizer", AutoTokenizer.from_pretrained)
        self.clip = clip
        self.width = clip.config.vision_config.hidden_size

    def relevance(self, features: Tensor, words: str) -> Tensor:
        """(N,) float32 cosine of each patch to the question, mean over segments of the question.

        features (N, F): what enters the projector. words: the question; SHORT_ANSWER behind it is
        left out, as in CDPruner's published evaluation. CLIP's own marks in the question are plain
        characters. A long question is cut into segments of 77 tokens, the last one filled with
        zeros. The cosine is neither negated nor scaled. Raises ModelError where the features are
        not of this CLIP.
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
        output = self.clip.get_text_features(segments)
        text = F.normalize(getattr(output, "pooler_output", output).float(), dim=-1)
        patches = self.clip.visual_projection(
            self.clip.vision_model.post_layernorm(features.float())
        )
        return (F.normalize(patches, dim=-1) @ text.mT).mean(-1)
