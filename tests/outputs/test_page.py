"""The page of a comparison, as HTML: what it shows, and that foreign text stays text.

tests/outputs/test_page_in_browser.py looks at it in a browser.
"""

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tests.support.comparisons import FAST, GRID, load, make, picture
from trimtok_cli.commands.terminal.tables import SampleTable, SummaryTable
from trimtok_cli.data import (
    Comparison,
    Kept,
    Media,
    Result,
    Sample,
    Seconds,
    Setting,
    TokenCounts,
)
from trimtok_cli.evaluation.headline import explain
from trimtok_cli.evaluation.summary import summarize
from trimtok_cli.outputs.page.facts import command_line, details_of, facts_of
from trimtok_cli.outputs.page.plots import plots
from trimtok_cli.outputs.page.write import PANES, cards_shown, write_page
from trimtok_cli.outputs.pictures import Loader

EVIL = (
    '</script><script>alert("x")</script>\'&<img src=x onerror=alert(1)>',
    "</textarea></title></style>--><!--",
    "\u202egnp.exe\u2066 עברית والعربية",
    "w" * 5000,
    "one\ntwo\r\nthree\ttab\u2028line",
    "nul \0 bell \x07 esc \x1b[31m",
    "{{ 7 * 7 }} {% raw %}",
    '=HYPERLINK("x"),"quoted"\n;',
    "\udcff half \ud800",
    "",
)


def page(tmp_path: Path, *comparisons: Comparison, read=load, **options) -> str:
    path = tmp_path / "out" / "page.html"
    arguments = {"model": "tiny", "facts": {"Model": "tiny"}, "details": {}, **options}
    write_page(path, comparisons, loader=Loader(read), **arguments)
    return path.read_text(encoding="utf-8")


class Checked(HTMLParser):
    """A page read strictly: every element that is opened is closed, in order; ids are unique."""

    VOID = ("meta", "input", "br", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.refs: list[str] = []
        self.handlers: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.refs += [value for name, value in attrs if name in ("href", "src")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.text["script"][0])


def kept_paths(html: str) -> list[str]:
    """The path data of the tokens that are outlined."""
    outlined = re.findall(r'<use class="kept" href="#([^"]*)"/>', html)
    return [re.search(rf'<path id="{name}" d="([^"]*)"', html)[1] for name in outlined]


def test_kept_tokens_are_drawn_where_they_are(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("a.png")))
    assert kept_paths(html) == ["M10 10H20V20H10zM20 20H30V30H20z"]
    assert "16 → 2 visual tokens" in html and "2 of 16 visual tokens kept" in html


def test_a_picture_is_in_the_page_once_for_all_questions_and_settings(tmp_path):
    many = [make("a", "b", "c", sample=picture("a.png")) for _ in range(5)]
    html = page(tmp_path, *many, make("a", "b", sample=picture("b.png")))
    assert html.count("data:image/") == 2
    assert html.count('<use href="#picture-1"/>') == 15 and html.count('"#picture-2"') == 2


def test_a_large_picture_is_made_smaller_and_its_tokens_with_it(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("wide.png"), kept=((0,),)))
    assert 'viewBox="0 0 640 320"' in html and kept_paths(html) == ["M0 0H160V80H0z"]


def test_fine_tokens_lie_over_coarse_ones_and_tokens_without_a_place_are_not_drawn(tmp_path):
    boxes = (
        (0.0, 0.0, 0.25, 0.25),
        (0.0, 0.0, 1.0, 0.5),
        (0.0, 0.0, 0.0, 0.0),
        (0.5, 0.5, 1.0, 1.0),
    )
    html = page(tmp_path, make("a", "b", sample=picture("a.png"), boxes=boxes, kept=((0, 1, 2),)))
    assert kept_paths(html) == ["M0 0H40V20H0zM0 0H10V10H0z"]


def test_two_images_have_their_own_tokens(tmp_path):
    boxes, index = GRID[:2] * 2, (0, 0, 1, 1)
    sample = picture("a.png", "b.png")
    html = page(tmp_path, make("a", "b", sample=sample, boxes=boxes, index=index, kept=((1, 2),)))
    assert kept_paths(html) == ["M10 0H20V10H10z", "M0 0H10V10H0z"]
    assert "a.png · 1 of 2 kept" in html and "b.png · 1 of 2 kept" in html


def test_every_stage_has_its_tokens_and_the_last_one_is_shown(tmp_path):
    sample = picture("a.png")
    stages = (Kept(0, (0, 1, 2)), Kept(3, (1, 2)), Kept(5, (2,)))
    counts = TokenCounts(9, 16, 1, 2.0, 4, ((0, 3), (3, 2), (5, 1)))
    result = Result(sample, "?", "b", Setting("steps", "1"), counts, FAST, kept=stages)
    html = page(
        tmp_path, Comparison(sample, (*make("a", sample=sample).results, result), GRID, (0,) * 16)
    )
    groups = re.findall(r'<g class="(overlay[ a-z]*)" data-layer="(\d)">', html)
    assert groups == [("overlay off", "0"), ("overlay off", "3"), ("overlay", "5")]
    assert kept_paths(html)[-1] == "M20 0H30V10H20z"
    assert "2 from layer 3, 1 from layer 5" in html and '<option value="3">layer 3</option>' in html
    assert "layer mean 2" in html


def test_an_image_that_kept_nothing_is_veiled_and_one_that_kept_all_is_not(tmp_path):
    nothing = page(tmp_path, make("a", "b", sample=picture("a.png"), kept=((),)))
    assert nothing.count('class="veil"') == 1
    everything = page(tmp_path, make("a", "b", sample=picture("a.png"), kept=(tuple(range(16)),)))
    assert 'class="veil"' not in everything


def test_dense_is_veiled_where_the_processor_cut_the_image_off(tmp_path):
    middle = tuple((0.25 + box[0] / 2, box[1], 0.25 + box[2] / 2, box[3]) for box in GRID)
    html = page(tmp_path, make("a", sample=picture("a.png"), boxes=middle))
    assert 'd="M10 0H30V40H10z"' in html and 'class="kept"' not in html


@pytest.mark.parametrize("evil", EVIL)
def test_text_of_samples_stays_text(tmp_path, evil):
    sample = Sample(
        evil,
        (Path("broken" + evil.replace("\0", "")), Path(evil.replace("\0", "") or "x")),
        (evil, evil),
        question=evil,
        answers=(evil,),
        extra={evil or "x": evil, "list": [evil], "nan": float("nan"), "big": 10**30},
    )
    failed = Result(sample, evil, setting=Setting(evil), error=evil or "no")
    comparison = make(evil, evil + " more", f"less {evil}", sample=sample)
    told = page(
        tmp_path,
        comparison,
        Comparison(sample, (failed, failed)),
        model=evil,
        facts={evil: evil},
        details={evil: evil},
    )
    plain = Checked(page(tmp_path, make("a", "b", "c"), make("a", "b", "c")))
    checked = Checked(told)
    assert checked.tags.count("script") == plain.tags.count("script") == 2
    assert not checked.handlers and "\0" not in told
    assert len(set(checked.ids)) == len(checked.ids)
    first = checked.data["samples"][0]
    assert first["question"] == evil and first["answers"][1]["answer"] == evil + " more"
    assert first["columns"]["nan"] == "nan" and isinstance(first["columns"]["big"], str)
    clean = evil.replace("\0", "�").encode("utf-8", "replace").decode()
    if clean.split():
        words = " ".join(clean.split())
        assert " ".join(unescape(told).split()).count(words) > 5


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_gets_no_commands_and_no_broken_table(evil, width):
    sample = Sample(evil, names=(evil,), question=evil, answers=(evil,))
    console = Console(width=width, record=True, quiet=False)
    with console.capture() as captured:
        console.print(SampleTable(make(evil, evil + " more", sample=sample)))
        console.print(SummaryTable(summarize([make(evil, "b", sample=sample)])))
    said = captured.get()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said)
    assert "trimtokenator@2" in said.replace("\n", "") or width == 40


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160])
def test_the_summary_is_whole_at_every_width(width):
    rows = summarize([make("a red cat", "a red cat", "b", kept=((1, 2), (3,)))] * 40)
    console = Console(width=width)
    with console.capture() as captured:
        console.print(SummaryTable(rows))
    lines = captured.get().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= width and "…" not in captured.get()
    for row in rows:
        (line,) = [line for line in lines if line.split()[:1] == [row.label]]
        assert f" {row.median.kept} " in line + " "
    assert ("prefill" in lines[1]) == (width >= 80) and ("decode" in lines[1]) == (width >= 100)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_samples_table_keeps_its_settings_and_answers_whole(width):
    answer = "A red circle and a blue cross on a gray background."
    console = Console(width=width)
    with console.capture() as captured:
        console.print(SampleTable(make(answer, answer, sample=picture("a.png"))))
    lines = captured.get().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= width and "…" not in captured.get()
    assert any(line.startswith("trimtokenator@2 ") for line in lines)
    assert "background." in captured.get()
    assert "total" in lines[1] and ("prefill" in lines[1]) == (width >= 80)


def test_nothing_is_loaded_from_elsewhere_and_only_the_pages_own_script_may_run(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("a.png")))
    checked = Checked(html)
    assert all(re.match(r"#|data:image/", each) for each in checked.refs) and checked.refs
    assert not re.search(r"https?:|@import|url\((?!#)|<link", re.sub(r"base64,[^\"]*", "", html))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    script = checked.text["script"][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_link_within_the_page_leads_somewhere(tmp_path):
    checked = Checked(page(tmp_path, make("a", "b", sample=picture("a.png")), make("a", "c")))
    inner = [each[1:] for each in checked.refs if each.startswith("#")]
    assert "sample-2" in inner and {*inner} <= {*checked.ids}


def test_headings_and_captions_are_there(tmp_path):
    html = page(tmp_path, make("a", "b", sample=picture("a.png")))
    checked = Checked(html)
    assert [checked.tags.count(tag) for tag in ("h1", "h3", "h4")] == [1, 1, 2]
    assert checked.tags.count("table") == checked.tags.count("caption") == 1
    assert "<title>tiny: dense beside trimtokenator@2 (1 sample)</title>" in html


def test_no_comparisons(tmp_path):
    html = page(tmp_path)
    assert "0 samples" in html and "There is nothing to show." in html and "<table>" not in html
    assert summarize([]) == []
    nothing = "No sample was answered both dense and pruned, so there is nothing to compare."
    assert explain([]) == nothing and nothing in html
    Checked(html)


def test_failures_are_cards(tmp_path):
    everywhere = make(None, None, sample=picture("broken.png"))
    pruned = make("fine", None, sample=picture("a.png"))
    unread = Comparison(Sample("row 7", names=("x.png",), problem="line 7 has no image"), ())
    html = page(tmp_path, everywhere, pruned, unread)
    assert html.count('<article class="card"') == 3 and html.count("Failed: out of memory") == 2
    assert "broken.png is not an image" in html and "Failed: line 7 has no image" in html
    samples = Checked(html).data["samples"]
    assert [[answer.get("error") for answer in each["answers"]] for each in samples] == [
        ["out of memory"] * 2,
        [None, "out of memory"],
        [],
    ]


def test_cards_are_limited_and_the_summary_is_not(tmp_path):
    html = page(tmp_path, *[make("a", "a")] * 5, limit=2)
    assert html.count('<article class="card"') == 2
    assert "3 more are counted above but left out" in html and "5 of 5" in html
    assert cards_shown(2) == 200 and cards_shown(16) * 16 <= PANES and cards_shown(10_000) == 1


def test_odd_names_and_videos(tmp_path):
    sample = Sample("\udcff", (Path("a\udcff.png"),), video=Path("clip.mp4"), question=None)
    html = page(tmp_path, make("a", "", sample=sample))
    assert "a?.png" in html and "clip.mp4" in html and "(no text)" in html


def test_photos_are_jpeg_and_flat_drawings_png(tmp_path):
    def noise(path):
        return (Image.effect_noise((64, 64), 90).convert("RGB"), Media())

    assert "data:image/jpeg" in page(tmp_path, make("a", sample=picture("a.png")), read=noise)
    assert "data:image/png" in page(tmp_path, make("a", sample=picture("a.png")))


def test_badges_and_denses_words(tmp_path):
    html = page(tmp_path, make("A red cat.", "A blue cat.", "A red cat.", "a red cat"))
    assert "<del>red</del>" in html and "<ins>blue</ins>" in html
    assert html.count("≠ differs from dense") == 1 and html.count("= same as dense") == 1
    assert html.count("≠ differs in case or signs") == 1
    assert html.count("✓ matches reference") == 3 and html.count("✗ not the reference") == 1


def test_times_that_settings_share_are_said_once(tmp_path):
    together = page(tmp_path, make("a", "b"))
    assert together.count("encode 50.0 ms</span>") == 1 + 2  # the card, and two rows of the summary
    apart = page(tmp_path, make("a", "b", fast=Seconds(load=0.5, encode=0.07, prefill=0.01)))
    assert "for all settings" in together and "for all settings" not in apart


def test_the_data_are_those_of_the_answers(tmp_path):
    sample = picture("a.png", answers=("b",), extra={"task": "color"})
    html = page(tmp_path, make("a", "b", sample=sample))
    data = Checked(html).data
    assert [row["setting"] for row in data["summary"]] == ["dense", "trimtokenator@2"]
    (one,) = data["samples"]
    assert (one["id"], one["images"], one["references"]) == ("one", ["a.png"], ["b"])
    assert one["columns"] == {"task": "color"}
    dense, pruned = one["answers"]
    assert (pruned["same"], pruned["matched"], dense["matched"]) == (False, True, False)
    assert (pruned["kept"], pruned["layer_mean"], pruned["prefill_ms"]) == (2, 2.0, 20.0)


@pytest.mark.parametrize("answers", [("red", None), (None, "red"), (None, None)])
def test_a_setting_without_a_sample_to_compare_shows_no_numbers(answers, tmp_path):
    rows = summarize([make(*answers)])
    console = Console(width=120)
    with console.capture() as captured:
        console.print(SummaryTable(rows))
    lines = [
        line
        for line in captured.get().splitlines()
        if line.strip().startswith(("dense", "trimtokenator"))
    ]
    empty = [line for line, row in zip(lines, rows, strict=True) if not row.samples]
    assert empty and all(
        "nothing to compare" in line and not any(map(str.isdigit, line.split(maxsplit=1)[1]))
        for line in empty
    )
    html = page(tmp_path, make(*answers))
    shown = len(empty) if any(row.samples for row in rows) else 0
    assert "0 of 0" not in html and html.count("nothing to compare</td>") == shown


def test_the_plot_joins_the_settings_that_none_beats():
    slow = Seconds(load=0.01, prepare=0.01, encode=0.05, prefill=0.3, decode=0.05)
    comparison = make("a b", "a b", "a c", "x y", kept=((1, 2, 3), (4, 5), (6, 7)), fast=slow)
    found = plots(summarize([comparison]))
    assert [plot.across for plot in found] == [
        "visual tokens, mean over layers",
        "time of a sample",
    ] * 2
    tokens, times = found[2:]
    assert [point.front for point in tokens.points] == [False, True, True, False]
    assert [point.front for point in times.points] == [True, False, False, False]
    for plot in found:
        for point in plot.points:
            assert point.high <= point.y <= point.low and 0 <= point.x <= 460
    assert len(tokens.front.split()) == 2 and plots(summarize([make("a")])) == []
    assert [text for _, text in tokens.ticks_x] == ["0", "5", "10", "15"]
    assert [text for _, text in tokens.ticks_y] == ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]


def test_labels_of_a_plot_do_not_lie_on_each_other():
    comparison = make(*["a b"] * 6, kept=tuple(tuple(range(i)) for i in range(1, 6)))
    (plot, *_) = plots(summarize([comparison]))
    for side in (True, False):
        heights = sorted(p.label_y for p in plot.points if p.labelled and p.left == side)
        assert all(b - a >= 13 for a, b in pairwise(heights))
    assert sum(p.labelled for p in plot.points) == 6


def test_labels_of_a_plot_lie_over_all_whiskers(tmp_path):
    drawn = page(tmp_path, make(*["a b"] * 3)).split('<figure class="plot">')[1]
    assert 0 < drawn.rindex('class="whisker"') < drawn.index('class="label"')


def test_the_conditions_of_a_run_are_told_from_its_run_json():
    document = {
        "command": "compare",
        "inputs": ["my questions.jsonl"],
        "started": "2026-11-26T10:11:12+0000",
        "trimtok": "9.9",
        "versions": {"torch": "2", "transformers": "5", "python": "3"},
        "model": {
            "name": "m",
            "family": "llava",
            "commit": "",
            "device": "cpu",
            "dtype": "f",
            "threads": 2,
        },
        "generation": {"max_new_tokens": {"value": 8, "from": "flag"}},
        "config": {
            "model": "m",
            "keep": "64,32",
            "params": {"pool": 0.9, "cdpruner.text": "llm"},
            "greedy": True,
            "sources": {
                "model": "flag",
                "keep": "config",
                "params": "flag",
                "greedy": "environment",
            },
        },
        "settings": [Setting("fastv", "64").as_dict()],
    }
    assert command_line(document) == (
        "trimtok compare 'my questions.jsonl' --model m --keep 64,32 --param pool=0.9 "
        "--param cdpruner.text=llm --greedy"
    )
    facts = facts_of(document, [make("a", "b")])
    assert facts["Model"] == "m (llava)" and facts["Date"] == "2026-11-26 10:11"
    assert facts["Device"] == "cpu, f, 2 CPU threads"
    document["model"]["threads"] = "1"
    assert facts_of(document, [])["Device"] == "cpu, f, 1 CPU thread"
    assert facts["Longest answer"] == "8 tokens" and facts["Text tokens"] == "9 (median)"
    details = details_of([document])
    assert list(details) == ["Command", "fastv@64", "Generation"] and '"64"' in details["fastv@64"]
    assert facts_of({}, []) == {"Samples": "0"} and details_of([{}]) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_and_texts_stand_out_from_what_they_lie_on(scheme):
    """WCAG: 3 to 1 for what is drawn, 4.5 to 1 for text."""
    import trimtok_cli.outputs.page as package

    css = (Path(package.__file__).parent / "page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", part)) for part in css.split("@media")[:2]
    )
    colors = light if scheme == "light" else light | dark

    def bright(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((bright(colors[one]), bright(colors[other])))
        return (high + 0.05) / (low + 0.05)

    for stage in ("load", "encode", "prune", "prefill", "decode"):
        assert contrast(stage, "card") >= 3, stage
    texts = [
        ("ink", "card"),
        ("ink", "paper"),
        ("soft", "card"),
        ("soft", "paper"),
        ("soft", "wash"),
    ]
    texts += [("good", "good-wash"), ("bad", "bad-wash"), ("fail", "fail-wash"), ("old", "card")]
    texts += [("ink", "new-wash")]
    for text, under in texts:
        assert contrast(text, under) >= 4.5, (text, under, contrast(text, under))
