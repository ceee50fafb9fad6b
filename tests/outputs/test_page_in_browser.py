"""The page of a comparison in a real browser: what is clicked, read, printed and downloaded.

Needs Playwright and the distribution's Chromium; skipped where either is missing.
"""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.comparisons import FAST, GRID, make, picture
from trimtok_cli.data import Comparison, Kept, Media, Result, Sample, Setting, TokenCounts
from trimtok_cli.outputs.page.write import write_page
from trimtok_cli.outputs.pictures import Loader

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

EVIL = "</script><script>hacked=1</script><img src=x onerror='hacked=1'>, \"q\"\r\n\u202ertl \0 {{7*7}}"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of comparisons; whatever its console says fails the test."""
    contexts, said = [], []

    def open_page(*comparisons: Comparison, **context):
        path = tmp_path / "page.html"
        write_page(
            path, comparisons, model="tiny", facts={"A": "b"}, details={}, loader=Loader(load)
        )
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def load(path: Path):
    return Image.linear_gradient("L").resize((120, 90)).convert("RGB"), Media(120, 90, "RGB")


def ask(number, *answers, task="count", reference="red", name="a.png"):
    sample = Sample(
        f"q{number}",
        (Path(name),),
        (name,),
        question=f"What is {number}?",
        answers=(reference,),
        extra={"task": task, "answer": reference},
    )
    return make(*answers, sample=sample, kept=((5, 10), (1, 2, 3)))


def some() -> list[Comparison]:
    return [
        ask(1, "red", "red", "red"),
        ask(2, "red", "blue", "red", task="color"),
        ask(3, "green", "green", "red", reference="green", name="b.png"),
        ask(4, "green", "green", None),
    ]


def shown(page) -> list[str]:
    """The ids of the cards that can be seen, in their order."""
    return page.eval_on_selector_all(
        ".card", "cards => cards.filter(c => c.offsetParent !== null).map(c => c.id.slice(7))"
    )


@pytest.mark.parametrize("script", [True, False])
def test_settings_are_chosen_and_dense_always_stays(opened, script):
    page = opened(*some(), java_script_enabled=script)
    settings = page.locator(".card").first.locator(".pane")
    assert [each.is_visible() for each in settings.all()] == [True] * 3
    page.locator("#show-1").uncheck()
    assert [each.is_visible() for each in settings.all()] == [True, False, True]
    page.locator("#show-2").uncheck()
    assert [each.is_visible() for each in settings.all()] == [True, False, False]
    assert page.locator("#search").is_visible() == script


def test_without_a_script_the_summary_the_samples_and_their_tokens_are_read(opened):
    page = opened(*some(), java_script_enabled=False)
    assert page.locator("table").first.is_visible()
    assert page.locator(".answer").first.inner_text() == "red"
    assert page.locator(".veil").first.is_visible() and page.locator("del").first.is_visible()
    page.locator("#overlay").uncheck()
    page.locator("#words").uncheck()
    assert (
        not page.locator(".veil").first.is_visible() and not page.locator("del").first.is_visible()
    )


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("all", "1 2 3 4"),
        ("differs", "2 3"),
        ("same", "1"),
        ("wrong", "2 3 4"),
        ("lost", "2 3"),
        ("gained", ""),
        ("failed", "4"),
    ],
)
def test_samples_are_filtered_by_what_became_of_them(opened, kind, ids):
    page = opened(*some())
    page.locator("#show").select_option(kind)
    assert shown(page) == ids.split()
    assert page.locator("#count").inner_text() == f"{len(ids.split())} of 4 shown"
    page.locator("#clear").click()
    assert shown(page) == ["1", "2", "3", "4"]


def test_filters_speak_of_the_chosen_settings_alone(opened):
    page = opened(*some())
    page.locator("#show").select_option("differs")
    page.locator("#show-2").uncheck()
    assert shown(page) == ["2"]
    page.locator("#show-2").check()
    page.locator("#show-1").uncheck()
    assert shown(page) == ["3"]


def test_samples_are_filtered_by_columns_and_searched(opened):
    page = opened(*some())
    columns = page.locator("#columns label")
    assert columns.count() == 1, "`answer` is the reference, and no column to filter by"
    assert columns.inner_text().startswith("task")
    columns.locator("select").select_option(label="color")
    assert shown(page) == ["2"]
    columns.locator("select").select_option(label="any")
    page.locator("#search").fill("Q3 GREEN")
    assert shown(page) == ["3"]
    page.locator("#search").fill("out of memory")
    assert shown(page) == ["4"]


def test_samples_are_put_in_order(opened):
    page = opened(*some())
    page.locator("#order").select_option("differs")
    assert shown(page) == ["4", "2", "3", "1"]
    page.locator("#show-2").uncheck()
    assert shown(page)[0] == "2"
    page.locator("#order").select_option("input")
    assert shown(page) == ["1", "2", "3", "4"]


def test_stages_are_switched(opened):
    sample = picture("a.png")
    stages = (Kept(0, (0, 1, 2)), Kept(3, (1, 2)), Kept(5, (2,)))
    counts = TokenCounts(9, 16, 1, 2.0, 4, ((0, 3), (3, 2), (5, 1)))
    result = Result(sample, "?", "b", Setting("steps", "1"), counts, FAST, kept=stages)
    dense = make("a", sample=sample).results[0]
    page = opened(Comparison(sample, (dense, result), GRID, (0,) * 16))

    def layers() -> list[str]:
        return [
            each.get_attribute("data-layer")
            for each in page.locator(".overlay").all()
            if each.is_visible()
        ]

    assert layers() == ["5"]
    page.locator("#layer").select_option("3")
    assert layers() == ["3"]
    page.locator("#layer").select_option("0")
    assert layers() == ["0"]
    page.locator("#clear").click()
    assert layers() == ["5"]


def download(page, name: str) -> str:
    with page.expect_download() as waiting:
        page.locator(f'[data-file="{name}"]').click()
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes().decode("utf-8-sig")


def test_hostile_texts_stay_texts_on_the_page_and_in_its_files(opened):
    sample = Sample(EVIL, (Path("x"),), (EVIL,), question=EVIL, answers=(EVIL,), extra={EVIL: EVIL})
    page = opened(make(EVIL, EVIL + " more", sample=sample), ask(2, "red", "=1+1"))
    assert page.evaluate("typeof hacked") == "undefined" and page.locator("img").count() == 0
    assert "hacked=1" in page.locator(".question").first.inner_text()
    table = list(csv.DictReader(io.StringIO(download(page, "answers.csv"), newline="")))
    assert [row["setting"] for row in table] == ["dense", "trimtokenator@2"] * 2
    assert table[0]["answer"] == table[0]["question"] == table[0][EVIL] == EVIL
    assert table[1]["answer"] == EVIL + " more" and table[3]["answer"] == "=1+1"
    assert json.loads(download(page, "answers.json"))[0]["answers"][0]["answer"] == EVIL
    summary = list(csv.DictReader(io.StringIO(download(page, "summary.csv"), newline="")))
    assert [(row["setting"], row["same"]) for row in summary] == [
        ("dense", "2"),
        ("trimtokenator@2", "0"),
    ]
    assert json.loads(download(page, "summary.json"))[1]["kept"] == 2


def test_the_keyboard_reaches_everything(opened):
    page = opened(*some())
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    assert {"show-1", "show-2", "show", "search", "order", "overlay", "words", "clear"} <= reached
    assert {"summary.csv", "1", "2", "To the samples"} <= reached
    page.locator("#show-1").focus()
    page.keyboard.press("Space")
    assert not page.locator(".card .s1").first.is_visible()


def test_a_sample_has_a_link_of_its_own(opened):
    page = opened(*[ask(i, "red", "red") for i in range(1, 60)])
    page.locator("#sample-50 h3 a").click()
    assert page.url.endswith("#sample-50")
    top = page.locator("#sample-50").bounding_box()["y"]
    tools = page.locator(".tools").bounding_box()
    assert tools["y"] + tools["height"] <= top + 2 < 900


def test_a_phone_shows_dense_and_pruned_side_by_side(opened):
    page = opened(*some(), is_mobile=True, device_scale_factor=2)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    panes = page.locator(".card").first.locator(".pane")
    dense, first = panes.nth(0).bounding_box(), panes.nth(1).bounding_box()
    assert dense["y"] == first["y"] and first["x"] + first["width"] <= 390
    assert min(dense["width"], first["width"]) > 140
    panes.nth(2).evaluate("pane => pane.parentElement.scrollTo(10_000, 0)")
    assert panes.nth(0).bounding_box()["x"] == dense["x"], "dense stays where it is"
    assert panes.nth(2).bounding_box()["x"] > dense["x"] + dense["width"] - 1


def test_light_and_dark_differ(opened):
    colors = {
        scheme: opened(*some(), color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert colors == {"light": "rgb(245, 244, 240)", "dark": "rgb(18, 20, 23)"}


def test_forty_samples_of_three_budgets_print_on_ten_pages(opened):
    answer = "A red circle and a blue cross on a gray background."
    many = []
    for number in range(40):
        sample = ask(number, "a", name=f"{number}.png").sample
        kept = (tuple(range(12)), tuple(range(8)), tuple(range(4)))
        many.append(make(answer, answer, answer, "A red circle.", sample=sample, kept=kept))
    pdf = opened(*many).pdf(prefer_css_page_size=True)
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 10


def test_two_hundred_samples_are_few_elements_and_few_bytes(opened, tmp_path):
    page = opened(*[ask(i, "red", "blue", "red", name=f"{i % 20}.png") for i in range(250)])
    assert page.locator(".card").count() == 200
    assert page.evaluate("document.querySelectorAll('*').length") < 25_000
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    first, last = page.locator(".card").first, page.locator(".card").last
    assert first.evaluate("card => card.checkVisibility({contentVisibilityAuto: true})")
    inner = "card => card.firstElementChild.checkVisibility({contentVisibilityAuto: true})"
    assert not last.evaluate(inner), "what is far below is not laid out"
