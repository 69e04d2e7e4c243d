"""`sonde compare`: the table grows candidate by candidate, survives every kind of stop, and recommends by evidence."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from loopback import Loopback, Reply
from samples import Run, worded
from scipy.stats import binomtest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline

from sonde import TextClassifier
from sonde.baselines import Endpoint, IOPrompt
from sonde.baselines.knn import KNN
from sonde.bench import compare as comparing
from sonde.bench.candidates import CANDIDATES, Candidate, Setting
from sonde.bench.compare import Rows, compare, fit_and_measure, lines, recommend
from sonde.bench.tables import pack
from sonde.cost import Meter
from sonde.errors import ArgumentError, DataError, ModelError, SondeWarning
from sonde.evaluation import evaluate
from sonde.tables import write_table

TRAIN, TEST = Rows(*worded(90)), Rows(*worded(45, seed=1))
SETTING = Setting((str(tiny.build("bert")),), cache=None)


def words(_: Setting) -> Any:
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


def ridge(_: Setting) -> Any:
    return make_pipeline(TfidfVectorizer(), RidgeClassifier())


def refused(_: Setting) -> Any:
    raise ModelError("It cannot be done.")


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Candidate]:
    """Two of scikit-learn, one without probabilities, and one that refuses."""
    found = {name: Candidate(name, name, make) for name, make in (("words", words), ("ridge", ridge), ("no", refused))}
    monkeypatch.setattr(comparing, "CANDIDATES", found)
    return found


def test_figures_are_those_of_the_predictions(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json")
    for name, make in (("words", words), ("ridge", ridge)):
        right = make(SETTING).fit(TRAIN.texts, TRAIN.labels).predict(TEST.texts) == np.array(TEST.labels)
        cell, interval = found["cells"][name], binomtest(int(right.sum()), 45).proportion_ci(method="wilson")
        assert cell["accuracy"] == right.mean() and cell["correct"] == pack(right)
        assert (cell["low"], cell["high"]) == (interval.low, interval.high)
        assert cell["texts_per_second"] > 0 and cell["bytes"] is None
        assert cell["cost"]["stages"]["training"]["energy"]["estimated"] in (True, False)
    assert found["cells"]["words"]["ece"] > 0 and found["cells"]["ridge"]["ece"] is None
    assert found["cells"]["no"] == {"title": "no", "failed": "It cannot be done."}
    page = Path(found["written"][1]).read_text()
    assert "`no`: It cannot be done." in page and str(found["reason"]) in page and "| `ridge` |" in page


def test_a_second_run_makes_only_what_is_missing(
    candidates: dict[str, Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["words"])
    monkeypatch.setitem(candidates, "words", Candidate("words", "", lambda _: pytest.fail("it was finished")))
    second = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["words", "ridge"])
    assert list(second["cells"]) == ["words", "ridge"]
    assert second["cells"]["words"] == first["cells"]["words"]
    other = Rows(TEST.texts[1:], TEST.labels[1:])
    with pytest.raises(ArgumentError, match="a comparison of other rows"):
        compare(TRAIN, other, SETTING, tmp_path / "out.json", names=["words"])
    assert list(json.loads((tmp_path / "out.json").read_text())["cells"]) == ["words", "ridge"], "nothing is lost"
    (tmp_path / "notes.json").write_text("my notes")
    with pytest.raises(ArgumentError, match="is no comparison"):
        compare(TRAIN, TEST, SETTING, tmp_path / "notes.json", names=["words"])
    assert (tmp_path / "notes.json").read_text() == "my notes"


class Slow:
    """Learns for ever."""

    def fit(self, *_: Any) -> Any:
        time.sleep(60)


class Stopped:
    """Its user loses patience."""

    def fit(self, *_: Any) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("learner", "limit"), [(Slow, 1.5), (Stopped, None)])
def test_what_is_done_is_kept_when_time_or_patience_ends(
    candidates: dict[str, Candidate], tmp_path: Path, learner: type, limit: float | None
) -> None:
    candidates["slow"] = Candidate("slow", "", lambda _: learner())
    candidates["after"] = candidates["ridge"]
    compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["words"])
    started = time.monotonic()
    names = ["words", "slow", "after"]
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=names, time_limit=limit)
    assert time.monotonic() - started < 20, "it did not wait for the slow one"
    assert list(found["cells"]) == ["words"] and found["missing"] == ["slow", "after"]
    assert found["interrupted"] == (learner is Stopped)
    assert found["recommended"] == "words" and "only one that has finished" in str(found["reason"])
    assert list(json.loads((tmp_path / "out.json").read_text())["cells"]) == ["words"]


def cell(right: int, rows: int = 200, speed: float = 100.0, shift: int = 0) -> dict[str, Any]:
    bits = np.roll(np.arange(rows) < right, shift)
    return {
        "n": rows,
        "accuracy": right / rows,
        "macro_f1": right / rows,
        "correct": pack(bits),
        "texts_per_second": speed,
    }


def test_the_best_is_recommended_and_what_chance_may_hide_is_said() -> None:
    found = recommend({"slow": cell(160), "near": cell(156, speed=1000.0), "far": cell(100, speed=9000.0)})
    assert found["recommended"] == "slow"
    reason = str(found["reason"])
    assert "highest accuracy of 3 on 200 test rows, .800 (chosen on these rows, so a little too good)." in reason
    assert "may be chance over near (.780, p 0.12)" in reason and "far" not in reason
    assert "take near: 10 times as many texts a second" in reason
    alone = str(recommend({"one": cell(160), "other": cell(100)})["reason"])
    assert "No other is within chance of it" in alone and "If speed counts" not in alone
    equal = recommend({"slow": cell(160), "fast": cell(160, speed=200.0)})
    assert equal["recommended"] == "fast"
    assert "too good" not in str(recommend({"one": cell(160)})["reason"]), "it was not chosen"
    assert recommend({"no": {"failed": "..."}})["recommended"] is None


def test_lines_stand_in_order_and_say_what_is_estimated(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    cells = compare(TRAIN, TEST, SETTING, tmp_path / "out.json")["cells"]
    found = lines(cells)
    assert set(found) == {"words", "ridge"}
    best = max(cells[name]["accuracy"] for name in found)
    assert cells[next(iter(found))]["accuracy"] == best
    for name, line in found.items():
        energy = cells[name]["cost"]["stages"]["training"]["energy"]
        assert line[-1].startswith("~") == energy["estimated"]


@pytest.mark.parametrize("name", ["auto", "lexical", "llmembed-15"])
def test_recipes_are_candidates(name: str, tmp_path: Path) -> None:
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=[name])
    figures = found["cells"][name]
    assert "failed" not in figures, figures
    assert figures["bytes"] > 1000 and 0 <= figures["ece"] <= 1 and figures["accuracy"] > 1 / 3


@pytest.mark.parametrize("name", ["svm", "knn", "finetune", "lora"])
def test_baselines_are_candidates(name: str, tmp_path: Path) -> None:
    if name == "lora":
        pytest.importorskip("peft", reason="the extra `finetune` is not installed")
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=[name])
    figures = found["cells"][name]
    assert "failed" not in figures, figures
    assert figures["accuracy"] > 1 / 3 and figures["texts_per_second"] > 0


def test_speed_is_that_of_texts_which_no_store_holds(tmp_path: Path) -> None:
    class Watched(BaseEstimator):
        def __init__(self, inner: Any = None, cache: Any = "here") -> None:
            self.inner, self.cache, self.seen = inner, cache, []

        def predict(self, texts: list[str]) -> list[str]:
            self.seen.append((self.cache, self.inner and self.inner.cache))
            return texts

    one = Watched(Watched())
    rates = comparing._rates(one, ["a", "b"], Meter())
    assert set(rates) == {"texts_per_second", "texts_per_cpu_second"} and min(rates.values()) > 0
    assert set(one.seen) == {(None, None)} and len(one.seen) == 1 + comparing.PASSES, "warmed up; what is fast, again"
    assert (one.cache, one.inner.cache) == ("here", "here")


def test_speed_of_neighbours_is_that_of_texts_which_no_store_holds() -> None:
    seen = []

    class Lengths(TransformerMixin, BaseEstimator):
        def __init__(self, cache: Any = "here") -> None:
            self.cache = cache

        def fit(self, texts: list[str], labels: Any = None) -> "Lengths":
            return self

        def transform(self, texts: list[str]) -> np.ndarray:
            seen.append(self.cache)
            return np.array([[len(text), 1.0] for text in texts])

    knn = KNN(Lengths(), k=2).fit(["a", "aa", "aaa", "aaaa"], ["x", "x", "y", "y"])
    comparing._rates(knn, ["a", "b"], Meter())
    knn.predict(["a"])
    assert seen == ["here", *[None] * (1 + comparing.PASSES), "here"]


def test_the_best_guess_comes_first() -> None:
    assert next(iter(CANDIDATES)) == "auto"


def test_several_labels_a_text(tmp_path: Path) -> None:
    def several(rows: Rows) -> Rows:
        return Rows(rows.texts, [[label, "long"] if len(text) > 45 else [label] for text, label in zip(rows.texts, rows.labels, strict=True)])  # fmt: skip  # noqa: E501

    found = compare(several(TRAIN), several(TEST), SETTING, tmp_path / "out.json", names=["lexical"])
    assert found["cells"]["lexical"]["macro_f1"] > 0.3


def test_a_matrix_of_labels_is_measured_as_one(tmp_path: Path) -> None:
    def matrix(rows: Rows) -> Rows:
        return Rows(rows.texts, [[int(label == "post"), int(len(text) > 45)] for text, label in zip(rows.texts, rows.labels, strict=True)])  # fmt: skip  # noqa: E501

    found = compare(matrix(TRAIN), matrix(TEST), SETTING, tmp_path / "out.json", names=["lexical", "svm", "knn"])
    told = [[int(a) for a in b] for b in matrix(TEST).labels]
    model = TextClassifier("lexical", cache=None).fit(TRAIN.texts, matrix(TRAIN).labels)
    assert found["cells"]["lexical"]["accuracy"] == evaluate(model, TEST.texts, told)["accuracy"] > 0.5
    assert min(cell["accuracy"] for cell in found["cells"].values()) > 0.3


def broken(_: Setting) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")


def test_a_candidate_that_breaks_does_not_end_the_comparison(
    candidates: dict[str, Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(candidates, "no", Candidate("no", "no", broken))
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["no", "words"])
    assert found["cells"]["no"]["failed"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    assert found["recommended"] == "words"


def test_rows_without_a_label_are_told() -> None:
    with pytest.warns(SondeWarning, match="1 rows have no label and are left out"):
        assert len(Rows.of(["a", "b"], ["x", None]).texts) == 1


def test_a_language_model_is_charged_for_what_it_read(tmp_path: Path) -> None:
    def asks(_: Setting) -> Any:
        return IOPrompt(Endpoint(server.url, concurrency=1), samples=2, temperature=0.5, answers=None)

    with Loopback(lambda *_: Reply("post")) as server:
        cell = fit_and_measure(Candidate("io", "io", asks), TRAIN, TEST, SETTING)
        assert len(server.answered) == 2 * len(TEST.texts)
    stage = cell["cost"]["stages"]["inference_on_all_rows"]
    assert stage["prompt_tokens"] > 100 and stage["new_tokens"] == 2 * len(TEST.texts)
    assert cell["stored_share"] == 0


def test_what_was_refused_is_tried_again(
    candidates: dict[str, Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "failed" in compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["no"])["cells"]["no"]
    monkeypatch.setitem(candidates, "no", Candidate("no", "", words))
    assert compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["no"])["cells"]["no"]["accuracy"] > 0.3


def test_a_test_of_rows_says_nothing_of_macro_f1() -> None:
    reason = str(recommend({"one": cell(160), "other": cell(100)}, "macro_f1")["reason"])
    assert "highest macro F1 of 2" in reason and reason.endswith("is chance is not tested for macro F1.")


def test_nothing_is_written_over(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ArgumentError, match=r"notes\.md stands where the page would be written"):
        compare(TRAIN, TEST, SETTING, tmp_path / "notes.json", names=["words"])
    with pytest.raises(ArgumentError, match=r"notes\.md is no name for the figures; give one that ends in \.json"):
        compare(TRAIN, TEST, SETTING, tmp_path / "notes.md", names=["words"])
    assert (tmp_path / "notes.md").read_text() == "mine"
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        compare(TRAIN, TEST, SETTING, tmp_path / "notes.md" / "deep" / "out.json", names=["words"])


def test_test_rows_that_tell_little_are_named_once(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    odd = Rows([*TRAIN.texts[:5], "one more"], [*TRAIN.labels[:5], "never"])
    with pytest.warns(SondeWarning) as caught:
        compare(TRAIN, odd, SETTING, tmp_path / "out.json", names=["words", "ridge"])
    codes = [w.message.code for w in caught if isinstance(w.message, SondeWarning)]
    assert sorted(codes) == ["seen_in_training", "unseen_labels"]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"candidate.*'autt'.*auto, lexical"):
        compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["autt"])
    for endless in (float("inf"), 1e20):
        with pytest.raises(ArgumentError, match="must be above 0, and"):
            compare(TRAIN, TEST, SETTING, tmp_path / "out.json", time_limit=endless)
    with pytest.raises(ArgumentError, match="must be above 0"):
        compare(TRAIN, TEST, SETTING, tmp_path / "out.json", time_limit=0)
    with pytest.raises(DataError, match="no labelled rows"):
        Rows.of(["a"], [None])
    assert Rows.of(["a", "b"], [None, "x"]) == Rows(["b"], ["x"])


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    for name, rows in (("train", TRAIN), ("test", TEST)):
        write_table(tmp_path / f"{name}.csv", {"text": rows.texts, "label": rows.labels})
    out = tmp_path / "out.json"
    asked = ("compare", tmp_path / "train.csv", tmp_path / "test.csv", "--only", "lexical", "--no-cache", "--out", out)
    done = run(*asked)
    assert done.code == 0, done.err
    assert "lexical: the only one that has finished" in done.out and "texts/s" in done.out
    again = run(*asked, "--json")
    assert json.loads(again.out)["recommended"] == "lexical"
    assert out.with_suffix(".md").is_file()
    bad = run(*asked, "--time-limit", "0")
    assert bad.code == 2 and "must be above 0" in bad.err


def test_after_an_interrupt_the_command_shows_what_is_done_and_exits_with_130(
    candidates: dict[str, Candidate], run: Run, tmp_path: Path
) -> None:
    candidates["slow"] = Candidate("slow", "", lambda _: Stopped())
    for name, rows in (("train", TRAIN), ("test", TEST)):
        write_table(tmp_path / f"{name}.csv", {"text": rows.texts, "label": rows.labels})
    asked = ("compare", tmp_path / "train.csv", tmp_path / "test.csv", "--only", "words", "--only", "slow")
    done = run(*asked, "--no-cache", "--out", tmp_path / "out.json", "--json")
    assert done.code == 130 and done.err.endswith("error: interrupted.\n")
    found = json.loads(done.out)
    assert list(found["cells"]) == [found["recommended"]] == ["words"] and found["missing"] == ["slow"]


class Deaf:
    """Swallows whatever interrupts it, once."""

    def fit(self, *_: Any) -> Any:
        for seconds in (0.7, 60):
            try:
                time.sleep(seconds)
            except Exception:
                continue


def test_a_time_limit_is_heard_by_who_catches_every_exception(candidates: dict[str, Candidate], tmp_path: Path) -> None:
    candidates["deaf"] = Candidate("deaf", "", lambda _: Deaf())
    started = time.monotonic()
    found = compare(TRAIN, TEST, SETTING, tmp_path / "out.json", names=["deaf"], time_limit=0.5)
    assert time.monotonic() - started < 20 and found["missing"] == ["deaf"]


def test_the_best_by_the_metric_stands_first() -> None:
    cost = {"cost": {"stages": {"training": {"seconds": 1.0, "energy": None}}}, "bytes": None, "ece": None, "low": 0.0}
    rare, common = ({**cell(n), **cost, "high": 1.0, "macro_f1": f1} for n, f1 in ((150, 0.9), (160, 0.5)))
    assert list(comparing.lines({"common": common, "rare": rare}, "macro_f1")) == ["rare", "common"]
    assert list(comparing.lines({"rare": rare, "common": common})) == ["common", "rare"]
