"""The head of LLMEmbed, one choice at a time: how deep, how wide, how much dropout, how much weight decay.

run        fit and evaluate every cell; write docs/results/ablation.{json,md}
VARIANTS   the settings, as data
Variant    one of them

Rows 2 and 15 of Table 1, with one backbone in the roles of the deep model and of B. Every other choice, the learning
rate and the number of epochs among them, is made as in a normal fit.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.cells import opened, table, write_page
from sonde.bench.datasets import TITLES, DataSet, of_papers, read_split
from sonde.bench.machine import Stopwatch
from sonde.errors import SondeWarning
from sonde.learn import mlp
from sonde.learn.fusion import ROWS
from sonde.learn.head import DEFAULT, Setting
from sonde.learn.problem import Blocks, Problem
from sonde.learn.recipes import LLMEMBED_DEPTHS
from sonde.learn.splitting import make_folds
from sonde.learn.targets import encode
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources, open_store

SETS = ("r8", "r52", "ag_news")
TABLE_ROWS = (2, 15)  # no sentence embedding; all of it
SEEDS = (0, 1, 2)
BACKBONE = BUNDLE
TRAIN_ROWS, TEST_ROWS = 2000, 2000
"""Seeded samples: all fits then take a quarter of an hour on one core."""


@dataclass(frozen=True)
class Variant:
    """One setting of the head."""

    part: str
    """What is varied: a part of the table."""
    title: str
    """A line of it."""
    setting: Setting
    """How the head is built and trained."""
    rows: tuple[int, ...] = (2,)
    """Rows of Table 1 in which it is tried; row 15 trains four times as long."""


def _variants() -> dict[str, Variant]:
    found = {"default": Variant("default", "one layer of 512, dropout .5, weight decay .01", DEFAULT, TABLE_ROWS)}
    for hidden in ((), (512, 512), (512, 512, 512)):
        title = " + ".join(map(str, hidden)) or "none: a linear map"
        found[f"layers {title}"] = Variant("hidden layers", title, replace(DEFAULT, hidden=hidden), TABLE_ROWS)
    found["layers paper"] = Variant(
        "hidden layers", "1024 + 256, as in the paper", replace(DEFAULT, hidden=(1024, 256))
    )
    for width in (64, 2048):
        found[f"width {width}"] = Variant("width", f"{width:,}", replace(DEFAULT, hidden=(width,)))
    for dropout in (0.0, 0.2, 0.8):
        found[f"dropout {dropout}"] = Variant("dropout", f"{dropout:g}", replace(DEFAULT, dropout=dropout))
    for decay in (0.0, 1.0):
        found[f"decay {decay}"] = Variant("weight decay", f"{decay:g}", replace(DEFAULT, weight_decay=decay))
    flat = replace(DEFAULT, hidden=(), weight_decay=1.0)
    found["linear decay"] = Variant("weight decay", "1, no hidden layer", flat)
    return found


VARIANTS = _variants()


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Fill every cell and write the tables; arguments as in `bench.tables.run` (`models` is not needed)."""
    names = [name for name in of_papers(only) if name in SETS]
    sizes = {"train": min(rows or TRAIN_ROWS, TRAIN_ROWS), "test": min(rows or TEST_ROWS, TEST_ROWS)}
    setting = {"backbone": BACKBONE, "seeds": list(SEEDS), "rows": sizes}
    cells = opened(Path(out) / "ablation.json", setting)
    sources = open_sources({0: BACKBONE}, max_tokens=None, long_text="cut", dtype="auto", device="auto")
    deep, sentences = _blocks(sources)
    wanted = _wanted()
    with track("ablation", len(names) * len(wanted), "cells") as advance:
        for name in names:
            splits = {split: read_split(data, name, split).take(size) for split, size in sizes.items()}
            blocks = {
                split: read(part.texts, sources, [*deep, *sentences], open_store(cache)).blocks
                for split, part in splits.items()
            }
            roles = [block.name for block in deep], [block.name for block in sentences]
            for row, key in wanted:
                if f"{name}|{row}|{key}" not in cells:
                    fits = [_fit(splits, blocks, roles, row, VARIANTS[key].setting, seed) for seed in SEEDS]
                    cells.put(f"{name}|{row}|{key}", {"fits": fits})
                advance(1)
    return write_page(cells.path, to_markdown(cells.content))


def _wanted() -> list[tuple[int, str]]:
    """Rows of Table 1 with the variants that are tried in them."""
    return [(row, key) for row in TABLE_ROWS for key, variant in VARIANTS.items() if row in variant.rows]


def _blocks(sources: Mapping[int, Source]) -> tuple[list[Block], list[Block]]:
    """The last layers, the last first, and the sentence embedding of the one backbone."""
    layers = expand_blocks(0, sources[0], "hidden.1:", "mean")[::-1][:LLMEMBED_DEPTHS]
    return layers, expand_blocks(0, sources[0], "sentence", "")


def _fit(
    splits: Mapping[str, DataSet],
    blocks: Mapping[str, Blocks],
    roles: tuple[list[str], list[str]],
    row: int,
    setting: Setting,
    seed: int,
) -> dict[str, Any]:
    train, test = splits["train"], splits["test"]
    targets, weights = encode(train.labels), np.ones(len(train.texts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # R52 has rare classes in every fit
        folds = make_folds(train.texts, targets, seed=seed)
    problem = Problem(blocks["train"], train.texts, targets, weights, folds, "accuracy", seed)
    watch = Stopwatch()
    outcome = mlp.fit(problem, *roles, row, setting=setting)
    seconds = watch.read()["cpu_seconds"]
    predicted = targets.classes[outcome.model.logits(blocks["test"], test.texts).argmax(axis=1)]  # row
    return {
        "seed": seed,
        "accuracy": float(np.mean(predicted == test.labels)),
        "validation_loss": outcome.summary["validation_loss"],
        "learning_rate": outcome.summary["learning_rate"],
        "epochs": outcome.summary["epochs"],
        "cpu_seconds": seconds,
    }


# ------------------------------------------------------------------ table


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    names = [name for name in SETS if any(key.startswith(f"{name}|") for key in cells)]
    sizes, seeds = setting["rows"], len(setting["seeds"])
    missing = sum(f"{name}|{row}|{key}" not in cells for name in names for row, key in _wanted())
    empty = f"**{missing} cells are still empty: the same command goes on with them.** " if missing else ""
    parts = [
        "# The head, one choice at a time",
        "Written by `sonde bench ablation`; every figure comes from `ablation.json` beside this page.",
        machine.sentence(content["machine"]),
        f"{empty}Accuracy in percent, mean of {seeds} seeds ± their sample standard deviation, on at most "
        f"{sizes['test']:,} test rows; at most {sizes['train']:,} training rows. {setting['backbone']} is both the "
        "deep backbone (its last five layers) and the sentence backbone B. Every line changes one thing in the default "
        "head; learning rate and epochs are chosen on held-out rows each time.",
    ]
    for row in TABLE_ROWS:
        own = [name for name in names if any(key.startswith(f"{name}|{row}|") for key in cells)]
        parts += [f"## Row {row}: {ROWS[row].title}", _table(cells, own, row)]
    return "\n\n".join(parts) + "\n"


def _table(cells: Mapping[str, Any], names: Sequence[str], row: int) -> str:
    heads = ["varied", "setting", *(TITLES[name] for name in names), "mean", "against default", "CPU seconds a fit"]
    rows = []
    default = _mean(cells, names, row, "default")
    for key, variant in VARIANTS.items():
        if row not in variant.rows:
            continue
        own = [cells.get(f"{name}|{row}|{key}") for name in names]
        mean = _mean(cells, names, row, key)
        lost = "" if mean is None or default is None or key == "default" else f"{mean - default:+.2f}"
        there = [fit["cpu_seconds"] for cell in own if cell for fit in cell["fits"]]
        cost = f"{np.mean(there):.1f}" if there else ""
        shown = [*map(_shown, own), "" if mean is None else f"{mean:.2f}", lost, cost]
        rows.append([variant.part, variant.title, *shown])
    return table(heads, rows)


def _scores(cell: Mapping[str, Any]) -> list[float]:
    return [100 * fit["accuracy"] for fit in cell["fits"]]


def _shown(cell: Mapping[str, Any] | None) -> str:
    return "" if cell is None else f"{np.mean(_scores(cell)):.2f} ± {np.std(_scores(cell), ddof=1):.2f}"


def _mean(cells: Mapping[str, Any], names: Sequence[str], row: int, key: str) -> float | None:
    """Mean over the sets, if all are there."""
    found = [cells.get(f"{name}|{row}|{key}") for name in names]
    return float(np.mean([_scores(cell) for cell in found if cell])) if found and all(found) else None
