"""How many rows are enough to choose neurons on: the measurement behind the default of `sample_rows`.

run    fit stc on growing samples of each set; write docs/results/sample.{json,md}
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sonde.bench import machine
from sonde.bench.cells import opened, table, write_page
from sonde.bench.datasets import TITLES, DataSet, of_papers, read_split, read_test
from sonde.bench.machine import Stopwatch
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.learn.recipes import SAMPLE_ROWS
from sonde.plan import BUNDLE
from sonde.progress import track

RECIPE = "stc-hidden"
BACKBONE = BUNDLE
SIZES = (512, 1024, 2048, 4096, 8192)
SETS = ("ag_news", "sst2")
TRAIN_ROWS = SIZES[-1]
"""The largest sample is all there is: what a smaller one loses against it is what choosing on a sample costs."""


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Fill every cell and write the page; arguments as in `bench.tables.run` (`models` is not needed)."""
    setting = {"recipe": RECIPE, "backbone": BACKBONE, "train_rows": TRAIN_ROWS, "limit": rows}
    cells = opened(Path(out) / "sample.json", setting)
    names = [name for name in of_papers(only) if name in SETS]
    with track("samples", len(names) * len(SIZES), "fits") as advance:
        for name in names:
            train = read_split(data, name, "train").take(min(rows or TRAIN_ROWS, TRAIN_ROWS))  # a seeded sample
            test = read_test(data, name).take(rows)
            for size in SIZES:
                if f"{name}|{size}" not in cells:
                    cells.put(f"{name}|{size}", _cell(train, test, size, cache))
                advance(1)
    return write_page(cells.path, to_markdown(cells.content))


def _cell(train: DataSet, test: DataSet, size: int, cache: Any) -> dict[str, Any]:
    classifier = TextClassifier(RECIPE, (BACKBONE,), cache=cache, sample_rows=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        watch = Stopwatch()
        classifier.fit(train.texts, train.labels)
        seconds = watch.read()
        right = classifier.predict(test.texts) == test.labels
    found: Any = classifier.summary_["learner"]
    return {
        "accuracy": round(float(right.mean()), 4),
        "test_rows": len(test.texts),
        "cpu_seconds": seconds["cpu_seconds"],
        **{key: found[key] for key in ("eta", "layers", "neurons")},
    }


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    limit = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    names = list(dict.fromkeys(key.split("|")[0] for key in cells))
    heads = ["rows to choose on", *(f"{TITLES[n]}: accuracy, neurons, layers, CPU seconds" for n in names)]
    rows = [[f"{size:,}", *(_shown(cells.get(f"{name}|{size}")) for name in names)] for size in SIZES]
    parts = [
        "# Rows to choose neurons on",
        "Written by `sonde bench sample`; every figure comes from `sample.json` beside this page.",
        machine.sentence(content["machine"]),
        f"{limit}Recipe `{setting['recipe']}`, backbone {setting['backbone']}, {setting['train_rows']:,} training "
        "rows: probes, eta and k see the sample, the head all rows. Seconds are those of the whole fit, reading from a "
        f"store included. The default is {SAMPLE_ROWS:,}.",
        table(heads, rows),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    accuracy = f"{cell['accuracy']:.4f}".removeprefix("0")
    return f"{accuracy}, {cell['neurons']}, {cell['layers']}, {cell['cpu_seconds']:.0f}"
