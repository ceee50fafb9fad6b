"""One folder for each short name of the catalogue, with the published checkpoint's settings.

The keys of config.json, generation_config.json and the processors' files are the published ones, in
their layout and with their odd values. Sizes are small, weights are random, and templates are our own
words with the published roles and marks.
"""

from collections.abc import Callable
from pathlib import Path

from tests.support.published.gemma import gemma3
from tests.support.published.idefics import idefics
from tests.support.published.internvl import internvl3
from tests.support.published.llava import joycaption, llava_15
from tests.support.published.llava_next import llava_16, llava_next_video, onevision
from tests.support.published.qwen import qwen2, qwen3

PUBLISHED: dict[str, Callable[[Path], Path]] = {
    "llava-1.5-7b": llava_15,
    "llava-1.5-13b": lambda folder: llava_15(folder, old=True),
    "joycaption-beta-one": joycaption,
    "llava-next-7b": llava_16,
    "llava-next-13b": llava_16,
    "llava-next-mistral-7b": lambda folder: llava_16(folder, mistral=True),
    "llava-next-video-7b": llava_next_video,
    "llava-onevision-0.5b": lambda folder: onevision(folder, tied=True),
    "llava-onevision-7b": lambda folder: onevision(folder, tied=False),
    "qwen2-vl-2b": lambda folder: qwen2(folder, "qwen2_vl", tied=True),
    "qwen2-vl-7b": lambda folder: qwen2(folder, "qwen2_vl", tied=False),
    "qwen2.5-vl-3b": lambda folder: qwen2(folder, "qwen2_5_vl", tied=True),
    "qwen2.5-vl-7b": lambda folder: qwen2(folder, "qwen2_5_vl", tied=False),
    "qwen3-vl-2b": lambda folder: qwen3(folder, tied=True),
    "qwen3-vl-4b": lambda folder: qwen3(folder, tied=True),
    "qwen3-vl-8b": lambda folder: qwen3(folder, tied=False),
    "internvl3-1b": internvl3,
    "internvl3-8b": internvl3,
    "idefics3-8b": lambda folder: idefics(folder, processor="Idefics3", family="idefics3", scale=2),
    "smolvlm-2.2b": lambda folder: idefics(
        folder, processor="Idefics3", family="idefics3", scale=3
    ),
    "smolvlm2-500m": lambda folder: idefics(
        folder, processor="SmolVLM", family="smolvlm", scale=4, videos=True
    ),
    "smolvlm2-2.2b": lambda folder: idefics(
        folder, processor="SmolVLM", family="smolvlm", scale=3, videos=True
    ),
    "gemma-3-4b": gemma3,
    "gemma-3-12b": gemma3,
}
