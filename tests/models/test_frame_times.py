"""The times of a video's frames reach the prompt exactly.

They are written as the library writes frame numbers at a rate.
"""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.video_utils import VideoMetadata

from tests.support.families import FAMILIES
from trimtok_cli.media.frames import Clip
from trimtok_cli.models.preprocessor import Preprocessor
from trimtok_cli.models.registry import ADAPTERS

FRAME = Image.new("RGB", (56, 56))
RATES = [
    1,
    2,
    10,
    24,
    25,
    30,
    50,
    60,
    23.976,
    29.97,
    59.94,
    24000 / 1001,
    30000 / 1001,
    1 / 3,
    12.5,
    7.3,
]


def clip_at(times) -> Clip:
    return Clip(
        (FRAME,) * len(times), tuple(times), times[-1] + 1.0, 24.0, "pyav", 56, 56, 999, 0, ()
    )


@pytest.fixture(scope="module", params=["smolvlm", "qwen3_vl"])
def found(request, tmp_path_factory):
    from transformers import AutoProcessor

    folder = FAMILIES[request.param](tmp_path_factory.mktemp("times") / request.param)
    return ADAPTERS[request.param].preprocessing(
        AutoProcessor.from_pretrained(folder), request.param
    )


@settings(max_examples=100, deadline=None)
@given(
    rate=st.sampled_from(RATES) | st.floats(0.05, 240),
    numbers=st.sets(st.integers(0, 100_000), min_size=1, max_size=9),
)
def test_times_are_those_of_the_frames(rate, numbers):
    times = [number / rate for number in sorted(numbers)]
    facts = VideoMetadata(**Preprocessor.video_inputs(None, clip_at(times))["video_metadata"][0])
    whole = VideoMetadata(
        total_num_frames=100_001, fps=rate, frames_indices=sorted(numbers), duration=times[-1] + 1.0
    )
    assert facts.timestamps == whole.timestamps == times
    gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[-1] + 1.0
    assert facts.sampled_fps == pytest.approx(1 / gap, rel=1e-12)


@pytest.mark.parametrize("rate", RATES)
def test_the_prompt_shows_them_as_the_library_does(found, rate):
    """Sampled at even distances, as they are, and anywhere."""
    processor = found.processor
    for numbers in (
        [0, 30, 60, 90],
        [7, 8],
        [5],
        [1, 11, 500],
        [3, 33, 63, 93, 123, 153],
        [2, 1800, 3600 * 30],
    ):
        times = [number / rate for number in numbers]
        clip = clip_at(times)
        prepared, given = (
            found.prepare([], "?", clip=clip),
            found.video_inputs(clip) | {"return_tensors": "pt"},
        )
        facts = {
            "fps": rate,
            "frames_indices": list(numbers),
            "total_num_frames": 100_001,
            "duration": clip.duration,
        }
        if len(numbers) == 1 and "qwen" in found.name:
            facts["frames_indices"] *= 2
        theirs = processor(text=[prepared.text], **given | {"video_metadata": [facts]})[
            "input_ids"
        ][0]
        assert prepared.input_ids.tolist() == theirs.tolist(), (numbers, rate)


def test_a_frame_at_three_seconds_is_at_three_seconds(tmp_path):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(FAMILIES["smolvlm"](tmp_path / "smolvlm"))
    found = ADAPTERS["smolvlm"].preprocessing(processor, "smolvlm")
    for step in (
        Fraction(1, 10),
        Fraction(3, 10),
        Fraction(3, 7),
        Fraction(1),
        Fraction(1001, 30000),
    ):
        times = [float(number * step * (3 / (step * 3))) for number in range(1, 4)]
        said = processor.tokenizer.decode(found.prepare([], "?", clip=clip_at(times)).input_ids)
        assert (
            all(f"{int(time) // 60:02d}:{int(time) % 60:02d}" in said for time in times)
            and "00:03" in said
        )
