"""Accuracy against depth, and what texts that leave early save.

run        fit stc with a head at every layer on each set; write docs/results/depth.{json,md}
measure    one set: accuracy of the head at each layer, and of the cascade

Depths and thresholds are chosen out of fold; what they do is measured on the test rows.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.cells import opened, table, write_page
from sonde.bench.datasets import DataSet, chosen, read_split, read_test, title
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.learn import learning
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.scoring import blocks_of

RECIPE = "stc-hidden"
BACKBONE = BUNDLE
LOSS = 0.002
"""What may be lost: .2 points of accuracy."""


def run(
    *,
    data: Path,
    models: Path | None,
    out: Path,
    rows: int | None,
    only: list[str] | None,
    cache: Any,
    backbone: str = BACKBONE,
) -> list[Path]:
    """Fill every cell and write the page; arguments as in `bench.tables.run` (`models` is not needed).

    `backbone` is a hub id or a folder.
    """
    setting = {"recipe": RECIPE, "backbone": backbone, "loss": LOSS, "limit": rows}
    cells = opened(Path(out) / "depth.json", setting)
    names = chosen(data, only)
    with track("depths", len(names), "sets") as advance:
        for name in names:
            if name not in cells:
                test = read_test(data, name).take(rows)
                train = read_split(data, name, "train").take(rows)
                cells.put(name, measure(train, test, cache, recipe=RECIPE, backbone=backbone))
            advance(1)
    return write_page(cells.path, to_markdown(cells.content))


def measure(train: DataSet, test: DataSet, cache: Any, *, recipe: str, backbone: str) -> dict[str, Any]:
    """Fit a cascade with a head at every layer of one backbone; what each head and the cascade reach on test rows."""
    classifier = TextClassifier(recipe, (backbone,), cache=cache, layers=_layers(backbone), exit_loss=LOSS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        classifier.fit(train.texts, train.labels)
    learner: Any = classifier.summary_["learner"]
    found = learner["exits"]
    accuracies, own, mean_depth = _on_test(classifier, test)
    best = max(found["accuracy_of_each"])
    enough = next(i for i, one in enumerate(found["accuracy_of_each"]) if best - one <= LOSS)
    return {
        "train_rows": len(train.texts),
        "test_rows": len(test.texts),
        "eta": learner["eta"],
        "depths": found["depths"],
        "out_of_fold": found["accuracy_of_each"],
        "test": accuracies,
        "enough": {"depth": found["depths"][enough], "test": accuracies[enough]},
        "cascade": {
            "threshold": learner["exit_threshold"],
            "shares": found["shares"],
            "out_of_fold": {"mean_depth": found["mean_depth"], "accuracy": found["accuracy"]},
            "test": {"mean_depth": mean_depth, "accuracy": own},
        },
    }


def _layers(backbone: str) -> int:
    from sonde.read.backbone import load_backbone
    from sonde.read.sites import MAIN

    return load_backbone(backbone).layers[MAIN]


def _on_test(classifier: TextClassifier, test: DataSet) -> tuple[list[float], float, float]:
    """Accuracy of every exit by itself, of the cascade, and the mean depth of its rows."""
    from sonde.read.extract import extract
    from sonde.read.sources import open_store

    cascade, sources = learning.as_cascade(classifier.model_), classifier.sources()
    assert cascade is not None
    places = {label: place for place, label in enumerate(classifier.classes_.tolist())}
    ids = np.array([places.get(label, -1) for label in test.labels.tolist()])  # row; -1: no row trained with it
    blocks = list(blocks_of(cascade, sources).values())
    right, own, depths = np.zeros(len(cascade.exits)), 0.0, 0.0
    for window in extract(test.texts, sources, blocks, open_store(classifier.cache), total=len(test.texts)):
        truth = ids[window.start : window.start + window.rows]
        for stage in range(len(cascade.exits)):
            right[stage] += (cascade.at(stage, window.blocks, window.rows)[0].argmax(axis=1) == truth).sum()
        logits, reached = cascade.leave(window.blocks, window.rows)
        own += float((logits.argmax(axis=1) == truth).sum())
        depths += float(cascade.depths[reached].sum())
    n = len(test.texts)
    return [round(one / n, 4) for one in right.tolist()], round(own / n, 4), round(depths / n, 3)


# ------------------------------------------------------------------ page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    limit = f"**A trial: at most {setting['limit']} rows of each split.** " if setting["limit"] else ""
    parts = [
        "# Depth",
        "Written by `sonde bench depth`; every figure comes from `depth.json` beside this page.",
        machine.sentence(content["machine"]),
        f"{limit}Recipe `{setting['recipe']}`, backbone {setting['backbone']}: a head on the kept neurons of the first "
        "k layers, for every k; depth 0 reads the embeddings alone. All neurons are chosen on a sample of the training "
        "rows, all thresholds and depths out of fold.",
        "## Accuracy on the test rows against depth",
        _curve(cells),
        "## What is enough",
        f"`k` is the fewest layers that lose at most {100 * setting['loss']:g} points out of fold against the best "
        "depth; the cascade lets texts leave where they are sure, at a loss of at most as much out of fold against the "
        "deepest head, one standard error included. Both beside the deepest head, on the test rows; the last column is "
        "the fewest layers that lose at most as much on the test rows themselves, which nobody can know beforehand.",
        _enough(cells, setting["loss"]),
    ]
    return "\n\n".join(parts) + "\n"


def _curve(cells: Mapping[str, Any]) -> str:
    depths = next(iter(cells.values()))["depths"]
    rows = [[title(name), f"{one['train_rows']:,}", *map(_figure, one["test"])] for name, one in cells.items()]
    return table(["set", "rows", *depths], rows)


def _enough(cells: Mapping[str, Any], loss: float) -> str:
    heads = ("set", "deepest", "k", "accuracy at k", "cascade", "mean depth", "of the layers", "k on test")
    rows = []
    for name, cell in cells.items():
        afterwards = next(
            k for k, one in zip(cell["depths"], cell["test"], strict=True) if one >= max(cell["test"]) - loss
        )
        enough, own, deepest = cell["enough"], cell["cascade"]["test"], cell["depths"][-1]
        share = f"{100 * own['mean_depth'] / deepest:.0f}%"
        at_k, cascade = _figure(enough["test"]), _figure(own["accuracy"])
        rows.append([
            title(name), _figure(cell["test"][-1]), enough["depth"], at_k, cascade, f"{own['mean_depth']:.2f}", share,
            afterwards,
        ])  # fmt: skip
    return table(heads, rows)


def _figure(accuracy: float) -> str:
    return f"{accuracy:.4f}".removeprefix("0")
