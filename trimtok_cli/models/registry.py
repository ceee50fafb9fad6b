"""The model families: the Adapter of each `model_type`. A new family is one line here."""

from trimtok_cli.models.adapter import Adapter
from trimtok_cli.models.families.gemma3 import Gemma3
from trimtok_cli.models.families.idefics3 import Idefics3
from trimtok_cli.models.families.internvl import InternVL
from trimtok_cli.models.families.llava import Llava
from trimtok_cli.models.families.llava_next import LlavaNext, LlavaOnevision
from trimtok_cli.models.families.qwen import Qwen2VL, Qwen3VL

ADAPTERS: dict[str, type[Adapter]] = {
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_next_video": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "internvl": InternVL,
    "idefics3": Idefics3,
    "smolvlm": Idefics3,
    "gemma3": Gemma3,
}
