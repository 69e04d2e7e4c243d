"""The benchmark of trust on small data of our own: every part is filled, runs go on where they stopped."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from samples import worded
from sklearn.metrics import roc_auc_score

from sonde.bench import machine, rejection, trust
from sonde.learn.calibration import softmax
from sonde.learn.targets import Targets

RNG = np.random.default_rng(0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `run` on r8 made of three topics and imdb made of two of them."""
    for name, kept in (("r8", ("post", "rail", "weather")), ("imdb", ("post", "rail"))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for seed, split in enumerate(("train", "test")):
            rows = [row for row in zip(*worded(150, seed=seed), strict=True) if row[1] in kept]
            with gzip.open(tmp_path / "data" / name / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    monkeypatch.setattr(trust, "BACKBONE", str(tiny.build("bert")))
    return {"data": tmp_path / "data", "models": None, "out": tmp_path, "rows": None, "cache": None}


def test_every_part_is_filled_and_a_second_run_fits_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = trust.run(**settings, only=["r8", "imdb"])
    content, page = json.loads(paths[0].read_text()), paths[1].read_text()
    assert set(content["cells"]) == {"imdb", "r8", "r8|without 0", "r8|without 1", "r8|without 2"}
    cell = content["cells"]["r8"]
    assert {found["alpha"] for found in cell["conformal"]} == {0.1, 0.05}
    assert all(abs(found["halvings"]["coverage"] - 1 + found["alpha"]) < 0.02 for found in cell["conformal"])
    assert all(
        found["train"]["low"] < found["train"]["coverage"] < found["train"]["high"] for found in cell["conformal"]
    )
    assert cell["report"]["ece_95"] > 0 and "per_class" not in cell["report"]
    left = [content["cells"][f"r8|without {i}"] for i in range(3)]
    assert sorted(name for one in left for name in one["classes"]) == ["post", "rail", "weather"]
    assert all(one["unknown_rows"] == 50 and one["known_rows"] == 100 for one in left)
    assert all(one["auroc"].keys() == rejection.SCORES.keys() for one in left)
    assert machine.sentence(content["machine"]) in page and page == trust.to_markdown(content)
    for head in ("## Calibration", "## Label sets", "## Abstention", "## Texts of unknown classes"):
        assert page.count(head) == 1
    monkeypatch.setattr(trust, "_classifier", lambda *_: pytest.fail("a finished cell was fitted again"))
    trust.run(**settings, only=["r8"])
    assert paths[1].read_text() == page


def test_a_trial_and_the_whole_are_not_mixed(settings: dict[str, Any]) -> None:
    paths = trust.run(**{**settings, "rows": 60}, only=["imdb"])
    assert "**A trial: at most 60 rows of each split.**" in paths[1].read_text()
    trust.run(**settings, only=["imdb"])
    content = json.loads(paths[0].read_text())
    assert content["rows_limit"] is None and content["cells"]["imdb"]["train_rows"] == 100
    assert "A trial" not in paths[1].read_text()


def test_a_set_that_is_shifted_is_not_judged() -> None:
    report = {"accuracy": 0.8, "log_loss": 0.5, "ece": 0.05, "ece_95": 0.02, "n": 10}
    shown = trust._calibration({name: {"report": report, "train_rows": 5} for name in ("r8", "sst2")})
    assert shown.count("| no |") == 1 and "trained on phrases, tested on sentences" in shown


@pytest.mark.parametrize("alpha", [0.1, 0.05])
def test_halvings_cover_what_they_promise(alpha: float) -> None:
    logits = RNG.normal(size=(3000, 6)) * 3
    drawn = (softmax(logits).cumsum(axis=1) > RNG.random((3000, 1))).argmax(axis=1)
    targets = Targets(np.arange(6), np.eye(6, dtype=np.float32)[drawn], False)
    found = trust.halvings(softmax(logits * 2), targets, alpha)
    assert found["coverage"] == pytest.approx(1 - alpha, abs=0.004)
    assert 0 < found["deviation"] < 0.03 and found["size"] > 1 - alpha
    assert trust.halvings(softmax(logits * 2), targets, alpha) == found


def test_classes_are_dealt_into_quarters() -> None:
    parts = rejection.quarters(np.array(list("abcdefgh") * 2))
    assert sorted(name for part in parts for name in part) == list("abcdefgh") and [len(p) for p in parts] == [2] * 4
    assert [len(part) for part in rejection.quarters(np.array(list("abc")))] == [1, 1, 1]
    assert rejection.quarters(np.array(["a", "b"])) == []


def test_scores_rise_with_what_is_strange() -> None:
    """Two directions of known texts; strange ones lie elsewhere, or are told by their probabilities alone."""
    known = np.repeat(np.eye(8)[:2], 100, axis=0) + RNG.normal(size=(200, 8)) * 0.1
    test = np.concatenate([known[::2] + RNG.normal(size=(100, 8)) * 0.1, np.repeat(np.eye(8)[2:3], 50, axis=0)])
    strange = np.arange(150) >= 100
    sure = np.where(strange, RNG.uniform(0, 4, 150), RNG.uniform(2, 6, 150))
    found = rejection.scores(
        sure * RNG.choice([-1, 1], 150), 1 / (1 + np.exp(-RNG.uniform(2, 6, 300))),
        known.astype(np.float32), test.astype(np.float32),
    )  # fmt: skip
    auroc = {name: roc_auc_score(strange, score) for name, score in found.items()}
    assert auroc["neighbours"] == 1 and 0.8 < auroc["probability"] < 0.95
    assert auroc["both"] > 0.95
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(sure)), rtol=1e-6)


def test_p_values_are_shares_of_known_texts() -> None:
    known = np.array([1.0, 2.0, 2.0, 3.0])
    found = rejection._share_as_strange(known, np.array([0.0, 2.0, 2.5, 4.0]))
    assert found.tolist() == [1.0, 0.8, 0.4, 0.2]


def test_a_part_without_test_rows_says_nothing() -> None:
    cell = {"auroc": dict.fromkeys(rejection.SCORES), "unknown_rows": 0, "known_rows": 5, "classes": ["a"]}
    filled = {**cell, "auroc": dict.fromkeys(rejection.SCORES, 0.75), "unknown_rows": 3}
    shown = rejection.to_markdown({"r8": {}, "r8|without 0": cell, "r52|without 0": filled, "r52|without 1": filled})
    assert "| R8 |" not in shown and "| R52 | 2 | 6 | 0.750 (0.750-0.750) |" in shown
