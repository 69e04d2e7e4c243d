"""The report in a real browser: nothing complains, nothing is fetched, it fits, it can be read, it prints."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import make, worded
from test_serve_page import _contrast

from sonde.show.report import report
from sonde.show.report.page import PARTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning"),
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None,
        reason="there is no Chromium (apt-get install chromium) or no playwright here",
    ),
]
EVIL = '<img src="https://example.org/x.png" onerror="document.title=1"><script>document.title=2</script>'
READ = ("body", ".hint", "caption", "th", "td", ".said span", ".cards strong", "nav a", "figcaption", ".kicker")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of a model that reads a tiny BERT, and of one of many long labels whose texts are markup."""
    folder = tmp_path_factory.mktemp("reports")
    report(make("linear").fit(*worded(90)), *worded(120, seed=1), folder / "linear.html")
    names = [f"a label of some length number {k}" for k in range(24)]
    texts = [f"{name} {word}" for name in names for word in ("cold", "wind", "late", "train", "post", "hill")]
    classifier = make("lexical").fit(texts, [name for name in names for _ in range(6)])
    new = [f"{EVIL} {name} {'x' * 300}" for name in names]
    report(classifier, new, [*names[1:], names[0]], folder / "many.html", name=EVIL)
    return {name: folder / f"{name}.html" for name in ("linear", "many")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.mark.parametrize("name", ["linear", "many"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(browser: Any, pages: dict[str, Path], width: int, scheme: str, name: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url))
    page.goto(pages[name].as_uri())
    assert said == [pages[name].as_uri()], "the page itself, and nothing else"
    if folder := os.environ.get("SONDE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/report-{name}-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in READ:
        assert _contrast(page, selector) >= 4.5, selector
    small = page.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.picture, .unseen, title, desc, .matrix')"
        " && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && one.getClientRects().length"
        " && parseFloat(getComputedStyle(one).fontSize)"
        " * (one.closest('.chart') ? one.closest('.chart').getBoundingClientRect().width / 400 : 1) < 11.5)"
        ".map(one => one.tagName + ' ' + one.textContent)"
    )
    assert not small, f"too small to read: {small[:5]}"
    context.close()


def test_markup_in_texts_and_names_stays_text(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["many"].as_uri())
    assert page.title() == f"{EVIL}: sonde report" and page.inner_text("h1") == EVIL
    assert page.locator("img, script").count() == 0
    assert EVIL in page.inner_text("#mistakes .said >> nth=0")
    page.close()


def test_the_policy_of_the_page_would_stop_what_slipped_through(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.goto(pages["linear"].as_uri())
    page.evaluate(
        """() => {
            const image = document.createElement("p"), script = document.createElement("script");
            image.innerHTML = '<img src="icon.png" onerror="document.title=3">';
            script.textContent = "document.title=4";
            document.body.append(image, script);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.title() == "linear: sonde report" and len(asked) == 1
    page.close()


def test_the_keyboard_reaches_every_part_and_what_scrolls(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages["linear"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    reached = []
    for _ in range(len(PARTS) + 12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.className"))
    assert reached[: len(PARTS)] == [f"#{key}" for key, _ in PARTS] and "scroll" in reached[len(PARTS) :]
    tree = page.locator("main").aria_snapshot()
    for part in ('heading "Calibration" [level=2]', 'img "Reliability diagram"', 'rowheader "weather"'):
        assert part in tree, part
    page.close()


def test_it_prints_in_black_on_white_without_cutting_tables(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    page = browser.new_page(color_scheme="dark", viewport={"width": 720, "height": 1000})
    page.goto(pages["many"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
    page.close()
