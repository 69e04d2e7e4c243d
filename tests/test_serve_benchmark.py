"""benchmarks/serve.py and load.py: the load judges every answer, and the page is made of the JSON alone."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import saved, worded
from serving import running

import sonde
from scripts import benchmark as script
from sonde.serve import guard as guarding
from sonde.serve.service import Service

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
NEW, _ = worded(30, seed=1)


folder = pytest.fixture(scope="module")(saved("lexical"))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running({"words": folder}) as started:
        yield started


def plan(service: Service, folder: Path, **settings: Any) -> dict[str, Any]:
    rows = list(zip(NEW, sonde.load(folder).predict_proba(NEW).astype(float).tolist(), strict=True))
    own = {"url": service.url, "rows": rows, "tolerance": 1e-5, "texts": 1, "connections": 3, "seconds": 0.3}
    return {**own, "rate": None, **settings}


@pytest.mark.parametrize("texts", [1, 10])
def test_right_answers_are_counted_and_timed(service: Service, folder: Path, texts: int) -> None:
    found = script("load").run(plan(service, folder, texts=texts))
    assert set(found["outcomes"]) == {"right"} and found["texts"] == texts * found["outcomes"]["right"] > 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"] <= found["latency_ms"]["p99"]
    assert found["largest_difference"] <= 1e-6 and 0 < found["client_cpu_seconds"] <= 2 * found["seconds"]


def test_an_open_loop_keeps_its_rate(service: Service, folder: Path) -> None:
    found = script("load").run(plan(service, folder, rate=50, seconds=1, connections=20))
    assert 20 <= sum(found["outcomes"].values()) <= 55 and found["outcomes"]["right"] >= 10


def test_wrong_lost_and_refused_answers_are_told_apart(
    service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = script("load")
    wrong = plan(service, folder)
    wrong["rows"] = [(text, [p + 2e-5 for p in every]) for text, every in wrong["rows"]]
    assert set(load.run(wrong)["outcomes"]) == {"wrong"}
    short = plan(service, folder)
    short["rows"] = [(text, every[:2]) for text, every in short["rows"]]
    assert set(load.run(short)["outcomes"]) == {"wrong"}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        lost = load.run(plan(service, folder, url=nowhere, seconds=0.1))
    assert set(lost["outcomes"]) == {"unreachable"} and lost["texts"] == 0 and lost["latency_ms"] == {}
    monkeypatch.setattr(guarding, "MAX_REQUESTS", 0)
    assert set(load.run(plan(service, folder))["outcomes"]) == {"refused"}


@pytest.mark.slow
def test_a_whole_run_writes_a_page_that_the_json_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv
    import gzip

    data = tmp_path / "ag_news"
    data.mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        with gzip.open(data / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(*worded(80, seed), strict=True)])
    benchmark = script("serve")
    monkeypatch.setattr(benchmark, "OVERLOAD_CONNECTIONS", 50)
    written = benchmark.run(
        data=tmp_path, out=tmp_path / "out", seconds=0.5, overload_seconds=1.0, recipe="lexical", dtype="float32",
        cache=None, connections=(1, 4), texts=64,
    )  # fmt: skip
    content = json.loads(written[0].read_text())
    page = written[1].read_text()
    assert page == benchmark.to_markdown(content)
    assert list(content["levels"]) == ["1", "4"] and content["levels"]["4"]["outcomes"]["right"] > 0
    for found in (content["batches"], *content["levels"].values(), content["overload"]):
        assert not {"wrong", "lost"} & found["outcomes"].keys()
        assert found["memory_mb"] > 50 and found["service_cpu_ms_a_text"] > 0
    assert "of offline**" in page and "0 wrong, 0 lost" in page and "texts of AG News" in page
