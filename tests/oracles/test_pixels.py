"""Pixels stay bytes up to the model's device; the tower then reads the processor's own floats."""

import pickle

import pytest
import torch
import torchvision
from packaging.version import Version
from PIL import Image
from transformers import LlavaImageProcessor

from tests.conftest import picture
from tests.oracles.test_families import QUESTION, clip_of, library_inputs
from tests.support import tiny
from tests.support.families import FAMILIES, VIDEO_FAMILIES
from trimtok_cli.models.loading import load_model

KINDS = {"llava": tiny.llava, "siglip": tiny.siglip, "pixtral": tiny.pixtral, **FAMILIES}
FLAT = [
    Image.new("RGB", (70, 50), color) for color in ((0, 0, 0), (128, 128, 128), (255, 255, 255))
]
IMAGES = {
    "wide": [picture(1, 150, 60)],
    "tall": [picture(2, 40, 170)],
    "tiny": [picture(3, 5, 7)],
    "grey": [picture(4, 90, 90).convert("L")],
    "black": FLAT[:1],
    "two": [picture(5, 100, 80), picture(6, 60, 150)],
    "several": [*FLAT, picture(7, 31, 33)],
}


@pytest.fixture(scope="module", params=KINDS)
def adapter(request, tmp_path_factory):
    return load_model(
        str(KINDS[request.param](tmp_path_factory.mktemp("kinds") / request.param)), device="cpu"
    )


def tower(adapter):
    inner = adapter.model.model
    return next(
        getattr(inner, name)
        for name in ("vision_tower", "vision_model", "visual")
        if hasattr(inner, name)
    )


@torch.inference_mode()
def seen_by_tower(adapter, call) -> list[torch.Tensor]:
    """The pixels of every pass through the tower while `call` runs."""
    seen: list[torch.Tensor] = []

    def look(module, args, kwargs):
        given = [*args, *kwargs.values()]
        seen.append(
            next(
                each
                for each in given
                if isinstance(each, torch.Tensor) and each.is_floating_point()
            ).clone()
        )

    hook = tower(adapter).register_forward_pre_hook(look, with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return seen


def check(adapter, images, clip=None, bytes_cross: bool = True) -> None:
    inputs = adapter.prepare(images, QUESTION, clip=clip)
    if not hasattr(adapter.processor.image_processor, "rescale_and_normalize"):
        # Pillow's backend, which makes its own floats. The library takes it for Lanczos where
        # torchvision is older.
        assert not bytes_cross or Version(torchvision.__version__) < Version("0.27")
        bytes_cross = False
    kinds = {
        tensor.dtype for name, tensor in inputs.tensors.items() if name.startswith("pixel_values")
    }
    assert kinds == {torch.uint8 if bytes_cross else torch.float32}
    want = seen_by_tower(
        adapter, lambda: adapter.model.model(**library_inputs(adapter, images, clip))
    )
    got = seen_by_tower(adapter, lambda: adapter.encode_many([inputs]))
    assert len(got) == len(want) > 0
    for ours, library in zip(got, want, strict=True):
        assert ours.dtype == library.dtype == torch.float32 and torch.equal(ours, library)


@pytest.mark.parametrize("images", IMAGES)
def test_images_enter_the_tower_bit_for_bit_as_the_processor_gives_them(adapter, images):
    check(adapter, IMAGES[images])


def test_a_preprocessor_is_the_same_behind_a_border(adapter):
    copy = pickle.loads(pickle.dumps(adapter.preprocessor))
    here, there = (each.prepare(IMAGES["two"], QUESTION) for each in (adapter.preprocessor, copy))
    assert list(here.tensors) == list(there.tensors) and (here.text, here.visuals) == (
        there.text,
        there.visuals,
    )
    assert all(torch.equal(tensor, there.tensors[name]) for name, tensor in here.tensors.items())


def test_which_families_take_a_video(adapter):
    videos = getattr(adapter.processor, "video_processor", None)
    assert (
        (videos is not None)
        == adapter.preprocessor.has_video
        == (adapter.model.config.model_type in VIDEO_FAMILIES)
    )


@pytest.mark.parametrize("adapter", sorted(VIDEO_FAMILIES), indirect=True)
def test_videos_do_too_alone_and_beside_an_image(adapter):
    for count in (1, 4):
        check(adapter, [], clip_of(count))
    if adapter.preprocessor.mixes:
        check(adapter, [picture(3, 100, 80)], clip_of(3))


@pytest.mark.parametrize("adapter", sorted(VIDEO_FAMILIES), indirect=True)
def test_a_video_processor_with_numbers_of_its_own(adapter):
    """Where both kinds lie in one tensor the processors then do it themselves."""
    videos = adapter.processor.video_processor
    before, videos.image_mean = videos.image_mean, [0.1, 0.2, 0.3]
    try:
        apart = adapter.model.config.model_type not in ("internvl", "smolvlm")
        check(adapter, IMAGES["two"], bytes_cross=apart)
        check(adapter, [], clip_of(2), bytes_cross=apart)
        if adapter.preprocessor.mixes:
            check(adapter, IMAGES["wide"], clip_of(2), bytes_cross=apart)
    finally:
        videos.image_mean = before


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"image_mean": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5},
    ],
)
def test_other_settings_of_the_processor(adapter, settings):
    parts = [
        part
        for part in (
            adapter.processor.image_processor,
            getattr(adapter.processor, "video_processor", None),
        )
        if part
    ]
    before = [{name: getattr(part, name) for name in settings} for part in parts]
    try:
        for part in parts:
            vars(part).update(settings)
        check(adapter, IMAGES["two"])
    finally:
        for part, values in zip(parts, before, strict=True):
            vars(part).update(values)


def test_an_image_processor_that_pads_with_its_mean_color(tmp_path):
    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    adapter.processor.image_processor = LlavaImageProcessor(
        do_pad=True, size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}
    )
    check(adapter, IMAGES["two"])


def test_pillows_backend_keeps_its_own_arithmetic(tmp_path):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    adapter = load_model(str(tiny.llava(tmp_path / "m")), device="cpu")
    adapter.processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}
    )
    check(adapter, IMAGES["two"], bytes_cross=False)
