"""What to do with long texts: `cut`, `head_tail` and `windows` on IMDb and R8, accuracy and cost.

run   fit `linear` in each of the three ways at the same max_tokens; write docs/results/long_text.{json,md}
"""

import warnings
from pathlib import Path
from typing import Any

from sonde.bench import machine
from sonde.bench.cells import write_json, write_page
from sonde.bench.datasets import TITLES, DataSet, read_split
from sonde.bench.machine import Stopwatch
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.evaluation import evaluate
from sonde.plan import BUNDLE
from sonde.progress import track

SETS = ("imdb", "r8")
WAYS = ("cut", "head_tail", "windows")
BACKBONE = BUNDLE
MAX_TOKENS = 256
"""The length at which 45% of IMDb is too long, and that all-MiniLM-L6-v2 was trained for."""

TRAIN_ROWS, TEST_ROWS = 4000, 2000
"""A seeded sample: the three ways differ by more than its error on IMDb, and it reads in minutes on a laptop."""


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Fit and evaluate each way; arguments as in `bench.tables.run` (`models` is not needed)."""
    names = [name for name in SETS if not only or name in only]
    cells = []
    with track("long texts", len(names) * len(WAYS), "fits") as advance:
        for name in names:
            train = read_split(data, name, "train").take(min(rows or TRAIN_ROWS, TRAIN_ROWS))
            test = read_split(data, name, "test").take(min(rows or TEST_ROWS, TEST_ROWS))
            for way in WAYS:
                cells.append({"set": name, "long_text": way, **_cell(train, test, way)})
                advance(1)
    content = {"machine": machine.describe(), "max_tokens": MAX_TOKENS, "recipe": "linear", "cells": cells}
    path = Path(out) / "long_text.json"
    write_json(path, content)
    return write_page(path, _markdown(content))


def _cell(train: DataSet, test: DataSet, way: str) -> dict[str, Any]:
    """One fit without a store, so that the cost of reading is real."""
    classifier = TextClassifier("linear", (BACKBONE,), max_tokens=MAX_TOKENS, long_text=way, cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # what is lost stands in the table
        watch = Stopwatch()
        classifier.fit(train.texts, train.labels)
        fitted = watch.read()
        report = evaluate(classifier, test.texts, test.labels)
    summary = classifier.summary_
    return {
        "train_rows": len(train.texts),
        "test_rows": report["n"],
        "accuracy": report["accuracy"],
        "tokens": summary["tokens"],
        "lost_tokens": summary["lost_tokens"],
        "truncated_rows": summary["truncated_rows"],
        "cpu_seconds": fitted["cpu_seconds"],
    }


def _markdown(content: dict[str, Any]) -> str:
    lines = [
        "# Long texts",
        "",
        "Written by `sonde bench long_text`: recipe `linear`, all-MiniLM-L6-v2, "
        f"max_tokens {content['max_tokens']}, a seeded sample of each set.",
        "",
        machine.sentence(content["machine"]),
        "",
        "| set | long_text | training rows | cut rows | lost tokens | accuracy | test rows | CPU seconds to fit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in content["cells"]:
        share = cell["lost_tokens"] / cell["tokens"]
        lines.append(
            f"| {TITLES[cell['set']]} | `{cell['long_text']}` | {cell['train_rows']:,} | {cell['truncated_rows']:,} | "
            f"{cell['lost_tokens']:,} ({share:.1%}) | {cell['accuracy']:.4f} | {cell['test_rows']:,} | "
            f"{cell['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"
