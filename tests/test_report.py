"""The report: what stands on the page for each kind of model, and that what users wrote stays text."""

import base64
import hashlib
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import Run, make, worded
from scipy.stats import binomtest
from sklearn.exceptions import NotFittedError

import sonde
from sonde import TextClassifier
from sonde.errors import ArgumentError, DataError, ModelError, SondeWarning
from sonde.evaluation import evaluate
from sonde.learn import learning, metrics
from sonde.show.report import report
from sonde.show.report.charts import Axis, Curve, chart, round_values, thinned
from sonde.show.report.depth import _of_each
from sonde.show.report.doubts import _doubted, mislabelled, mistakes
from sonde.show.report.intervals import around, newcombe, resampled, wilson
from sonde.show.report.markup import element, joined, percent, printable
from sonde.show.report.page import PARTS
from sonde.show.report.reasons import SHOWN_CHARACTERS, shaded
from sonde.show.report.subject import describe

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(60, seed=1)
VOID = {"meta", "br"}
EVIL = '<script>alert("1")</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """The elements of a page, each of which must be closed, and the text under every heading of a part."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.parts: dict[str, str] = {}
        self._open: list[str] = []
        self._part = ""
        self.feed(html)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._part = dict(attrs)["id"] or ""

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.parts[self._part] = self.parts.get(self._part, "") + data

    @property
    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


@pytest.fixture(scope="module")
def linear() -> TextClassifier:
    return make().fit(TEXTS, LABELS)


@pytest.fixture(scope="module")
def lexical() -> TextClassifier:
    return make("lexical").fit(TEXTS, LABELS)


def written(folder: Path, classifier: TextClassifier, texts: Any, labels: Any, **settings: Any) -> Page:
    report(classifier, texts, labels, folder / "report.html", **settings)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------------- the page


def test_the_page_has_every_part_under_its_heading_and_the_figures_of_evaluate(
    linear: TextClassifier, tmp_path: Path
) -> None:
    result = sonde.report(linear, NEW_TEXTS, NEW_LABELS, tmp_path / "r.html", name="mail on Monday")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    page, figures = Page(html), evaluate(linear, NEW_TEXTS, NEW_LABELS)
    assert result == {"out": str(tmp_path / "r.html"), "bytes": len(html.encode()), **figures}
    assert page.tags.count("h1") == 1 and page.tags.count("h2") == len(PARTS)
    assert [name for name in page.parts if name] == [key for key, _ in PARTS]
    assert "mail on Monday: sonde report" in html and "Recipe linear, trained on 90 rows" in html
    low, high = wilson(round(60 * figures["accuracy"]), 60)
    assert f"{percent(figures['accuracy'])}95% CI {100 * low:.1f}–{100 * high:.1f}%" in page.parts["headline"]
    assert (
        f"{figures['macro_f1']:.3f}" in page.parts["headline"] and f"{figures['ece_95']:.3f}" in page.parts["headline"]
    )
    assert "is right in 33.3% of the rows" in page.parts["headline"]
    for row in figures["per_class"]:
        assert f"{row['label']}{row['f1']:.3f}" in page.parts["classes"].replace(" ", "")
    for point in figures["risk_coverage"]:
        assert f"{percent(point['error'])}{point['threshold']:.3f}" in page.parts["coverage"]
    assert "one exit; every text ran through 3 layers" in page.parts["depth"]
    assert "hidden.3 mean" in page.parts["neurons"] and "32 of 32" in page.parts["neurons"]
    assert "Chosen (dot): C = " in page.parts["losses"]
    assert "rows/s" in page.parts["costs"] and "float32, at most 64 tokens" in page.parts["costs"]


def test_the_matrix_holds_every_row_once(linear: TextClassifier, tmp_path: Path) -> None:
    page = written(tmp_path, linear, NEW_TEXTS, NEW_LABELS)
    predicted, names = linear.predict(NEW_TEXTS).tolist(), ("post", "rail", "weather")
    for true in names:
        counts = [sum((a, b) == (true, said) for a, b in zip(NEW_LABELS, predicted, strict=True)) for said in names]
        shown = "".join([true, *(str(n) if n else "·" for n in counts), "20"])
        assert shown in page.parts["confusion"]


def test_nothing_is_fetched_or_run_and_everything_is_named(linear: TextClassifier, tmp_path: Path) -> None:
    page = written(tmp_path, linear, NEW_TEXTS, NEW_LABELS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    without_names = html.replace(' xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|@import|url\(|//\w", without_names)
    assert not {"script", "img", "iframe", "link", "object", "form", "input"} & set(page.tags)
    assert {name for _, name, _ in page.attributes} & {"style", "src", "srcset", "onload", "onclick"} == set()
    policy = next(
        value for tag, name, value in page.attributes if tag == "meta" and name == "content" and "none" in value
    )
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert len(page.ids) == len(set(page.ids))
    targets = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert targets and set(targets) <= set(page.ids)
    assert page.tags.count("table") == page.tags.count("caption") >= 5
    named = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-labelledby"]
    assert len(named) >= 3 and all(set(ids.split()) <= set(page.ids) for ids in named)
    assert ("html", "lang", "en") in page.attributes
    heads = re.findall(r"<th[ >][^<]*", html)
    assert heads and all("scope=" in head for head in heads) and "<th></th>" not in html


def test_what_users_wrote_stays_text(tmp_path: Path) -> None:
    evil = {"post": EVIL, "rail": "</title></style><b>rail", "weather": "\"' onmouseover=alert(3) x='"}
    classifier = make("lexical").fit(TEXTS, [evil[label] for label in LABELS])
    texts = [
        f"{EVIL} {NEW_TEXTS[0]}",
        f"</p></li>{NEW_TEXTS[1]}",
        "a\0b \x1b[31m \ud800 \u202etxt.exe the cold wind",
        *NEW_TEXTS[3:],
    ]
    labels = [evil["rail"], evil["weather"], evil["post"], *(evil["rail"] for _ in NEW_TEXTS[3:])]
    page = written(tmp_path, classifier, texts, labels, name=EVIL)
    assert not {"script", "img", "b2"} & set(page.tags) and page.tags.count("title") == 1 + page.tags.count(
        "svg"
    ) - bars(page)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(label in page.parts["classes"] for label in evil.values())
    assert EVIL in page.parts["mistakes"].replace("\n", "") and r"\x1b" in page.parts["mistakes"]
    assert (
        r"\x00" in page.parts["mistakes"]
        and r"\ud800" in page.parts["mistakes"]
        and r"\u202e" in page.parts["mistakes"]
    )


def bars(page: Page) -> int:
    return sum((tag, name, value) == ("svg", "class", "bar-box") for tag, name, value in page.attributes)


def test_the_same_rows_give_the_same_page_but_for_the_clock(lexical: TextClassifier, tmp_path: Path) -> None:
    def still() -> str:
        written(tmp_path, lexical, NEW_TEXTS, NEW_LABELS)
        return (tmp_path / "report.html").read_text(encoding="utf-8").partition('<section id="costs"')[0]

    assert still() == still()


# ------------------------------------------------------------ kinds of models


def test_models_without_layers_say_so(lexical: TextClassifier, tmp_path: Path) -> None:
    page = written(tmp_path, lexical, NEW_TEXTS, NEW_LABELS)
    assert "reads no backbone, hence no layers" in page.parts["depth"]
    assert "as it reads no backbone" in page.parts["neurons"]
    assert "Share of characters beside words: solid, 0; dashed, 0.5; dotted, 1" in page.parts["losses"]
    assert "For " in page.parts["mistakes"]


def test_several_labels_a_text(tmp_path: Path) -> None:
    def lists(texts: list[str], labels: list[str]) -> list[list[str]]:
        return [[label, "late"] if "late" in text else [label] for text, label in zip(texts, labels, strict=True)]

    classifier = make("lexical").fit(TEXTS, lists(TEXTS, LABELS))
    given = lists(NEW_TEXTS, NEW_LABELS)
    column = classifier.classes_.tolist().index("late")
    wrong = int(classifier.predict_proba(NEW_TEXTS)[:, column].argmin())  # what is surely not late is said to be
    given[wrong] = [*given[wrong], "late"]
    page = written(tmp_path, classifier, NEW_TEXTS, given)
    assert "Micro F1" in page.parts["headline"] and "Whole set right" in page.parts["headline"]
    assert "none is taken for another" in page.parts["confusion"] and "do not abstain" in page.parts["coverage"]
    assert "Every label, the lowest F1 first" in page.parts["classes"]
    assert re.search(r"Row \d+: the model (gives|does not give) \w+", page.parts["mistakes"])
    assert f"Row {wrong + 1}: the model does not give late" in page.parts["mislabelled"]


def test_a_matrix_of_labels(tmp_path: Path) -> None:
    def matrix(labels: list[str]) -> np.ndarray:
        return np.array([[label == name for name in ("post", "rail")] for label in labels]).astype(int)

    page = written(tmp_path, make("lexical").fit(TEXTS, matrix(LABELS)), NEW_TEXTS, matrix(NEW_LABELS))
    assert "2 labels" in page.parts["headline"]


@pytest.mark.slow
def test_exits_are_shown_with_the_texts_that_left_there(tmp_path: Path) -> None:
    classifier = make("stc-hidden", exit_loss=0.05, layers=3, eta=0.8).fit(TEXTS, LABELS)
    page = written(tmp_path, classifier, NEW_TEXTS, NEW_LABELS)
    assert "Texts leave as soon as a head is sure" in page.parts["depth"]
    assert "60 rows of this test" in page.parts["depth"]
    subject = describe(classifier, NEW_TEXTS, NEW_LABELS, "m")
    for depth in np.unique(subject.judged.depths).tolist():
        rows = int((subject.judged.depths == depth).sum())
        assert f"{depth}{rows}{percent(rows / 60)}" in page.parts["depth"]
    assert "hidden.3 mean" in page.parts["neurons"]


@pytest.mark.slow
def test_an_exit_gives_no_label_that_nobody_can_give() -> None:
    classifier = make("stc-hidden", exit_loss=0.05, layers=3, eta=0.8).fit(TEXTS, [[label] for label in LABELS])
    said = classifier.predict(NEW_TEXTS)
    subject = describe(classifier, NEW_TEXTS, [[*labels, "never"] for labels in said], "m")
    cascade = learning.as_cascade(classifier.model_)
    assert cascade is not None and not _of_each(subject, cascade, list(range(60))).any()


@pytest.mark.slow
def test_a_chosen_depth_is_shown_with_its_losses(tmp_path: Path) -> None:
    page = written(tmp_path, make("stc-hidden", eta=0.8).fit(TEXTS, LABELS), NEW_TEXTS, NEW_LABELS)
    assert "The depth was chosen in training, out of fold" in page.parts["depth"]
    assert "Heads on the first layers alone: log loss, out of fold" in page.parts["depth"]
    assert "'head': log loss out of fold" in page.parts["losses"]


@pytest.mark.slow
def test_networks_show_their_epochs(tmp_path: Path) -> None:
    page = written(tmp_path, make("llmembed-2").fit(TEXTS, LABELS), NEW_TEXTS[:12], NEW_LABELS[:12])
    assert "solid, the validation loss, lowest after epoch" in page.parts["losses"]
    assert "as it ends in a network" in page.parts["neurons"]
    assert "no mistake" in page.parts["mistakes"] or "integrated gradients" in page.parts["mistakes"]


def test_a_model_that_cannot_be_explained_gives_texts_and_a_sentence(
    linear: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelError("A model of kind Odd cannot be explained.")

    monkeypatch.setattr("sonde.show.report.reasons.explain", refuse)
    labels = ["rail" if label == "post" else label for label in NEW_LABELS]
    page = written(tmp_path, linear, NEW_TEXTS, labels)
    assert "A model of kind Odd cannot be explained." in page.parts["mistakes"]
    assert any(text in page.parts["mistakes"] for text in NEW_TEXTS)


# ------------------------------------------------------------------ odd tests


def test_one_row_is_enough(lexical: TextClassifier, tmp_path: Path) -> None:
    (right,) = lexical.predict(NEW_TEXTS[:1]).tolist()
    page = written(tmp_path, lexical, NEW_TEXTS[:1], [right])
    assert "makes no mistake" in page.parts["mistakes"] and "No row of one class" in page.parts["confusion"]
    assert "No answer is wrong" in page.parts["coverage"] and "Classes without a row" in page.parts["cautions"]
    assert "No given label is doubted" in page.parts["mislabelled"]
    assert re.search(r"Log loss[\d.]+nats", page.parts["headline"]), "one loss says nothing of others"


def test_a_clean_test_is_said_to_be_one(lexical: TextClassifier, tmp_path: Path) -> None:
    assert "Nothing found" in written(tmp_path, lexical, NEW_TEXTS, NEW_LABELS).parts["cautions"]


def test_known_and_repeated_texts_and_odd_labels_are_told(lexical: TextClassifier, tmp_path: Path) -> None:
    texts = [*NEW_TEXTS[:20], NEW_TEXTS[3].upper(), TEXTS[0], f" {TEXTS[1]}", NEW_TEXTS[30], NEW_TEXTS[31]]
    other = "rail" if NEW_LABELS[3] != "rail" else "post"
    labels = [*NEW_LABELS[:20], other, LABELS[0], LABELS[1], "sail", None]
    page = written(tmp_path, lexical, [NEW_TEXTS[40], *texts], [None, *labels])
    said = page.parts["cautions"]
    assert "2 texts of 24 (8.3%) stand in the training or validation rows too" in said and "Rows 23, 24." in said
    assert "1 row repeats a text" in said and "1 text stands there with different labels" in said
    assert f"5, 22{NEW_LABELS[3]} (1); {other} (1)" in said
    assert "2 rows were left out" in said and "their rows count as wrong: sail (1)" in said
    assert "label unknown to the model" in page.parts["confusion"]
    assert "2 rows whose texts the model was trained or chosen on are not judged" in page.parts["mislabelled"]
    assert "sail" not in page.parts["mistakes"]


def test_a_test_of_known_texts_alone_is_none(lexical: TextClassifier, tmp_path: Path) -> None:
    page = written(tmp_path, lexical, TEXTS, LABELS)
    assert "Every one of them: this is no test" in page.parts["cautions"]


def test_cut_texts_are_judged_apart(tmp_path: Path) -> None:
    classifier = make("linear", max_tokens=8).fit(TEXTS, LABELS)
    texts = [*NEW_TEXTS[:5], *(" ".join(text.split()[:4]) for text in NEW_TEXTS[5:])]
    page = written(tmp_path, classifier, texts, NEW_LABELS)
    assert re.search(r"5 texts \(8\.3%\) are longer than the model reads .* of them, and in", page.parts["cautions"])


def test_blank_and_long_texts_among_the_mistakes(lexical: TextClassifier, tmp_path: Path) -> None:
    (said,) = lexical.predict([" "]).tolist()
    other = "rail" if said != "rail" else "post"
    long = f"{'parcel letters ' * 500}end"
    labels = [other, "weather", "weather"]
    page = written(tmp_path, lexical, [" ", long, "parcel " * 10_000], labels)
    assert "The text is blank" in page.parts["mistakes"]
    assert f"… and {len(long) - SHOWN_CHARACTERS:,} characters more" in page.parts["mistakes"]
    assert "has 70,000 characters and is not explained" in page.parts["mistakes"]


def test_many_classes_have_a_picture_and_the_worst_of_them_figures(tmp_path: Path) -> None:
    names = [f"class{k}" for k in range(40)]
    texts = [
        f"{name} about {name} {word}" for name in names for word in ("cold", "wind", "late", "train", "post", "hill")
    ]
    labels = [name for name in names for _ in range(6)]
    classifier = make("lexical").fit(texts, labels)
    new = [f"{name} is {word}" for name in names for word in ("good", "bad")]
    given = [name for name in names for _ in range(2)]
    given[0], given[3] = "class7", "class9"
    page = written(tmp_path, classifier, new, given)
    assert (
        "The 12 classes with the most errors" in page.parts["confusion"] and "the other 28" in page.parts["confusion"]
    )
    assert "Confusion matrix of all 40 classes" in page.parts["confusion"]
    assert "class7, predicted class0: 1 row, 33.3%" in page.parts["confusion"]
    cells = sum(
        tag in ("rect", "circle") and name == "class" and value[:4] in ("hit ", "miss")
        for tag, name, value in page.attributes
    )
    assert cells == 40 + 2


def test_large_tests_stay_small_and_are_explained_in_bounded_time(
    lexical: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonde.show.report import reasons

    asked = []
    explain = reasons.explain
    monkeypatch.setattr(reasons, "explain", lambda c, texts, **k: asked.extend(texts) or explain(c, texts, **k))
    texts, labels = worded(3000, seed=3, noise=0.6)
    result = report(lexical, texts, labels, tmp_path / "large.html")
    assert result["n"] == 3000 and 20 <= len(asked) <= 40
    assert result["bytes"] < 400_000


# --------------------------------------------------------------------- files


def test_a_classifier_that_is_not_fitted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        report(make("lexical"), NEW_TEXTS, NEW_LABELS, tmp_path / "r.html")


def test_only_pages_are_written_and_what_stood_there_stays(lexical: TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"must end in \.html, as it is a page for a browser"):
        report(lexical, NEW_TEXTS, NEW_LABELS, tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"the folder .* does not exist"):
        report(lexical, NEW_TEXTS, NEW_LABELS, tmp_path / "nowhere" / "r.html")
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(DataError, match="no labelled rows"):
        report(lexical, NEW_TEXTS, [None] * 60, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_the_command(lexical: TextClassifier, tmp_path: Path, run: Run) -> None:
    lexical.save(tmp_path / "model")
    rows = "\n".join(f"{text},{label}" for text, label in zip(NEW_TEXTS, NEW_LABELS, strict=True))
    (tmp_path / "test.csv").write_text(f"text,label\n{rows}\n", encoding="utf-8")
    done = run("report", tmp_path / "model", tmp_path / "test.csv", "--out", tmp_path / "r.html", "--json").json
    assert done["n"] == 60 and done["out"] == str(tmp_path / "r.html") and done["warnings"] == {}
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h1>model on test.csv</h1>" in html and done["bytes"] == len(html.encode())
    shown = run("report", tmp_path / "model", tmp_path / "test.csv", "--out", tmp_path / "r.html")
    assert shown.code == 0 and re.search(r"accuracy +0\.\d{4}", shown.out)
    refused = run("report", tmp_path / "model", tmp_path / "test.csv", "--out", tmp_path / "test.csv")
    assert refused.code == 2 and "must end in .html" in refused.err


def test_explaining_warns_of_nothing_twice(tmp_path: Path) -> None:
    classifier = make("linear", max_tokens=8).fit(TEXTS, LABELS)
    with warnings.catch_warnings(record=True) as of_evaluate:
        warnings.simplefilter("always", sonde.errors.SondeWarning)
        evaluate(classifier, NEW_TEXTS, ["rail"] * 60)
    with warnings.catch_warnings(record=True) as of_report:
        warnings.simplefilter("always", sonde.errors.SondeWarning)
        report(classifier, NEW_TEXTS, ["rail"] * 60, tmp_path / "r.html")
    ours = [[str(w.message) for w in some if isinstance(w.message, SondeWarning)] for some in (of_evaluate, of_report)]
    assert ours[0] == ours[1]


# -------------------------------------------------------------------- doubts


def test_swapped_labels_are_found(lexical: TextClassifier) -> None:
    texts, labels = worded(120, seed=5, noise=0.0)
    swapped = {4: "rail", 9: "weather", 30: "rail", 77: "post"}
    swapped = {row: new for row, new in swapped.items() if labels[row] != new}
    assert len(swapped) >= 3
    subject = describe(lexical, texts, [swapped.get(row, label) for row, label in enumerate(labels)], "m")
    found, total = mislabelled(subject)
    assert {doubt.row for doubt in found[: len(swapped)]} == set(swapped) and total >= len(swapped)
    for doubt in found[: len(swapped)]:
        assert subject.classes[doubt.claimed] == labels[doubt.row] and doubt.given is not None
        assert subject.classes[doubt.given] == swapped[doubt.row] and doubt.probability > doubt.given_probability
    sure = [doubt.probability for doubt in mistakes(subject)]
    assert sure == sorted(sure, reverse=True) and {doubt.row for doubt in mistakes(subject)} >= set(swapped)


def test_a_class_is_believed_from_its_own_mean_on() -> None:
    p = np.array([[0.9, 0.1], [0.7, 0.3], [0.25, 0.75], [0.4, 0.6], [0.1, 0.9]])
    given = np.array([0, 0, 0, 1, 1])
    rows, suggested, margins = _doubted(p, given, np.ones(5, dtype=bool))
    # means: class 0 (.9 + .7 + .25) / 3 = .617; class 1 (.6 + .9) / 2 = .75: row 2 reaches it, and is given 0
    assert (rows.tolist(), suggested.tolist()) == ([2], [1]) and margins == pytest.approx([-0.5])
    rows, _, _ = _doubted(p, given, np.array([True, True, False, True, True]))
    assert rows.tolist() == []


def test_the_mean_of_a_class_without_rows_says_nothing() -> None:
    p = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1]])
    rows, _, _ = _doubted(p, np.array([0, 1]), np.ones(2, dtype=bool))
    assert rows.tolist() == [1]


# ----------------------------------------------------------------- intervals


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (7, 10), (10, 10), (933, 1000)])
def test_intervals_of_shares_are_those_of_scipy(right: int, rows: int) -> None:
    theirs = binomtest(right, rows).proportion_ci(method="wilson")
    assert wilson(right, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_intervals_of_differences_are_those_of_newcombe() -> None:
    """Table II of the paper, method 10: 56 of 70 less 48 of 80, and 9 of 10 less 3 of 10."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)


@pytest.mark.parametrize(("rows", "said"), [(20, "which agrees with this test"), (2000, "these texts are harder")])
def test_a_promise_of_few_rows_is_not_exact(
    rows: int, said: str, lexical: TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = ["rail" if label == "post" and row < 15 else label for row, label in enumerate(NEW_LABELS)]
    right = lexical.score(NEW_TEXTS, labels)
    assert wilson(round(60 * right), 60)[1] < 0.9
    promised = {**lexical.summary_, "out_of_fold": {"rows": rows, "accuracy": 0.9}}
    monkeypatch.setattr(lexical, "summary_", promised)
    assert said in written(tmp_path, lexical, NEW_TEXTS, labels).parts["headline"]


def test_no_rows_say_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_kinds_of_rows_are_drawn_as_rows_are() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(3)[rng.integers(3, size=200)]
    decided = np.eye(3, dtype=bool)[np.where(rng.random(200) < 0.7, truth.argmax(axis=1), rng.integers(3, size=200))]
    drawn = []
    for _ in range(1000):
        rows = rng.integers(200, size=200)
        drawn.append(metrics.macro_f1(truth[rows], decided[rows]))
    assert resampled(metrics.macro_f1, truth, decided) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.012)


def test_the_mean_lies_within_its_interval() -> None:
    factor = np.exp(1.9599640 * np.sqrt(14 / 3 / 4) / 3)
    assert around(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx((3 / factor, 3 * factor))
    assert around(np.zeros(3)) == (0.0, 0.0)
    few = around(np.array([0.0, 0.0, 0.0, 3.0]))
    assert few and few[0] > 0, "no loss is below 0"
    assert around(np.array([2.0])) is None, "one row says nothing of others"


@pytest.mark.parametrize("rows", [1, 3, 400])
def test_f1_without_an_error_is_no_surer_than_accuracy(rows: int) -> None:
    truth = np.eye(4)[np.arange(rows) % 3]
    for measure in (metrics.macro_f1, metrics.micro_f1):
        assert resampled(measure, truth, truth > 0) == wilson(rows, rows)
    truth[0] = 0  # a row without a label
    assert resampled(metrics.micro_f1, truth, truth > 0)[0] <= wilson(rows, rows)[0]


def test_one_row_leaves_f1_open() -> None:
    truth, decided = np.array([[1, 1, 0]]), np.array([[True, False, False]])
    low, high = resampled(metrics.micro_f1, truth, decided)
    assert 0 < low < 0.2 and 0.9 < high < 1
    assert resampled(metrics.micro_f1, truth, truth == 0) == pytest.approx(wilson(0, 1))


def test_f1_of_classes_with_few_rows_lies_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth = np.eye(60)[np.repeat(np.arange(60), 5)]
    wrong = rng.integers(60, size=300)
    decided = np.eye(60, dtype=bool)[np.where(rng.random(300) < 0.8, truth.argmax(axis=1), wrong)]
    low, high = resampled(metrics.macro_f1, truth, decided)
    point = metrics.macro_f1(truth, decided)
    assert low < point < high and abs(point - (low + high) / 2) < (high - low) / 8, "a draw misses rows: it is lower"


def test_labels_that_nobody_can_give_are_in_the_figure_and_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth, unknown = rng.random((200, 3)) < 0.4, rng.integers(4, size=200)
    decided = truth ^ (rng.random((200, 3)) < 0.1)
    point = metrics.micro_f1(truth, decided, None, unknown)
    low, high = resampled(metrics.micro_f1, truth, decided, unknown=unknown)
    assert low < point < high and high < metrics.micro_f1(truth, decided)


def test_macro_f1_counts_labels_that_nobody_can_give_in_figure_and_interval(
    lexical: TextClassifier, tmp_path: Path
) -> None:
    page = written(tmp_path, lexical, NEW_TEXTS, ["never seen", *NEW_LABELS[1:]])
    told = re.search(r"Macro F1([\d.]+)95% CI ([\d.]+)–([\d.]+)", page.parts["headline"])
    assert told
    point, low, high = map(float, told.groups())
    assert low <= point <= high < 0.8, "one class of four is never found"


def test_reliability_is_what_the_calibration_error_sums() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(4), 500)
    truth = np.eye(4)[[rng.choice(4, p=row) for row in p]]
    bins = metrics.reliability(truth, p)
    assert sum(one["decisions"] for one in bins) == 500 and len(bins) == 15
    gaps = sum(abs(one["right"] - one["decisions"] * one["confidence"]) for one in bins) / 500
    assert gaps == pytest.approx(metrics.expected_calibration_error(truth, p))
    assert all(one["least"] <= one["confidence"] <= one["most"] for one in bins)


# ------------------------------------------------------------ markup, charts


def test_only_markup_is_markup() -> None:
    assert element("p", "<b>", element("b", "x"), None, [1, "&"], class_="a", aria_label='"<') == (
        '<p class="a" aria-label="&quot;&lt;">&lt;b&gt;<b>x</b>1&amp;</p>'
    )
    assert joined(["<", element("i")]) == "&lt;<i></i>"
    with pytest.raises(AssertionError, match="none of them runs anything"):
        element("p", onclick="1")
    with pytest.raises(AssertionError, match="tags are ours"):
        element("p><script")


def test_what_browsers_act_upon_is_written_out() -> None:
    assert printable("a\0\x07\ud800\u202eb\r\nc\td") == "a\\x00\\x07\\ud800\\u202eb\nc\td"
    family = "क्ष می\u200cخواهم 👩\u200d👧"
    assert printable(family) == family, "joiners are part of words and pictures"


def test_shades_follow_the_sum_of_all_tokens() -> None:
    from sonde.explanation import Token

    tokens = [Token("cold", 0, 4, 2.0, False, 0), Token("wind", 5, 9, -1.0, False, 0),
              Token("[SEP]", None, None, 5.0, True, 0), Token("co", 0, 2, 0.5, False, None)]  # fmt: skip
    pieces = list(shaded("cold wind <", tokens))
    assert "".join(pieces) == (
        '<span class="pro s4" title="+1.50">co</span><span class="pro s4" title="+1.00">ld</span> '
        '<span class="con s4" title="−1.00">wind</span> &lt;'
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.11, [0, 0.05, 0.1]),
        (3, 87, [20, 40, 60, 80]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert round_values(low, high) == pytest.approx(expected)


def test_long_curves_are_thinned_between_their_ends() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    thin = thinned(points)
    assert len(thin) == 300 and (thin[0], thin[-1]) == (points[0], points[-1])
    assert thinned(points[:5]) == points[:5]


def test_a_chart_tells_what_it_shows() -> None:
    x, y = Axis("epoch", 1, 3), Axis("loss", 0, 10)
    drawn = chart("k", "Loss <by> epoch", "it falls", x, y, [Curve([(1, 10), (3, 0)], dots=True)], "Solid: loss.")
    page = Page(str(drawn))
    assert "Loss <by> epoch" in page.parts[""] and "it falls" in page.parts[""] and "Solid: loss." in page.parts[""]
    assert ("path", "d", "M52 12L376 234") in page.attributes, "from the upper left to the lower right"
