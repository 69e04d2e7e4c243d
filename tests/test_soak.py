"""benchmarks/soak.py and large_fit.py: what they send, what they count, and pages made of the JSON alone."""

import csv
import gzip
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import saved, worded
from serving import running

from scripts import benchmark as script
from sonde.serve.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")

SOAK = script("soak")
folder = pytest.fixture(scope="module")(saved("lexical"))


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    with running({"model": folder}) as started:
        yield started


def test_a_stranger_is_told_what_is_due(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = SOAK.Stranger(service.url)
    for what, (method, path, body, due) in SOAK.hostile(random.Random(0)).items():
        try:
            found = stranger.ask(method, path, body)
        except OSError as error:
            found = type(error).__name__
        assert found in due, (what, found)


def test_a_stranger_goes_on_until_he_is_stopped_and_tells_surprises(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SOAK, "PAUSE_SECONDS", 0.0)
    odd = {"a text": ("POST", "/v1/classify", b'{"text": "the cold wind"}', (503,))}
    monkeypatch.setattr(SOAK, "hostile", lambda _: odd)
    with SOAK.Stranger(service.url) as stranger:
        deadline = time.monotonic() + 30
        while stranger.told["a text", "200"] < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
    count = stranger.told["a text", "200"]
    assert count > 3 and stranger.surprises == ["a text: 200"] * count
    time.sleep(0.1)
    assert stranger.told["a text", "200"] == count


def test_growth_is_from_the_warm_to_the_end() -> None:
    rising = [(float(second), 100.0 + (second < 20) * -50 + (second >= 80) * 10) for second in range(100)]
    assert SOAK.growth(rising) == (100.0, 110.0)
    assert SOAK.growth([(0.0, 7.0)]) == (7.0, 7.0)


def files(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        with gzip.open(folder / name / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(*worded(80, seed), strict=True)])


@pytest.mark.slow
def test_a_short_soak_with_reloads_and_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "ag_news")
    for name, value in {"RELOAD_SECONDS": 0.5, "LOOK_SECONDS": 0.1, "PAUSE_SECONDS": 0.05, "SHARE": 0.2}.items():
        monkeypatch.setattr(SOAK, name, value)
    written = SOAK.run(
        data=tmp_path, out=tmp_path / "out", minutes=0.2, restarts=1, recipe="lexical", dtype="float32", note="Short."
    )
    content = json.loads(written[0].read_text())
    page = written[1].read_text()
    assert page == SOAK.to_markdown(content) and "Short." in page
    assert len(content["lives"]) == 2 and (tmp_path / "out" / "soak.svg").read_text().startswith("<svg")
    for life in content["lives"]:
        assert life["surprises"] == [] and life["ended_early"] is None and sum(life["told"].values()) > 10
        assert life["reloads"].get("done", 0) >= 2 and "failed" not in life["reloads"]
        assert len(life["memory_mb"]) > 10 and min(mb for _, mb in life["memory_mb"]) > 30
    outcomes = content["load"]["outcomes"]
    assert outcomes["right"] > 50 and "wrong" not in outcomes
    assert outcomes.get("lost", 0) <= 2  # who connects just as it ends is cut off before he is accepted
    assert "Nothing else than what was due." in page


@pytest.mark.slow
def test_a_large_fit_is_watched_and_judged(tmp_path: Path) -> None:
    script_of = script("large_fit")
    files(tmp_path, "sst2")
    written = script_of.run(data=tmp_path, out=tmp_path / "out", file_rows=500, rows=120, recipes=("lexical",))
    content = json.loads(written[0].read_text())
    assert written[1].read_text() == script_of.to_markdown(content)
    [fit] = content["cells"].values()
    assert fit["rows"] == 120 and fit["accuracy"] > 0.6 and 0.02 < fit["peak_gb"] < 5
    assert "within" in written[1].read_text()
    fit["peak_gb"] = 9.0
    assert "**above**" in script_of.to_markdown(content)
