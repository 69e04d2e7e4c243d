"""Few labels: what is drawn, what is resumed, what the page says; and the same for the ablation of the head."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_bench import EDGES, write_split

from sonde.bench import BENCHES, ablation, few
from sonde.bench.cells import Cells
from sonde.bench.datasets import DataSet
from sonde.errors import ArgumentError, RecipeError


@pytest.fixture
def data(tmp_path: Path, texts: list[str], labels: list[str]) -> Path:
    """A folder with r8 made of the sixty texts."""
    folder = tmp_path / "data" / "r8"
    folder.mkdir(parents=True)
    for split in EDGES:
        write_split(folder, texts, labels, split)
    return tmp_path / "data"


def labelled(counts: dict[str, int]) -> DataSet:
    labels = np.array([label for label, count in counts.items() for _ in range(count)])
    order = np.random.default_rng(3).permutation(len(labels))
    return DataSet([f"text {row}" for row in range(len(labels))], labels[order])


def test_a_draw_has_so_many_of_each_class_and_holds_the_smaller_draws() -> None:
    train = labelled({"a": 50, "b": 20, "rare": 3})
    small, large = few.draw(train, 8, 0), few.draw(train, 32, 0)
    assert [(small.labels == label).sum() for label in ("a", "b", "rare")] == [8, 8, 3]
    assert [(large.labels == label).sum() for label in ("a", "b", "rare")] == [32, 20, 3]
    assert set(small.texts) < set(large.texts)
    assert train.labels[[train.texts.index(text) for text in small.texts]].tolist() == small.labels.tolist()
    assert few.draw(train, 8, 0).texts == small.texts != few.draw(train, 8, 1).texts


def settings(data: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": data,
        "models": None,
        "out": tmp_path / "out",
        "rows": None,
        "only": ["r8"],
        "cache": None,
    } | changes


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(few, "SHOTS", (3, 6))
    monkeypatch.setattr(few, "SEEDS", (0, 1))


@pytest.mark.usefixtures("small")
def test_few_fills_its_cells_and_goes_on_where_it_stopped(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few.run(**settings(data, tmp_path), recipes=["lexical"])
    monkeypatch.setattr(few, "_fit", forbidding("lexical", few._fit))
    written = few.run(**settings(data, tmp_path), recipes=["lexical", "linear"])
    assert [path.name for path in written] == ["few.json", "few.md"]
    cells = json.loads(written[0].read_text())["cells"]
    assert set(cells) == {f"r8|{shots}|{recipe}" for shots in (3, 6) for recipe in ("lexical", "linear")}
    assert [fit["train_rows"] for fit in cells["r8|6|linear"]["fits"]] == [18, 18]
    assert cells["r8|3|linear"]["fits"][0]["warnings"] == ["fewer_folds"]
    page = written[1].read_text()
    scores = [100 * fit["accuracy"] for fit in cells["r8|6|linear"]["fits"]]
    line = next(line for line in page.splitlines() if line.startswith("| 6 | `linear` |"))
    assert f"| {np.mean(scores):.1f} ± {abs(scores[0] - scores[1]) / 2**0.5:.1f} |" in line
    assert "cells are still empty" not in page and "2 draws" in page


def forbidding(name: str, fit: Any) -> Any:
    def guarded(train: DataSet, test: DataSet, recipe: str, *rest: Any) -> Any:
        assert recipe != name, "a finished cell was fitted again"
        return fit(train, test, recipe, *rest)

    return guarded


@pytest.mark.usefixtures("small")
def test_the_page_of_a_stopped_run_counts_what_is_empty(data: Path, tmp_path: Path) -> None:
    few.run(**settings(data, tmp_path), recipes=["lexical"])
    content = json.loads((tmp_path / "out" / "few.json").read_text())
    del content["cells"]["r8|6|lexical"]
    page = few.to_markdown(content)
    assert "**1 cells are still empty" in page and "| 6 |" not in page
    assert "A trial: at most 12 rows" in few.to_markdown({**content, "setting": {**content["setting"], "limit": 12}})


def test_recipes_are_known_and_belong_to_few(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The recipe 'best' is unknown"):
        few.run(**settings(data, tmp_path), recipes=["best"])
    with pytest.raises(ArgumentError, match="`sonde bench long_text` has its own recipes; leave out --recipe"):
        BENCHES["long_text"](**settings(data, tmp_path), recipes=["linear"])


def test_cells_of_another_setting_are_measured_again(tmp_path: Path) -> None:
    Cells(tmp_path / "x.json", {"rows": 3}).put("a", {"score": 1})
    assert "a" in Cells(tmp_path / "x.json", {"rows": 3}) and "a" not in Cells(tmp_path / "x.json", {"rows": 4})


# ---------------------------------------------------------------- ablation


def test_every_variant_changes_one_thing() -> None:
    default = ablation.VARIANTS["default"].setting
    depths = {len(variant.setting.hidden) for variant in ablation.VARIANTS.values()}
    assert depths == {0, 1, 2, 3}
    for key, variant in ablation.VARIANTS.items():
        changed = [name for name, value in vars(variant.setting).items() if value != getattr(default, name)]
        assert len(changed) == {"default": 0, "linear decay": 2}.get(key, 1), key


@pytest.mark.slow
def test_the_ablation_fills_its_cells_and_goes_on_where_it_stopped(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = {key: ablation.VARIANTS[key] for key in ("default", "layers none: a linear map", "width 64")}
    monkeypatch.setattr(ablation, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(ablation, "SEEDS", (0, 1))
    short = {key: replace(one, setting=replace(one.setting, epochs=3)) for key, one in some.items()}
    monkeypatch.setattr(ablation, "VARIANTS", short)
    written = ablation.run(**settings(data, tmp_path))
    cells = json.loads(written[0].read_text())["cells"]
    assert set(cells) == {*(f"r8|2|{key}" for key in some), *(f"r8|15|{key}" for key in list(some)[:2])}
    page = written[1].read_text()
    assert "## Row 2: " in page and "## Row 15: " in page and page.count("| width | 64 |") == 1
    monkeypatch.setattr(ablation, "_fit", lambda *_: pytest.fail("a finished cell was fitted again"))
    ablation.run(**settings(data, tmp_path))
    assert written[1].read_text() == page
    lost = page.split("| hidden layers | none: a linear map |")[1].split("|")
    means = [np.mean([100 * fit["accuracy"] for fit in cells[f"r8|2|{key}"]["fits"]]) for key in list(some)[:2]]
    assert float(lost[2]) == pytest.approx(means[1] - means[0], abs=0.01)


def test_a_trial_does_not_wipe_what_took_hours(data: Path, tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text(json.dumps({"setting": {"limit": None}, "cells": {"sst2|8|auto": {}}}))
    with pytest.raises(ArgumentError, match="holds cells of other backbones, rows or settings"):
        few.run(**{**settings(data, tmp_path), "out": tmp_path})
    (tmp_path / "few.json").write_text("{")
    with pytest.raises(ArgumentError, match="holds no cells of a bench"):
        few.run(**{**settings(data, tmp_path), "out": tmp_path})
    assert (tmp_path / "few.json").read_text() == "{"
