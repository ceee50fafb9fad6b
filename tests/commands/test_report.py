"""trimtok report, and the pictures that compare makes: from files alone, replacing nobody's file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.test_cli import rows, run


@pytest.fixture(scope="module")
def compared(llava_folder, tmp_path_factory):
    """A finished comparison of two pictures and one broken file, with all its files."""
    folder = tmp_path_factory.mktemp("compared")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i, color in enumerate(((200, 30, 30), (30, 200, 30))):
        Image.new("RGB", (48, 40), color).save(pictures / f"p{i}.png")
    (pictures / "p9.png").write_bytes(b"no")
    done = run(
        "compare",
        pictures,
        "-m",
        llava_folder,
        "--methods",
        "trimtokenator,vtw",
        "--keep",
        "9,3",
        "--max-new-tokens",
        3,
        "-o",
        folder / "out",
        "--overlays",
        folder / "overlays",
        "--figure",
        folder / "fig2.png",
        code=3,
    )
    return folder, done


def test_compare_writes_overlays_and_a_figure(compared):
    folder, done = compared
    names = sorted(path.name for path in (folder / "overlays").iterdir())
    assert len(names) == 2 * 4 and names[0] == "00001-p0-1-dense.png"
    assert Image.open(folder / "overlays" / names[-1]).size == (48, 40)
    assert Image.open(folder / "fig2.png").width > 1000
    assert "8 overlays in" in done.stderr and "figure: 2 samples in" in done.stderr


def test_a_method_in_which_keep_has_no_say_is_there_once_and_is_not_the_headline(compared):
    folder, done = compared
    settings = [each["setting"] for each in rows(folder / "out" / "compare.jsonl")[0]["runs"]]
    assert settings == ["dense", "trimtokenator@9", "trimtokenator@3", "vtw@9"]
    assert "With 3 of 36 visual tokens" in done.stderr and "With 0 of" not in done.stderr
    assert "(95 % interval: " in done.stderr


def test_a_report_is_the_page_of_the_run_itself(compared):
    folder, _ = compared
    done = run("report", folder / "out", "-o", "page.html", "--figure", "fig2.png")
    own = (folder / "out" / "compare.html").read_text(encoding="utf-8")
    assert Path("page.html").read_text(encoding="utf-8") == own and "not drawn" not in own
    assert Path("fig2.png").read_bytes() == (folder / "fig2.png").read_bytes()
    assert "page in page.html" in done.stderr and "--keep 9,3" in own
    run("report", folder / "out" / "compare.jsonl")
    (folder / "out" / "report.html").unlink()


def test_a_report_imports_no_torch(compared):
    folder, _ = compared
    code = (
        "import sys\nfrom trimtok_cli.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    asked = [sys.executable, "-c", code, "report", str(folder / "out"), "-o", "light.html", "-q"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0 and Path("light.html").exists(), done.stderr


def test_pictures_that_are_gone_are_said_to_be(compared):
    folder, _ = compared
    shutil.copytree(folder / "out", "moved")
    document = json.loads(Path("moved/run.json").read_text())
    Path("moved/run.json").write_text(json.dumps(document | {"root": str(folder / "nowhere")}))
    run("report", "moved", "-o", "gone.html")
    page = Path("gone.html").read_text()
    assert page.count("No picture") >= 3 and "data:image" not in page and "does not exist" in page
    run("report", "moved", "-o", "found.html", "--image-root", folder / "pictures")
    assert Path("found.html").read_text().count("data:image") == 2


def test_answers_of_several_settings_become_one_page(llava_folder, pictures):
    asked = (pictures[0].parent, "-m", llava_folder, "--max-new-tokens", 2)
    run("caption", *asked, "--method", "dense", "-o", "dense")
    run("caption", *asked, "--keep", 4, "-o", "four")
    run("caption", *asked, "--keep", 9, "--param", "pool=0.9", "-o", "nine", "-n", 2)
    done = run("report", "nine", "dense", "four", "-o", "all.html")
    page = Path("all.html").read_text()
    assert "dense beside trimtokenator@9 pool=0.9, trimtokenator@4 (2 samples)" in page
    assert "36 → 4 visual tokens" in page and page.count("data:image") == 2
    assert "are not in every run and are left out" in done.stderr
    assert "each run at its own time" in page and 'class="veil"' not in page
    assert "not drawn: runs of caption and vqa record how many are kept" in page
    done = run("report", "four", "nine", "-o", "none.html", code=2)
    assert "none of these runs is dense" in done.stderr and not Path("none.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "there.html"), "already there"),
        (("-o", "page.txt"), "ends in .html"),
        (("-o", "folder.html"), "is a folder"),
        (("--figure", "there.png"), "already there"),
        (("--figure", "fig.jpg"), "ends in .png"),
        (("--overlays", "full"), "not empty"),
        (("--overlays", "there.png"), "is a file"),
        (("nowhere",), "is no run"),
    ],
)
def test_nothing_is_replaced_unasked(compared, arguments, said):
    folder, _ = compared
    for name in ("there.html", "there.png"):
        Path(name).write_text("mine")
    Path("folder.html").mkdir()
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    done = run("report", folder / "out", *arguments, code=2)
    assert said in done.stderr
    assert Path("there.html").read_text() == Path("there.png").read_text() == "mine"
    if "-o" in arguments and said == "already there":
        run("report", folder / "out", *arguments, "--overwrite")
        assert "<!doctype html>" in Path("there.html").read_text()


def test_a_figure_is_never_an_input(llava_folder, pictures):
    asked = ("-m", llava_folder, "--keep", 4, "-o", "out", "--overwrite")
    before = pictures[0].read_bytes()
    done = run("compare", pictures[0], *asked, "--figure", pictures[0], code=2)
    assert "is an input of this run" in done.stderr and pictures[0].read_bytes() == before
