"""Few labels: 8, 32 and 128 training rows a class, five draws each; mean and spread of the test accuracy.

run    fit and evaluate every cell; write docs/results/few.{json,md}
draw   the rows of one seed: at most so many of each class

The seed draws the rows and is the seed of the fit. The 8 rows of a draw stand among its 32, and these among its 128.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.cells import opened, table, write_page
from sonde.bench.datasets import DataSet, chosen, in_order, read_split, read_test, title
from sonde.bench.machine import Stopwatch
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.learn.recipes import find
from sonde.plan import BUNDLE
from sonde.progress import track

SHOTS = (8, 32, 128)
SEEDS = (0, 1, 2, 3, 4)
RECIPES = ("lexical", "linear", "auto")
BACKBONE = BUNDLE
TEST_ROWS = 2000
"""A seeded sample of the test rows: its error, .7 points at .9, is smaller than the spread over draws of few rows."""


def run(
    *,
    data: Path,
    models: Path | None,
    out: Path,
    rows: int | None,
    only: list[str] | None,
    cache: Any,
    recipes: Sequence[str] | None = None,
) -> list[Path]:
    """Fill every cell and write the tables.

    Parameters
    ----------
    data, out, only, cache : as in `bench.tables.run`; `models` is not needed
    rows : int or None
        At most this many rows to draw from and to test on, for a trial.
    recipes : sequence of str or None
        Names of recipes; by default `lexical`, `linear` and `auto`. Cells of others stay in the table.
    """
    names, asked = chosen(data, only), [find(recipe).name for recipe in recipes or RECIPES]
    setting = {"backbone": BACKBONE, "shots": list(SHOTS), "seeds": list(SEEDS), "test_rows": TEST_ROWS, "limit": rows}
    cells = opened(Path(out) / "few.json", setting)
    splits = {name: (read_split(data, name, "train").take(rows), _test_rows(data, name, rows)) for name in names}
    with track("few labels", len(SHOTS) * len(names) * len(asked), "cells") as advance:
        for shots in SHOTS:  # the cheap ones first, so that a stopped run has whole columns
            for name in names:
                for recipe in asked:
                    key = f"{name}|{shots}|{recipe}"
                    if key not in cells:
                        train, test = splits[name]
                        fits = [_fit(draw(train, shots, seed), test, recipe, seed, cache) for seed in SEEDS]
                        cells.put(key, {"test_rows": len(test.texts), "fits": fits})
                    advance(1)
    return write_page(cells.path, to_markdown(cells.content))


def _test_rows(data: Path, name: str, rows: int | None) -> DataSet:
    """A sample of all test splits together."""
    return read_test(data, name).take(min(rows or TEST_ROWS, TEST_ROWS))


def draw(train: DataSet, shots: int, seed: int) -> DataSet:
    """At most `shots` rows of each class, in their order; the draw of a larger number holds this one."""
    random = np.random.default_rng(seed)
    kept = [random.permutation(np.flatnonzero(train.labels == label))[:shots] for label in np.unique(train.labels)]
    rows = np.sort(np.concatenate(kept))
    return DataSet([train.texts[row] for row in rows], train.labels[rows])


def _fit(train: DataSet, test: DataSet, recipe: str, seed: int, cache: Any) -> dict[str, Any]:
    classifier = TextClassifier(recipe, (BACKBONE,), cache=cache, random_state=seed)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", SondeWarning)
        watch = Stopwatch()
        classifier.fit(train.texts, train.labels)
        seconds = watch.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # how many test rows are cut does not depend on the draw
        correct = classifier.predict(test.texts) == test.labels
    codes = {one.message.code for one in said if isinstance(one.message, SondeWarning)}
    return {
        "seed": seed,
        "train_rows": len(train.texts),
        "accuracy": float(correct.mean()),
        "cpu_seconds": seconds["cpu_seconds"],
        "warnings": sorted(codes),
        **_choices(classifier.summary_),
    }


def _choices(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary["learner"].items() if name in ("C", "share", "weights")}


# ------------------------------------------------------------------ table


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    names = in_order(key.partition("|")[0] for key in cells)
    recipes = list(dict.fromkeys(key.split("|")[2] for key in cells))
    missing = sum(f"{n}|{s}|{r}" not in cells for n in names for s in setting["shots"] for r in recipes)
    limit = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    limit += f"**{missing} cells are still empty: the same command goes on with them.** " if missing else ""
    parts = [
        "# Few labels",
        "Written by `sonde bench few`; every figure comes from `few.json` beside this page.",
        machine.sentence(content["machine"]),
        f"{limit}Accuracy in percent, mean of {len(setting['seeds'])} draws of the training rows ± their sample "
        f"standard deviation. A class with fewer rows gives all it has. Tested on the same seeded sample of at most "
        f"{setting['test_rows']:,} test rows each time (SST-2: of both test splits). Backbone: {setting['backbone']}.",
        _table(content, names, recipes),
    ]
    return "\n\n".join(parts) + "\n"


def _table(content: Mapping[str, Any], names: list[str], recipes: list[str]) -> str:
    heads = ["rows a class", "recipe", *(title(name) for name in names), "mean", "CPU seconds a fit"]
    rows = []
    for shots in content["setting"]["shots"]:
        for recipe in recipes:
            found = [content["cells"].get(f"{name}|{shots}|{recipe}") for name in names]
            if any(found):
                rows.append([shots, f"`{recipe}`", *map(_shown, found), *_means(found)])
    return table(heads, rows)


def _accuracies(cell: Mapping[str, Any]) -> list[float]:
    return [100 * fit["accuracy"] for fit in cell["fits"]]


def _shown(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    scores = _accuracies(cell)
    return f"{np.mean(scores):.1f} ± {np.std(scores, ddof=1):.1f}"


def _means(cells: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Mean accuracy over the sets, if all are there, and the mean cost of a fit."""
    there = [cell for cell in cells if cell is not None]
    seconds = np.mean([fit["cpu_seconds"] for cell in there for fit in cell["fits"]])
    whole = len(there) == len(cells)
    return [f"{np.mean([_accuracies(cell) for cell in there]):.1f}" if whole else "", f"{seconds:.1f}"]
