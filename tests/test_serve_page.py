"""The page in a real browser: type, click, read; what texts hold stays text; errors are told."""

import csv
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import make, worded
from serving import ask, running, until

from sonde.serve.page import FILES
from sonde.serve.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None,
        reason="there is no Chromium (apt-get install chromium) or no playwright here",
    ),
]
EVIL = '<img src=x onerror="document.title=1"><b>the cold wind</b>'
TOKEN = "a-token-of-sixteen-signs"
TEXTS, LABELS = worded(150)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that reads a tiny BERT, and one whose labels are markup and formulas."""
    root = tmp_path_factory.mktemp("models")
    make("linear").fit(TEXTS, LABELS).save(root / "inside")
    evil = {"post": "<i>post</i>", "rail": "=rail()", "weather": "@weather"}
    make("lexical").fit(TEXTS, [evil[label] for label in LABELS]).save(root / "evil")
    return {name: root / name for name in ("inside", "evil")}


@pytest.fixture(scope="module")
def service(folders: dict[str, Path]) -> Iterator[Service]:
    with running(folders, max_texts=40) as started:
        yield started


# ------------------------------------------------------------------ without a browser


def test_every_file_is_served_and_nothing_comes_from_elsewhere(service: Service) -> None:
    for path, (name, kind) in FILES.items():
        reply = ask(service, path)
        assert reply.status == 200 and reply.headers["content-type"] == kind, name
        assert reply.headers["cache-control"] == "no-cache"
        content = reply.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//\w+\.\w+/|@import|url\(", content), name
        for linked in re.findall(r'(?:src|href)="([^"]+)"|from "\./([^"]+)"', content):
            target = linked[0] or f"/static/{linked[1]}"
            assert target.startswith("#") or target in {*FILES, "/openapi.json"}, target


def test_nothing_that_was_written_elsewhere_becomes_markup(service: Service) -> None:
    for path, (name, _) in FILES.items():
        content = ask(service, path).body.decode()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", content), name
        assert not re.search(r"<[^>]+\s(style|on\w+)=", content), f"{name}: the content security policy forbids it"
        assert "<script>" not in content


def test_every_field_has_a_label(service: Service) -> None:
    content = ask(service, "/").body.decode()
    labels = set(re.findall(r'<label for="(\w+)"', content))
    for field in re.findall(r"<(?:input|select|textarea)[^>]*>", content):
        name = re.search(r'id="(\w+)"', field)
        assert name is not None
        inside = re.search(rf"<label[^>]*>[^<]*<(?:input|select)[^>]*id=\"{name[1]}\"", content)
        assert name[1] in labels or inside, f"{field} has no label"


# --------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, service: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, of which nothing may complain; with SONDE_SCREENSHOTS, a picture of how it ended."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    complaints: list[str] = []
    elsewhere: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append("a dialog opened"))
    opened.on(
        "request", lambda asked: None if asked.url.startswith((service.url, "blob:")) else elsewhere.append(asked.url)
    )
    opened.complaints = complaints
    opened.goto(service.url)
    see(opened, "document.getElementById('model').options.length > 0")
    yield opened
    if folder := os.environ.get("SONDE_SCREENSHOTS"):
        opened.screenshot(path=f"{folder}/{request.node.name}.png", full_page=True)
    assert complaints == [] and elsewhere == []
    context.close()


def see(page: Any, true: str) -> None:
    """Wait until an expression is true; Playwright's own way needs `eval`, which the page's policy forbids."""
    until(lambda: page.evaluate(f"() => Boolean({true})"))


def classify(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.click("#ask")
    page.wait_for_selector("#tokens span")


@pytest.mark.parametrize("_", [pytest.param(None, marks=in_browser)])
class TestPage:
    """All of these need the browser."""

    def test_a_text_is_typed_and_its_label_read(self, page: Any, service: Service, _: None) -> None:
        classify(page, "the cold wind came over the hills")
        (result,) = ask(service, "/v1/classify", {"text": "the cold wind came over the hills"}).json["results"]
        assert page.inner_text("#verdict strong") == "weather" == result["label"]
        assert f"{100 * result['probability']:.1f} %" in page.inner_text("#verdict")
        rows = page.locator("#probabilities tr").all_inner_texts()
        assert len(rows) == 3 and rows[0].startswith("weather")
        layers = page.locator("#layers th").all_inner_texts()
        assert layers == [layer["site"] for layer in _explained(service)["layers"]]
        assert page.inner_text("#tokens") == "the cold wind came over the hills"
        said = {one["text"]: one["contribution"] for one in _explained(service)["tokens"]}
        for word in ("cold", "wind", "hills"):
            way = "for" if said[word] > 0 else "against"
            assert page.locator(f"#tokens .say.{way}", has_text=re.compile(f"^{word}$")).count() == 1
        assert "Solid blue speaks for weather" in page.inner_text("#legend")

    def test_the_keyboard_does_it_all(self, page: Any, _: None) -> None:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.focus("#text")
        page.keyboard.type("my parcel arrived late")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#tokens span")
        assert page.inner_text("#verdict strong") == "post"
        order = []
        for _step in range(30):
            page.keyboard.press("Tab")
            order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        for name in ("ask", "SUMMARY", "column", "file", "header", "label-all"):
            assert name in order, f"Tab does not reach {name}: {order}"
        assert order.index("ask") < order.index("column") < order.index("label-all")

    def test_markup_in_texts_and_labels_stays_text(self, page: Any, _: None) -> None:
        page.select_option("#model", "evil")
        classify(page, EVIL)
        page.click("summary:has-text('The same as tables')")
        assert page.inner_text("#tokens") == EVIL
        page.fill("#column", f"{EVIL}\n<script>document.title=2</script>")
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        assert page.locator("#table tbody td").first.inner_text() == EVIL
        assert "<i>post</i>" in page.inner_text("#probabilities")
        assert page.locator("#answer img, #answer b, #answer i:not(.track i), #table img, #table script").count() == 0
        assert page.title() == "sonde"

    def test_models_are_switched(self, page: Any, _: None) -> None:
        classify(page, "the cold wind came over the hills")
        page.select_option("#model", "evil")
        see(page, "document.querySelector('#verdict strong').textContent === '@weather'")
        see(page, "document.querySelector('#layers th')?.textContent === 'n-grams'")
        assert page.inner_text("#about") == "3 labels, recipe lexical, reads words alone"

    def test_labels_are_withheld_and_sets_shrink(self, page: Any, service: Service, _: None) -> None:
        unsure = "why on my platform again"
        probability = ask(service, "/v1/classify", {"text": unsure}).json["results"][0]["probability"]
        assert probability < 0.99
        classify(page, unsure)
        page.select_option("#abstain", "0.99")
        see(page, "document.querySelector('#verdict strong').textContent.startsWith('no label')")
        classify(page, "the cold wind came over the hills")
        for alpha, labels in (("0.01", "post, rail, weather"), ("0.2", "weather")):
            page.select_option("#alpha", alpha)
            see(page, f"document.querySelector('#verdict small').textContent === 'Label set: {labels}'")

    def test_a_column_is_labelled_and_downloaded_as_harmless_cells(self, page: Any, service: Service, _: None) -> None:
        texts = [
            "the cold wind, again",
            'he wrote "late" twice',
            "=HYPERLINK(1)",
            "+1 parcel",
            "-1 train",
            "@wind",
            "two\nlines",
        ]
        many = [f"parcel {i}" for i in range(150)]
        page.select_option("#model", "evil")
        page.fill("#column", "\n".join([*texts[:-1], '"two\nlines"', *many]))
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        assert page.inner_text("#progress-text") == f"{len(texts) + 150} of {len(texts) + 150} labelled."
        assert page.locator("#table tbody tr").count() == 100
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "labels.csv"
        rows = list(csv.reader(io.StringIO(download.value.path().read_text(encoding="utf-8-sig"), newline="")))
        assert rows[0] == ["text", "label", "probability"] and len(rows) == len(texts) + 151
        assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@")]
        assert [row[0].removeprefix("'") for row in rows[1:]] == texts + many
        expected = [
            one["label"] for one in ask(service, "/v1/classify", {"texts": texts, "model": "evil"}).json["results"]
        ]
        assert [row[1].removeprefix("'") for row in rows[1 : len(texts) + 1]] == expected
        assert all(0 < float(row[2]) <= 1 for row in rows[1:])

    def test_a_file_with_several_columns_is_labelled(
        self, page: Any, service: Service, tmp_path: Path, _: None
    ) -> None:
        (tmp_path / "mail.csv").write_text('id,text\n1,"the cold wind, again"\n2,my parcel\n', encoding="utf-8")
        page.check("#header")
        page.set_input_files("#file", tmp_path / "mail.csv")
        page.wait_for_selector("#which-field:visible")
        assert page.locator("#which option:checked").inner_text() == "text"
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        cells = page.locator("#table tbody td").all_inner_texts()
        texts = ["the cold wind, again", "my parcel"]
        expected = [one["label"] for one in ask(service, "/v1/classify", {"texts": texts}).json["results"]]
        assert (cells[0::3], cells[1::3]) == (texts, expected)

    def test_the_column_that_was_chosen_is_labelled(self, page: Any, tmp_path: Path, _: None) -> None:
        (tmp_path / "mail.csv").write_text("text,comment\nmy parcel,the cold wind\nmy train,the rain\n")
        page.check("#header")
        page.set_input_files("#file", tmp_path / "mail.csv")
        page.wait_for_selector("#which-field:visible")
        page.select_option("#which", label="comment")
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        assert page.locator("#table tbody td").all_inner_texts()[0::3] == ["the cold wind", "the rain"]
        assert page.locator("#which option:checked").inner_text() == "comment"

    @pytest.mark.parametrize(
        ("content", "written"),
        [("id;text\n1;kalt, und nass\n", ";"), ("sep=;\nid;text\n1;kalt, und nass\n", ";"),
         ("sep=|\nid|text\n1|kalt, und nass\n", ",")],
    )  # fmt: skip
    def test_separators_of_spreadsheets_are_understood(
        self, page: Any, tmp_path: Path, content: str, written: str, _: None
    ) -> None:
        (tmp_path / "mail.csv").write_text(content)
        page.check("#header")
        page.set_input_files("#file", tmp_path / "mail.csv")
        page.wait_for_selector("#which-field:visible")
        assert page.locator("#which option").all_inner_texts() == ["id", "text"]
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        assert page.locator("#table tbody td").all_inner_texts()[0] == "kalt, und nass"
        with page.expect_download() as download:
            page.click("#download")
        head, first = download.value.path().read_text(encoding="utf-8-sig").splitlines()
        assert head == written.join(["text", "label", "probability"])
        assert next(csv.reader([first], delimiter=written))[0] == "kalt, und nass"

    def test_a_file_in_another_encoding_is_refused(self, page: Any, tmp_path: Path, _: None) -> None:
        (tmp_path / "mail.csv").write_bytes("text\nBitte kündigen\n".encode("cp1252"))
        page.set_input_files("#file", tmp_path / "mail.csv")
        page.wait_for_selector("#alert:visible")
        assert "mail.csv is not UTF-8" in page.inner_text("#alert")
        (tmp_path / "mail.csv").write_text("text\nBitte kündigen\n", encoding="utf-8")
        page.set_input_files("#file", tmp_path / "mail.csv")
        page.wait_for_selector("#alert", state="hidden")
        assert page.inner_text("#progress-text") == "2 rows in mail.csv."

    def test_a_large_file_is_opened(self, page: Any, tmp_path: Path, _: None) -> None:
        (tmp_path / "mail.csv").write_text("my parcel\n" * 150_000)
        page.set_input_files("#file", tmp_path / "mail.csv")
        see(page, "document.getElementById('progress-text').textContent == '150000 rows in mail.csv.'")

    def test_rows_keep_their_places_and_one_model_labels_them_all(self, page: Any, _: None) -> None:
        asked: list[Any] = []

        def note(route: Any) -> None:
            asked.append(route)
            if len(asked) > 1:
                route.continue_()

        page.route("**/v1/classify", note)
        page.fill("#column", "\n".join(["the cold wind", "", "my parcel", *["a train"] * 60]) + "\n\n")
        page.click("#label-all")
        until(lambda: page.evaluate("1") and asked)
        page.select_option("#model", "evil")
        assert page.evaluate("document.activeElement !== document.body"), "the keyboard stays where it was"
        asked[0].continue_()
        page.wait_for_selector("#download:visible")
        assert page.inner_text("#progress-text") == "63 of 63 labelled."
        assert [route.request.post_data_json["model"] for route in asked] == ["inside", "inside"]
        assert page.locator("#table tbody tr").nth(2).locator("td").first.inner_text() == "my parcel"

    def test_the_reasons_are_those_of_the_text_that_was_asked_last(self, page: Any, _: None) -> None:
        asked: list[Any] = []

        def note(route: Any) -> None:
            asked.append(route)
            if len(asked) > 1:
                route.continue_()

        page.route("**/v1/explain", note)
        page.fill("#text", "my parcel arrived late")
        page.click("#ask")
        until(lambda: page.evaluate("1") and asked)
        classify(page, "the cold wind came over the hills")
        asked[0].continue_()
        page.wait_for_timeout(500)
        assert page.inner_text("#tokens") == "the cold wind came over the hills"
        assert page.inner_text("#verdict strong") == "weather"
        assert "Solid blue speaks for weather" in page.inner_text("#legend")

    def test_nothing_to_label_is_said(self, page: Any, _: None) -> None:
        page.click("#label-all")
        assert "paste a column or open a file first" in page.inner_text("#alert")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [1280, 390])
    def test_it_fits_and_can_be_read(self, page: Any, width: int, scheme: str, _: None) -> None:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        classify(page, "the cold wind came over the hills " * 12)
        page.fill("#column", "the cold wind\nmy parcel\n" + "x" * 200)
        page.click("#label-all")
        page.wait_for_selector("#download:visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in ("body", ".hint", "label", "button.main", ".verdict small", ".say"):
            assert _contrast(page, selector) >= 4.5, selector
        for selector in ("textarea", "select"):
            assert _contrast(page, selector, "borderTopColor") >= 3, selector
        small = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(one => one.textContent.trim()"
            " && one.getClientRects().length && parseFloat(getComputedStyle(one).fontSize) < 13)"
            ".map(one => one.tagName)"
        )
        assert not small, f"too small to read: {small}"

    def test_a_stopped_service_is_told(self, browser: Any, folders: dict[str, Path], _: None) -> None:
        context = browser.new_context()
        page = context.new_page()
        with running(folders) as service:
            page.goto(service.url)
            classify(page, "the cold wind")
        page.click("#ask")
        page.wait_for_selector("#alert:visible")
        assert page.inner_text("#alert") == "The service does not answer. Is “sonde serve” still running?"
        assert page.get_attribute("#alert", "role") == "alert" and not page.is_disabled("#ask")
        page.fill("#column", "the cold wind")
        page.click("#label-all")
        see(page, "document.getElementById('progress-text').textContent.startsWith('Stopped: 0 of 1')")
        context.close()

    def test_a_token_is_asked_for(self, browser: Any, folders: dict[str, Path], _: None) -> None:
        context = browser.new_context()
        page = context.new_page()
        with running(folders, token=TOKEN) as service:
            page.goto(service.url)
            page.wait_for_selector("#access:visible")
            assert "asks for a token" in page.inner_text("#alert")
            page.fill("#token", "wrong")
            page.click("#access button")
            page.wait_for_selector("#access:visible")
            page.fill("#token", TOKEN)
            page.click("#access button")
            page.wait_for_selector("#access", state="hidden")
            classify(page, "the cold wind")
            assert page.inner_text("#verdict strong") == "weather"
        context.close()


def _explained(service: Service) -> Any:
    return ask(service, "/v1/explain", {"text": "the cold wind came over the hills"}).json


def _contrast(page: Any, selector: str, of: str = "color") -> float:
    """WCAG 2 contrast of such elements' text, or of another colour of theirs, with what lies behind it, at worst."""
    return float(
        page.evaluate(
            """([selector, of]) => {
                const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
                const mix = (colours) => {
                    canvas.clearRect(0, 0, 1, 1);
                    for (const one of colours) { canvas.fillStyle = one; canvas.fillRect(0, 0, 1, 1); }
                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
                const light = (rgb) => rgb.map(v => linear(v / 255))
                    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
                let worst = 21;
                for (const one of document.querySelectorAll(selector)) {
                    if (!one.getClientRects().length) continue;
                    const behind = [];
                    for (let at = one; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
                    const paper = mix(behind), ink = mix([...behind, getComputedStyle(one)[of]]);
                    const [a, b] = [light(paper), light(ink)].sort((x, y) => y - x);
                    worst = Math.min(worst, (a + .05) / (b + .05));
                }
                return worst;
            }""",
            [selector, of],
        )
    )
