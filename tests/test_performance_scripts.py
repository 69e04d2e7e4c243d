"""The scripts that time reading, on tiny models: what they count, what they refuse, pages made of the JSON alone."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from scripts import benchmark as script
from sonde.bench import machine
from sonde.read.sources import open_sources

SETS = ("ag_news", "sst2", "imdb")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in SETS:
        (folder / name).mkdir()
        rows = [(" ".join([tiny.SENTENCES[i % 6]] * (1 + i % 2)) + f" {i}", str(i % 2)) for i in range(48)]
        for split in ("train", "test"):
            with gzip.open(folder / name / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    return folder


def times(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": one, "cpu_seconds": 2 * one} for one in seconds]


def test_a_ratio_is_the_median_of_pairs_not_of_medians() -> None:
    found = script("ratios").ratio(times(2, 30, 4), times(1, 10, 4))
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize(("count", "places"), [(1, (0, 0)), (5, (0, 4)), (7, (0, 6)), (9, (1, 7)), (20, (5, 14))])
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, places: tuple[int, int]) -> None:
    assert script("ratios").interval(count) == places


def test_texts_are_identified_with_their_bounds() -> None:
    sha256_of = script("ratios").sha256_of
    assert sha256_of(["ab", "c"]) != sha256_of(["a", "bc"])
    assert sha256_of(["ab", "c"]) == sha256_of(["ab", "c"])


def test_the_least_cosine_is_that_of_the_worst_row() -> None:
    a = np.array([[1, 0], [0, 2]], dtype=np.float32)
    assert script("ratios").lowest_cosine(a, np.array([[3, 0], [1, 1]], dtype=np.float32)) == pytest.approx(2**-0.5)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with script("ratios").threads(1) as count:
        assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_what_is_asked_is_said_to_be_missed_or_reached() -> None:
    against = script("ratios").against
    found = {"median": 1.2, "low": 1.1, "high": 1.3}
    assert [against(found, 1.3), against(found, 1.2, 2), against(found, 1.0, 1.1)] == [
        "**missed**", "reached", "goal reached"
    ]  # fmt: skip


@pytest.mark.slow
def test_the_limit_counts_the_linear_maps_of_a_reading_and_times_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("limit")
    benchmark.main([
        "--data", str(data), "--rows", "12", "--rounds", "2", "--threads", "1", "--out", str(tmp_path),
        "--backbone", str(tiny.build("bert")),
    ])  # fmt: skip
    content = json.loads((tmp_path / "limit.json").read_text())
    for name in ("ag_news", "sst2"):
        every, last = content["sets"][name]["every"], content["sets"][name]["last"]
        assert every["gflop"] <= last["gflop"]  # the last layer of this model is its pooler, one linear map more
        share, products = last["share"]["cpu_seconds"], last["times"]["products"]  # so small a share may round to 0
        assert 0 <= share["low"] <= share["high"] and all(one["seconds"] > 0 for one in products)
        assert last["operators"][0]["share"] <= 1
    assert (tmp_path / "limit.md").read_text() == benchmark.to_markdown(content)
    assert "AG News" in capsys.readouterr().out


def test_products_are_those_of_the_linear_maps() -> None:
    benchmark = script("limit")
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    shapes = benchmark.shapes_of(lambda: [model(torch.ones(2, 4, 3)) for _ in range(2)], model)
    assert shapes == Counter({(8, 3, 5): 2, (8, 5, 2): 2})
    products = benchmark.Products(shapes, torch.float32)
    assert products.flop == 2 * 2 * 8 * (3 * 5 + 5 * 2)
    products.run()
    assert products.best_rate(1) > 0


PLAIN: dict[str, Any] = {"max_tokens": None, "long_text": "cut", "dtype": "float32", "device": "cpu"}


def test_attention_is_counted_as_two_products_a_block() -> None:
    benchmark, source = script("limit"), open_sources({0: str(tiny.build("bert"))}, **PLAIN)[0]
    lengths = [len(source.backbone.tokenizer(text)["input_ids"]) for text in tiny.SENTENCES[:2]]
    found = benchmark.attention_flop([*tiny.SENTENCES[:2], tiny.SENTENCES[0]], source)  # equal texts are read once
    width = source.backbone._forward.model.config.hidden_size
    assert lengths[0] != lengths[1]
    assert found == tiny.LAYERS * sum(2 * (2 * length * length * width) for length in lengths)


def a_reading(**changes: Any) -> dict[str, Any]:
    """Measurements as `reading.measure` gives them."""
    seconds = {
        "st_float32": 40,
        "st_bfloat16": 14,
        "last": 10,
        "hidden": 11,
        "every": 12,
        "float32": 36,
        "untapped": 9.9,
    }
    return {
        "rows": 100, "tokens": 5000, "sha256": "0", "lowest_cosine": {"last": 0.9998},
        "times": {name: times(*[float(value)] * 7) for name, value in (seconds | changes).items()},
    }  # fmt: skip


def test_ratios_of_reading_are_judged_by_the_weakest_set() -> None:
    benchmark = script("reading")
    content: dict[str, Any] = {"sets": {"ag_news": a_reading(), "sst2": a_reading(every=20)}}
    content["summary"] = found = benchmark.summary(content)
    assert found["ag_news"]["seconds"]["last layer, beside the default"]["median"] == 4.0
    assert found["ag_news"]["texts_a_second"]["last"] == 10.0
    page = benchmark.ratios_table(content, "seconds")
    assert (
        "| all hidden and feed-forward sites, beside the default | 3.33 (3.33 to 3.33) | 2.00 (2.00 to 2.00) " in page
    )
    assert "| 3 (goal 4) | **missed** |" in page and "| 1.3 | reached |" in page and "int8" not in page
    assert "SST-2 2.02 (2.02 to 2.02); **not within** 1.25." in benchmark.taps(content)


@pytest.mark.slow
def test_reading_is_timed_beside_sentence_transformers_in_its_own_process(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    script("reading").main(["--data", str(data), "--rounds", "2", "--scale", "0.01", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "reading.json").read_text())
    assert set(content["sets"]) == {"ag_news", "sst2", "imdb"} and list(content["skipped"]) == ["st_int8"]
    for found in content["sets"].values():
        assert found["lowest_cosine"]["float32"] > 0.99999 and set(found["times"]) >= {"st_float32", "st_bfloat16"}
        assert all(one["seconds"] > 0 and one["cpu_seconds"] > 0 for times in found["times"].values() for one in times)


def test_unequal_vectors_are_not_timed() -> None:
    benchmark = script("reading")
    vectors = np.eye(3, dtype=np.float32)
    made = {name: lambda _: vectors for name in ("st_float32", "st_bfloat16", "float32", "hidden", "every", "untapped")}
    other = vectors.copy()
    other[0, 1] = 0.1
    with pytest.raises(benchmark.DataError, match=r"last gives other vectors.*0\.99504, below 0\.999"):
        benchmark.equality(["a", "b", "c"], made | {"last": lambda _: other})


@pytest.mark.slow
def test_the_released_way_is_timed_beside_ours_and_says_what_it_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = script("released")
    monkeypatch.setattr(benchmark, "WAYS", {name: benchmark.Way(12, 32, 5) for name in SETS})
    monkeypatch.setattr(benchmark, "DEPTHS", "hidden.-2:")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark.main([
        "--data", str(data), "--model", str(tiny.build("llama")), "--rounds", "2", "--threads", "1",
        "--out", str(tmp_path),
    ])  # fmt: skip
    content = json.loads((tmp_path / "released.json").read_text())
    sst2 = content["sets"]["sst2"]
    assert sst2["padded"] == 12 * 32 / sst2["tokens"] and sst2["padded"] > 1
    assert set(sst2["times"]) == {
        f"{way} {dtype}" for way in ("released", "sonde") for dtype in ("float32", "bfloat16")
    }
    page = (tmp_path / "released.md").read_text()
    assert page == benchmark.to_markdown(content)
    assert "Skipped: no CUDA device." in page and "Skipped: no CUDA device." in capsys.readouterr().out


def test_shut_units_are_left_out_on_both_sides_of_a_comparison_of_solvers() -> None:
    benchmark = script("heads")
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 2
    x = (generator.normal(size=(120, 6)) + labels[:, None] * [2, 1, 0, 0, 0, 0]).astype(np.float32)
    x[:, 4], x[:, 5] = 1e-33 * labels, 3.0  # a label told by what is rounding; a constant
    found = benchmark.compared(x, labels, 60, 2, 0)
    assert found["features"] == 4 and max(found["gaps"].values()) <= benchmark.GAP


def test_the_released_way_counts_pads_and_the_check_leaves_them_out() -> None:
    benchmark = script("released")
    source = benchmark.open_sources(
        {0: str(tiny.build("llama"))}, max_tokens=32, long_text="cut", dtype="float32", device="cpu"
    )[0]
    texts = tiny.SENTENCES[:4]
    (block,) = benchmark.expand_blocks(0, source, "hidden.-1", "mean")
    ours = benchmark.read(texts, {0: source}, [block]).blocks[block.name]
    way = script("padded").Padded(str(tiny.build("llama")), "float32", 32, 3)
    masked = way.read(texts, masked=True)
    np.testing.assert_allclose(ours, masked[-1], rtol=1e-4, atol=1e-5)
    assert np.abs(way.read(texts)[-1] - ours).max() > 1e-2


def test_the_part_for_a_gpu_runs_on_any_device() -> None:
    benchmark = script("released")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
             "vocab_size": 100}  # fmt: skip
    found = benchmark.on_device(shape, [3, 9, 9, 4], benchmark.Way(4, 16, 3), "cpu")
    assert found["tokens"] == 25 and found["padded"] == 64 / 25
    assert found["tokens_a_second"] > 0 and 0 <= found["share_of_peak"] < 1
    assert found["peak_memory_gb"] is None
    assert "| SST-2 |" in benchmark._gpu_part({"sst2": found})


def test_unequal_states_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = script("released")
    monkeypatch.setattr(benchmark, "DEPTHS", "hidden.-1")
    other = SimpleNamespace(vectors=lambda texts: np.ones((len(texts), 32), np.float32))
    monkeypatch.setattr(benchmark, "released", lambda *_: nullcontext(other))
    with pytest.raises(benchmark.DataError, match="The two ways give other vectors in float32"):
        benchmark.measure(tiny.SENTENCES, benchmark.Way(6, 32, 3), str(tiny.build("llama")), 1, 1)


def test_repeated_texts_differ_by_their_number() -> None:
    assert script("memory").numbered(["a", "b"], 3) == ["a 0", "b 1", "a 2"]


def test_growth_of_memory_is_judged() -> None:
    growth = script("memory").growth
    runs = {"10": {"peak_mb": 100.0, "seconds": 1}, "100": {"peak_mb": 111.0, "seconds": 9}}
    assert "100 rows hold 1.110 times the memory of 10, **not within** the promised 1.10" in growth(
        {"runs": runs, "growth": 1.11}
    )
    assert ", within the promised" in growth({"runs": runs, "growth": 1.1})


def test_memory_needs_two_numbers_of_rows(data: Path, tmp_path: Path) -> None:
    benchmark = script("memory")
    with pytest.raises(benchmark.DataError, match=r"--rows is \[5\]; give at least two numbers, the smaller first"):
        benchmark.run(data=data, out=tmp_path, rows=[5])


@pytest.mark.slow
def test_memory_is_that_of_the_command_itself(data: Path, tmp_path: Path) -> None:
    benchmark = script("memory")
    written = benchmark.run(data=data, out=tmp_path, rows=[4, 60], backbone=str(tiny.build("bert")))
    content = json.loads(written[0].read_text())
    assert all(one["peak_mb"] > 50 for one in content["runs"].values())  # torch alone holds more
    assert content["growth"] == pytest.approx(1, abs=0.1)
    assert written[1].read_text() == benchmark.to_markdown(content)
    with pytest.raises(benchmark.DataError, match=r"sonde extract stopped with 2: .*hidden\.9"):
        benchmark.extracted(["a"], str(tiny.build("bert")), "hidden.9")


def test_the_page_says_what_is_missing_and_shows_what_is_there(tmp_path: Path) -> None:
    benchmark = script("performance")
    found = {
        "setting": {"note": "Nothing else ran."},
        "machine": machine.describe(),
        "runs": {"10": {"peak_mb": 100.0, "seconds": 1}, "100": {"peak_mb": 101.0, "seconds": 9}},
        "growth": 1.01,
    }
    (tmp_path / "memory.json").write_text(json.dumps(found))
    benchmark.main(["--results", str(tmp_path), "--out", str(tmp_path / "performance.md")])
    page = (tmp_path / "performance.md").read_text()
    assert "100 rows hold 1.010 times the memory" in page and "Nothing else ran." in page
    assert page.count("Not measured yet") == len(benchmark.PARTS) - 1
    assert all(part.limit in page for part in benchmark.PARTS)


def test_figures_of_another_machine_stay_beside_those_of_this_one(tmp_path: Path) -> None:
    benchmark, publish = script("performance"), script("ratios").publish
    here = {**machine.describe(), "processor": "Here", "units": "amx_bf16"}
    for processor, growth in [("Here", 1.5), ("There", 1.02), ("Here", 1.01)]:  # the last of each is kept
        found = {
            "setting": {"note": ""},
            "machine": {**here, "processor": processor},
            "runs": {"10": {"peak_mb": 100.0, "seconds": 1}, "100": {"peak_mb": 101.0, "seconds": 9}},
            "growth": growth,
        }
        publish(tmp_path, "memory", found, lambda _: "")
    page = benchmark.page(tmp_path)
    own, _, other = page.partition("On another machine:")
    assert "1.010 times" in own and ": Here with amx_bf16, " in own and "There" not in own
    assert "1.020 times" in other and ": There with amx_bf16, " in other and "Here" not in other and "1.500" not in page


class Session:
    """Hidden states that are the ids, one value wide beside a constant one."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        ids = inputs["input_ids"]
        self.shapes.append(ids.shape)
        return [np.stack([ids, np.full_like(ids, 100)], axis=-1).astype(np.float32)]


def test_the_int8_loop_leaves_pads_out_and_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark, session, tokenizer = script("onnx_int8"), Session(), tiny.tokenizer_of("bert")
    monkeypatch.setattr(benchmark, "BATCH", 4)
    found = benchmark.encoded(session, tokenizer, tiny.SENTENCES, 8)
    for text, vector in zip(tiny.SENTENCES, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=8)["input_ids"]
        expected = np.array([np.mean(ids), 100])
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)
    assert [rows for rows, _ in session.shapes] == [4, 2] and max(length for _, length in session.shapes) == 8


def test_an_environment_that_cannot_be_made_is_a_reason_to_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = script("onnx_int8")
    monkeypatch.setattr(benchmark.venv, "create", lambda *_, **__: None)
    failed = subprocess.CompletedProcess([], 1, "", "many lines\nERROR: No matching distribution found")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(benchmark.Unavailable, match="pip failed: ERROR: No matching distribution found"):
        benchmark.environment(tmp_path)


def test_a_worker_that_stops_says_why(tmp_path: Path) -> None:
    benchmark = script("worker")
    (tmp_path / "worker.log").write_text("Traceback\nValueError: no such model\n")
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        worker = benchmark.Worker(process, tmp_path)
        with pytest.raises(benchmark.Unavailable, match="the worker stopped: ValueError: no such model"):
            worker.timed(["a"])
