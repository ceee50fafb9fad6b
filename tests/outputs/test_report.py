"""The report: the contents of the page and the summary of a comparison.

Markup in a sample must not become markup of the page.
"""

import re
from html import unescape
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from trimtok_cli.commands.run import closing_line
from trimtok_cli.commands.terminal.tables import summary_table
from trimtok_cli.data import Comparison, Kept, Media, Result, Sample, Seconds, Setting, TokenCounts
from trimtok_cli.errors import MediaError
from trimtok_cli.evaluation.summary import explain, summarize
from trimtok_cli.outputs.manifest import RunSummary
from trimtok_cli.outputs.page import diff, write_page
from trimtok_cli.units import duration, pace

GRID = tuple((x / 4, y / 4, (x + 1) / 4, (y + 1) / 4) for y in range(4) for x in range(4))
DENSE = Seconds(load=0.01, prepare=0.01, encode=0.05, prefill=0.08, decode=0.05)
FAST = Seconds(load=0.01, prepare=0.01, encode=0.05, prune=0.005, prefill=0.02, decode=0.05)


def make(
    *answers,
    sample=None,
    kept=((5, 10),),
    boxes=GRID,
    index=None,
    dense=DENSE,
    fast=FAST,
    generated=(4, 4),
) -> Comparison:
    """A Comparison of the dense answer and the pruned ones; None stands for a failed answer."""
    sample = sample or Sample("one", question="What is it?", answers=("a red cat",))
    results = []
    for i, answer in enumerate(answers):
        alive = kept[min(i, len(kept)) - 1] if i else tuple(range(len(boxes)))
        results.append(
            Result(
                sample,
                sample.question or "",
                answer or "",
                Setting("trimtokenator", str(len(kept[min(i, len(kept)) - 1]))) if i else Setting(),
                TokenCounts(
                    text=9, visual=len(boxes), kept=len(alive), generated=generated[bool(i)]
                ),
                fast if i else dense,
                kept=(Kept(0, alive),) if i else (),
                error="" if answer is not None else "out of memory",
            )
        )
    return Comparison(sample, tuple(results), boxes, (0,) * len(boxes) if index is None else index)


def page(tmp_path: Path, *comparisons: Comparison, **options) -> str:
    path = tmp_path / "out" / "page.html"
    arguments = {
        "title": "a title",
        "facts": {"Model": "tiny"},
        "sentence": "It goes.",
        "load": load,
        **options,
    }
    write_page(path, comparisons, **arguments)
    return path.read_text(encoding="utf-8")


def load(path: Path) -> tuple[Image.Image, Media]:
    if "broken" in path.name:
        raise MediaError(f"{path.name} is not an image")
    width, height = (800, 400) if "wide" in path.name else (40, 40)
    return Image.new("RGB", (width, height), (200, 30, 30)), Media(width, height, "RGB")


def picture(*names: str, **fields) -> Sample:
    return Sample(
        "one", tuple(Path(name) for name in names), names, question="What is it?", **fields
    )


def test_kept_tokens_are_drawn_where_they_are(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("a.png")))
    assert re.findall(r'class="kept" d="([^"]*)"', html) == ["M10 10H20V20H10zM20 20H30V30H20z"]
    assert html.count('d="M10 10H20V20H10zM20 20H30V30H20z" fill="#000"') == 1
    assert "16 → 2 visual tokens" in html and "2 of 16 visual tokens kept" in html
    assert html.count('href="data:image/') == 1 and html.count('<use href="#p0-0"/>') == 1


def test_a_large_picture_is_made_smaller_and_its_tokens_with_it(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("wide.png"), kept=((0,),)))
    assert 'viewBox="0 0 640 320"' in html
    assert re.findall(r'class="kept" d="([^"]*)"', html) == ["M0 0H160V80H0z"]


def test_fine_tokens_lie_over_coarse_ones_and_tokens_without_a_place_are_not_drawn(tmp_path):
    boxes = (
        (0.0, 0.0, 0.25, 0.25),
        (0.0, 0.0, 1.0, 0.5),
        (0.0, 0.0, 0.0, 0.0),
        (0.5, 0.5, 1.0, 1.0),
    )
    html = page(tmp_path, make("a", "b", sample=picture("a.png"), boxes=boxes, kept=((0, 1, 2),)))
    assert re.findall(r'class="kept" d="([^"]*)"', html) == ["M0 0H40V20H0zM0 0H10V10H0z"]


def test_two_images_have_their_own_tokens(tmp_path):
    boxes, index = GRID[:2] * 2, (0, 0, 1, 1)
    html = page(
        tmp_path,
        make("a", "b", sample=picture("a.png", "b.png"), boxes=boxes, index=index, kept=((1, 2),)),
    )
    assert re.findall(r'class="kept" d="([^"]*)"', html) == ["M10 0H20V10H10z", "M0 0H10V10H0z"]
    assert "a.png · 1 of 2 kept" in html and "b.png · 1 of 2 kept" in html
    assert len(set(re.findall(r'<mask id="([^"]*)"', html))) == len(re.findall("<mask ", html))


def test_an_image_that_kept_nothing_is_veiled_and_one_that_kept_all_is_not(tmp_path):
    nothing = page(tmp_path, make("a", "b", sample=picture("a.png"), kept=((),)))
    assert nothing.count('class="veil"') == 1
    everything = page(tmp_path, make("a", "b", sample=picture("a.png"), kept=(tuple(range(16)),)))
    assert 'class="veil"' not in everything


def test_dense_is_veiled_where_the_processor_cut_the_image_off(tmp_path):
    middle = tuple((0.25 + box[0] / 2, box[1], 0.25 + box[2] / 2, box[3]) for box in GRID)
    html = page(tmp_path, make("a", sample=picture("a.png"), boxes=middle))
    assert '<path d="M10 0H30V40H10z" fill="#000"/>' in html and 'class="kept"' not in html


def test_text_of_samples_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>\'&'
    sample = Sample(
        evil,
        (Path("broken" + evil), Path(evil)),
        (evil, evil),
        question=evil,
        answers=(evil,),
        extra={evil: evil},
    )
    failed = Result(sample, evil, setting=Setting(evil), error=evil)
    comparison = make(evil, evil + " more", f"less {evil}", sample=sample)
    other = Comparison(sample, (failed, failed))
    html = page(tmp_path, comparison, other, title=evil, facts={evil: evil}, sentence=evil)
    assert html.count("<script>") == html.count("</script>") == 1 and "alert(&#34;x&#34;)" in html
    assert "alert(" not in html[html.index("<script>") :]
    assert unescape(html).count(evil) > 15


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("a.png")))
    assert not re.search(r"https?:|//\w|@import|<link|\ssrc=", re.sub(r"base64,[^\"]*", "", html))
    assert set(re.findall(r'href="(#|data:image/)', html)) == {"#", "data:image/"}
    assert "default-src 'none'" in html


def test_no_comparisons(tmp_path):
    html = page(tmp_path)
    assert "0 samples" in html and "There is nothing to show." in html and "<table>" not in html
    assert (
        summarize([]) == []
        and explain([])
        == "No sample was answered both dense and pruned, so there is nothing to compare."
    )


def test_failures_are_cards(tmp_path):
    everywhere = make(None, None, sample=picture("broken.png"))
    pruned = make("fine", None, sample=picture("a.png"))
    unread = Comparison(Sample("row 7", names=("x.png",), problem="line 7 has no image"), ())
    html = page(tmp_path, everywhere, pruned, unread)
    assert html.count('<article class="card"') == 3 and html.count("Failed: out of memory") == 2
    assert "broken.png is not an image" in html and "Failed: line 7 has no image" in html
    assert html.count('data-disagreement="2.0"') == 3


def test_cards_are_limited_and_the_summary_is_not(tmp_path):
    html = page(tmp_path, *[make("a", "a")] * 5, limit=2)
    assert (
        html.count('<article class="card"') == 2 and "3 more are counted above but left out" in html
    )
    assert "5 of 5" in html


def test_odd_names_and_videos(tmp_path):
    sample = Sample("\udcff", (Path("a\udcff.png"),), video=Path("clip.mp4"), question=None)
    html = page(tmp_path, make("a", "", sample=sample))
    assert "a?.png" in html and "clip.mp4" in html and "(no text)" in html


def test_photos_are_jpeg_and_flat_drawings_png(tmp_path):
    def noise(path):
        return (Image.effect_noise((64, 64), 90).convert("RGB"), Media())

    assert "data:image/jpeg" in page(tmp_path, make("a", sample=picture("a.png")), load=noise)
    assert "data:image/png" in page(tmp_path, make("a", sample=picture("a.png")))


def test_badges_and_marked_words(tmp_path):
    html = page(tmp_path, make("A red cat.", "A blue cat.", "A red cat."))
    assert "A <mark>blue</mark> cat." in html
    assert html.count("≠ differs from dense") == 1 and html.count("= same as dense") == 1
    assert html.count("✓ matches reference") == 2 and html.count("✗ not the reference") == 1


@pytest.mark.parametrize(
    ("dense", "pruned", "pieces"),
    [
        ("a red cat", "a red cat", [("equal", "a red cat")]),
        (
            "a red cat",
            "a blue cat",
            [("equal", "a"), ("equal", " "), ("replace", "blue"), ("equal", " "), ("equal", "cat")],
        ),
        (
            "a red cat",
            "a cat",
            [("equal", "a"), ("equal", " "), ("delete", "red"), ("equal", "cat")],
        ),
        ("a cat", "a cat\nsits", [("equal", "a cat"), ("equal", "\n"), ("insert", "sits")]),
        ("", "yes", [("insert", "yes")]),
        ("yes", "", [("delete", "yes")]),
        ("", "", []),
    ],
)
def test_diff(dense, pruned, pieces):
    assert diff(dense, pruned) == pieces


def test_summarize_counts():
    three = Seconds(encode=0.05, prefill=0.04, decode=0.05)
    comparisons = [
        make("A red cat.", "A red cat.", "a dog"),
        make("A red cat", " A red cat", "a red CAT. ", fast=three, generated=(4, 6)),
        make("blue", "a red cat", None, sample=Sample("two")),
        make(None, "yes", "yes"),
    ]
    dense, first, second = summarize(comparisons)
    assert (dense.label, first.label, second.label) == (
        "dense",
        "trimtokenator@2",
        "trimtokenator@2",
    )
    assert [row.samples for row in (dense, first, second)] == [3, 3, 2]
    assert [row.failed for row in (dense, first, second)] == [1, 1, 2]
    assert [row.same for row in (dense, first, second)] == [3, 2, 0]
    assert [(row.matched, row.referenced) for row in (dense, first, second)] == [
        (2, 2),
        (2, 2),
        (1, 2),
    ]
    assert first.agreement == pytest.approx(2 / 3) and dense.agreement == 1
    assert (first.median.visual, first.median.kept, first.median.generated) == (16, 2, 4)
    assert first.median.seconds.prefill == 0.02 and first.median.total == pytest.approx(0.145)
    assert (
        first.dense.seconds == DENSE
        and first.prefill_speedup == pytest.approx(4)
        and dense.total_speedup == 1
    )
    assert second.median.seconds.prefill == pytest.approx(0.03) and second.median.generated == 5


def test_settings_are_told_apart_by_their_place():
    rows = summarize(
        [make("a", "a", "a", kept=((1, 2, 3), (4,))), make("a", "a", "a", kept=((1,), (4,)))]
    )
    assert [row.label for row in rows] == ["dense", "trimtokenator@3", "trimtokenator@1"]


def test_all_failed_has_rows_without_numbers():
    rows = summarize([make(None, None)])
    assert [(row.label, row.samples, row.failed) for row in rows] == [
        ("dense", 0, 1),
        ("trimtokenator@2", 0, 1),
    ]
    assert rows[1].prefill_speedup is None and rows[1].total_speedup is None
    assert explain(rows).startswith("No sample was answered")


HEAD = "With 2 of 16 visual tokens "


@pytest.mark.parametrize(
    ("fast", "sentence"),
    [
        (
            FAST,
            "prefill is 4.0× faster, the whole sample 1.4× faster: "
            "the vision tower (34 %) and decode (34 %) take as long as before.",
        ),
        (
            Seconds(encode=0.01, prefill=0.01, decode=0.05),
            "prefill is 8.0× faster, the whole sample 2.9× faster: "
            "decode is 71 % of what is left, so shorter answers would gain more.",
        ),
        (
            Seconds(encode=0.05, prefill=0.08, decode=0.05, prune=0.1),
            "prefill is as fast as dense, the whole sample 1.4× slower: pruning takes 100 ms "
            "and prefill saves nothing.",
        ),
        (
            Seconds(load=0.01, prepare=0.01, encode=0.05, prefill=0.04, decode=0.05, prune=0.04),
            "prefill is 2.0× faster, the whole sample as fast as dense: pruning takes 40.0 "
            "ms and prefill saves 40.0 ms.",
        ),
        (
            Seconds(encode=0.05, prefill=0.04, decode=0.2),
            "prefill is 2.0× faster, the whole sample 1.5× slower: "
            "decode takes 200 ms instead of 50.0 ms, for 8 tokens instead of 4.",
        ),
        (
            DENSE,
            "prefill and the whole sample are as fast as dense: prefill is 40 % of what is left.",
        ),
        (
            Seconds(encode=0.05),
            "the whole sample is 4.0× faster: the vision tower (100 %) takes as long as before.",
        ),
        (Seconds(), "1 of 1 answers are identical to dense; the time was not measured."),
    ],
)
def test_explain(fast, sentence):
    assert explain(summarize([make("a", "a", fast=fast, generated=(4, 8))])) == HEAD + sentence


def test_explain_takes_the_setting_that_keeps_fewest_and_dense_alone():
    many = make("a", "a", "a", kept=((1, 2, 3), (4,)))
    assert explain(summarize([many])).startswith("With 1 of 16 visual tokens")
    assert (
        explain(summarize([make("a")]))
        == "Only dense answered: 200 ms a sample, 40 % of it prefill."
    )
    assert explain(summarize([make("a", dense=Seconds())])).startswith(
        "No sample was answered both"
    )


def test_durations_and_paces():
    assert [duration(s) for s in (0, 0.0016, 0.09996, 0.4567, 0.9996, 9.99, 61.26)] == [
        "0.0 ms",
        "1.6 ms",
        "100 ms",
        "457 ms",
        "1.00 s",
        "9.99 s",
        "61.3 s",
    ]
    assert [pace(r) for r in (None, 1.04, 2.0, 0.5)] == [
        "",
        "as fast as dense",
        "2.0× faster",
        "2.0× slower",
    ]


@pytest.mark.parametrize("answers", [("red", None), (None, "red"), (None, None)])
def test_a_setting_without_a_sample_to_compare_shows_no_numbers(answers, tmp_path):
    rows = summarize([make(*answers)])
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(summary_table(rows))
    text = console.export_text()
    lines = [
        line for line in text.splitlines() if line.strip().startswith(("dense", "trimtokenator"))
    ]
    empty = [line for line, row in zip(lines, rows, strict=True) if not row.samples]
    assert empty and all(
        "nothing to compare" in line and not any(map(str.isdigit, line.split(maxsplit=1)[1]))
        for line in empty
    )
    write_page(
        tmp_path / "page.html",
        [make(*answers)],
        title="",
        facts={},
        sentence=explain(rows),
        load_clip=None,
        limit=1,
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "0 of 0" not in page and page.count("nothing to compare</td>") == (
        len(empty) if any(r.samples for r in rows) else 0
    )


@pytest.mark.parametrize(
    ("finishes", "said"),
    [("stop", ""), ("length", "1 answer was"), ("length length stop", "2 answers were")],
)
def test_what_was_cut_off_is_counted_with_both_of_its_causes(finishes, said):
    summary = RunSummary(Setting())
    for finish in finishes.split():
        summary.add(Result(Sample("a"), "?", answer="red", finish=finish))
    line = closing_line(summary, "images")
    assert ("cut off" in line) == bool(said)
    assert not said or line.endswith(
        f"; {said} cut off at --max-new-tokens or where the model's positions end"
    )


def test_loops_are_counted_at_the_end_and_in_the_counts():
    summary = RunSummary(Setting())
    for answer in ("red", "red and " * 40, "blue and " * 40):
        summary.add(Result(Sample("a"), "?", answer=answer, finish="length"))
    summary.add(Result(Sample("a"), "?", error="bad", answer="red and " * 40))
    assert closing_line(summary, "images").endswith("; 2 answers end in a loop")
    counts = summary.counts()["counts"]
    assert counts["cut_off"] == 3 and counts["loops"] == 2
