"""What a script or a notebook touches: images as it has them, names, and how records show."""

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import trimtok_cli
from tests.conftest import picture
from tests.test_walls import ROOT
from trimtok_cli import Ask, Sample, TrimTokenator, answer, answer_all, compare_all
from trimtok_cli.blobs import Held
from trimtok_cli.data import Comparison, Kept, Result, Setting
from trimtok_cli.errors import UsageError
from trimtok_cli.media.images import load_image
from trimtok_cli.pruners.budget import Budget

ASK = Ask(max_new_tokens=6)


def test_paths_strings_and_pillow_images_are_answered_alike(adapter, tmp_path):
    path = tmp_path / "a.png"
    picture(1).save(path)
    pruner = TrimTokenator(keep=9)
    given = [(path,), [str(path)], str(path), path, Image.open(path), (picture(1),)]
    samples = [Sample(i, images=images, question="Why?") for i, images in enumerate(given)]
    results = list(answer_all(adapter, pruner, samples, ASK))
    assert len(results) == 6 and not [result.error for result in results if result.error]
    assert len({(result.answer, result.kept) for result in results}) == 1
    assert results[0].tokens.kept == 9


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "PA", "F", "I;16"]
)
def test_a_pillow_image_is_seen_as_a_file_of_its_pixels_is(mode, tmp_path):
    # From black to white, as the pixels of a float image are stretched to that.
    made = ImageOps.autocontrast(picture(2).convert("L" if mode in ("F", "I;16") else "RGB"))
    image = (
        made.convert(mode) if mode != "I;16" else Image.fromarray(np.array(made, np.uint16) * 257)
    )
    (medium,) = Sample("a", images=image).images
    seen, media = load_image(medium)
    want = (made if mode in ("F", "I;16") else image).convert("RGBA" if mode == "PA" else "RGB")
    off = np.abs(np.asarray(seen, int) - np.asarray(want.convert("RGB"), int)).max()
    assert isinstance(medium, Held) and seen.size == image.size
    assert off <= (3 if mode in ("CMYK", "YCbCr") else 1), (mode, off, media)


def test_a_pillow_image_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3, 60, 40).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    opened = Image.open(tmp_path / "turned.jpg")
    (medium,) = Sample("a", images=opened).images
    assert medium.name == "turned.jpg"
    seen, media = load_image(medium)
    assert np.array_equal(seen, load_image(tmp_path / "turned.jpg")[0])
    assert seen.size == (40, 60) and media.exif_orientation == 6
    (upright,) = Sample("a", images=ImageOps.exif_transpose(opened)).images
    assert np.array_equal(load_image(upright)[0], seen)


def test_a_video_may_be_a_string_and_anything_else_is_refused():
    assert Sample("a", video="clip.mp4").video == Path("clip.mp4")
    for wrong in (np.zeros((3, 3)), b"bytes", 7, [None]):
        with pytest.raises(UsageError, match="an image is a path or a Pillow image"):
            Sample("a", images=wrong)


def test_keep_may_have_every_form_of_the_option():
    forms = {64: Budget(tokens=64), "64": Budget(tokens=64), 0.11: Budget(share=0.11)}
    forms |= {"11%": Budget(share=0.11), "all": Budget(), Budget(tokens=3): Budget(tokens=3)}
    assert {form: TrimTokenator(keep=form).keep for form in forms} == forms
    with pytest.raises(ValueError, match="keep must be a count"):
        TrimTokenator(keep="few")


def test_records_show_in_one_line(adapter, tmp_path):
    picture(1).save(tmp_path / "a.png")
    sample = Sample("a", images=tmp_path / "a.png", question="Why?")
    (result,) = answer(adapter, TrimTokenator(keep=9), [sample], ASK)
    assert repr(result) == f"<trimtokenator@9 on 'a', 36 → 9 visual tokens: {result.answer!r}>"
    assert repr(result.kept) == "(<9 visual tokens from layer 0 on>,)"
    assert re.fullmatch(
        r"<LlavaForConditionalGeneration of \S+ on cpu, torch.float32, 4 layers>", repr(adapter)
    )
    failed = Result(sample, "Why?", error="no such file")
    assert repr(failed).endswith(": failed: no such file>")
    assert repr(Kept(2, ())) == "<0 visual tokens from layer 2 on>"


def test_a_comparison_is_a_table_in_a_notebook_and_its_texts_are_no_markup(adapter, tmp_path):
    picture(1).save(tmp_path / "a.png")
    sample = Sample("<b>a", images=tmp_path / "a.png", question="Why <script>?")
    (found,) = compare_all(adapter, [None, TrimTokenator(keep=9)], [sample], ASK)
    assert repr(found) == "<'<b>a' answered by dense, trimtokenator@9>"
    hostile = Result(sample, "Why <script>?", "<img src=x>", Setting(), error="")
    shown = Comparison(sample, (*found.results, hostile))._repr_html_()
    assert shown.count("<tr>") == 4 and "36 → 9" in shown and "&lt;img src=x&gt;" in shown
    assert not re.search("<script|<img|<b>", shown)
    assert "<table>" in Comparison(sample, ())._repr_html_()


def test_tab_finds_the_public_names():
    assert {"TrimTokenator", "answer", "load_model", "pruned"} < {*dir(trimtok_cli)}


def import_trimtok(folder: Path) -> str:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import trimtok, trimtok_cli\n"
        "from trimtok import Sample, TrimtokError\n"
        "assert Sample is trimtok_cli.Sample and 'torch' not in sys.modules\n"
        "assert set(dir(trimtok)) == set(trimtok_cli.__all__) and not hasattr(trimtok, 'nothing')\n"
        "from trimtok import *\n"
        "assert TrimTokenator is trimtok_cli.TrimTokenator\n"
        "print(trimtok.__version__, trimtok.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_trimtok_is_one_small_module_and_no_second_package(tmp_path):
    shutil.copy(ROOT / "trimtok_cli" / "import_name.py", tmp_path / "trimtok.py")
    said = import_trimtok(tmp_path)
    assert said.split() == [trimtok_cli.__version__, str(tmp_path / "trimtok.py")]


@pytest.mark.skipif(
    not (find_spec("hatchling") and find_spec("editables")),
    reason="the packages that build wheels are not installed",
)
@pytest.mark.parametrize("editable", [False, True])
def test_a_wheel_brings_import_trimtok(tmp_path, editable):
    from hatchling.builders.wheel import WheelBuilder

    version = "editable" if editable else "standard"
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=[version])
    with zipfile.ZipFile(built) as wheel:
        assert [name for name in wheel.namelist() if name.startswith("trimtok.")] == ["trimtok.py"]
        (tmp_path / "trimtok.py").write_bytes(wheel.read("trimtok.py"))
    assert str(tmp_path) in import_trimtok(tmp_path)
