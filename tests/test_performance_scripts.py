"""The scripts that time reading, on tiny models: what they count, what they refuse, pages made of the JSON alone."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from scripts import benchmark as script

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
        assert last["share"]["cpu_seconds"]["low"] > 0 and last["operators"][0]["share"] <= 1
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


def test_unequal_vectors_are_not_timed() -> None:
    benchmark = script("reading")
    vectors = np.eye(3, dtype=np.float32)
    made = {name: lambda _: vectors for name in ("st_float32", "st_bfloat16", "float32", "hidden", "every", "untapped")}
    other = vectors.copy()
    other[0, 1] = 0.1
    with pytest.raises(benchmark.DataError, match=r"last gives other vectors.*0\.99504, below 0\.999"):
        benchmark.equality(["a", "b", "c"], made | {"last": lambda _: other})
