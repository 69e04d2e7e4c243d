"""Fine-tune, then classify from the inside: last layer and all layers, of a backbone before and after fine-tuning.

    python benchmarks/finetune.py --data path/to/data

SST-2, a seeded sample of its training rows, all rows of both test splits. The backbone is fine-tuned whole and with
LoRA; then the recipes of frozen backbones are trained on the pretrained and on both fine-tuned checkpoints. Every cell
is kept as soon as it is done, and a fine-tuning that is stopped goes on where it was.

run           fill every cell, write docs/results/finetune.{json,md}
to_markdown   the page, from the JSON alone
"""

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.baselines import FineTuning
from sonde.bench import machine
from sonde.bench.cells import opened, write_page
from sonde.bench.datasets import SECOND, DataSet, read_split
from sonde.bench.machine import Stopwatch
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.plan import BUNDLE

NAME = "sst2"
TESTS = ("test", SECOND)
ROWS = 4000
EPOCHS = 3
"""At most; Devlin et al. 2019, A.3 found two to four to be right."""
METHODS = {"full": "fine-tuned, all weights", "lora": "fine-tuned, LoRA, merged"}
RECIPES = {"linear": "last layer (`linear`)", "stc-hidden": "all layers (`stc-hidden`)"}
OWN = "own head"
"""The classification head that was trained with the weights."""


def run(
    *, data: Path, out: Path, work: Path, rows: int = ROWS, backbone: str = BUNDLE, cache: Path | None = None
) -> list[Path]:
    """Fill every cell and write the page.

    Parameters
    ----------
    data : Path
        Folder of data sets; `sst2` is read.
    out : Path
        Folder of `finetune.json` and `finetune.md`.
    work : Path
        Folder of the fine-tuned checkpoints, and of runs that were stopped.
    rows : int
        Training rows, a seeded sample.
    backbone : str
    cache : Path, optional
        Folder for activations; by default they are kept nowhere.

    Returns
    -------
    list of Path
    """
    train = read_split(data, NAME, "train").take(rows)
    tests = {split: read_split(data, NAME, split) for split in TESTS}
    setting = {"data": NAME, "rows": len(train.texts), "backbone": backbone, "epochs": EPOCHS, "seed": 0}
    cells = opened(out / "finetune.json", setting)
    for recipe in RECIPES:
        if f"pretrained|{recipe}" not in cells:
            cells.put(f"pretrained|{recipe}", _inside(recipe, backbone, train, tests, cache))
    for method in METHODS:
        names = [f"{method}|{what}" for what in (OWN, *RECIPES)]
        if all(name in cells for name in names):
            continue
        folder = work / method
        if names[0] not in cells or not folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped between export and entry
            cells.put(names[0], _tuned(method, backbone, train, tests, work))
        for recipe in RECIPES:
            if f"{method}|{recipe}" not in cells:
                cells.put(f"{method}|{recipe}", _inside(recipe, str(folder), train, tests, cache))
    return write_page(cells.path, to_markdown(cells.content))


def _tuned(method: str, backbone: str, train: DataSet, tests: Mapping[str, DataSet], work: Path) -> dict[str, Any]:
    classifier = FineTuning(backbone, method, epochs=EPOCHS, resume=work / f"{method}-state")
    cell = _measured(classifier, train, tests)
    classifier.export(work / method)
    shutil.rmtree(work / f"{method}-state")
    summary = classifier.summary_
    kept = ("epochs", "best_epoch", "steps", "parameters", "precision", "learning_rate", "held_out_rows", "history")
    return cell | {name: summary[name] for name in kept}


def _inside(
    recipe: str, backbone: str, train: DataSet, tests: Mapping[str, DataSet], cache: Path | None
) -> dict[str, Any]:
    classifier = TextClassifier(recipe, (backbone,), cache=cache)
    cell = _measured(classifier, train, tests)
    learner: Any = classifier.summary_["learner"]
    return cell | {name: learner[name] for name in ("eta", "layers", "C") if name in learner}


def _measured(classifier: Any, train: DataSet, tests: Mapping[str, DataSet]) -> dict[str, Any]:
    """Fit and test; warnings about odd texts are of the data, not of the method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        watch = Stopwatch()
        classifier.fit(train.texts, train.labels)
        fitting = watch.read()
        watch = Stopwatch()
        right = {name: (classifier.predict(test.texts) == test.labels) for name, test in tests.items()}
    both = np.concatenate(list(right.values()))
    return {
        "accuracy": float(both.mean()),
        "splits": {name: float(one.mean()) for name, one in right.items()},
        "test_rows": len(both),
        "fit": fitting,
        "predict": watch.read(),
    }


# ------------------------------------------------------------------ page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    missing = [name for name in _names() if name not in cells]
    parts = [
        "# Fine-tune, then classify from the inside",
        "Written by `python benchmarks/finetune.py`; every figure comes from `finetune.json` beside this page.",
        machine.sentence(content["machine"]),
        f"**{len(missing)} cells are still empty: the same command goes on with them.**" if missing else "",
        _about(setting, cells),
        _table(cells),
        *(_story(cells[f"{method}|{OWN}"], title) for method, title in METHODS.items() if f"{method}|{OWN}" in cells),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _names() -> list[str]:
    tuned = [f"{method}|{what}" for method in METHODS for what in (OWN, *RECIPES)]
    return [*(f"pretrained|{recipe}" for recipe in RECIPES), *tuned]


def _about(setting: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    tested = next(iter(cells.values()))["test_rows"]
    share = next(iter(cells.values()))["accuracy"]
    error = 100 * np.sqrt(share * (1 - share) / tested)
    return (
        f"SST-2, {setting['rows']:,} training rows (a seeded sample), one run each. Accuracy in percent on "
        f"{tested:,} test rows, those of both test splits; its standard error is {error:.1f} points. Seconds are of "
        f"processor time; those of the recipes on a fine-tuned checkpoint do not hold its fine-tuning. Backbone: "
        f"{setting['backbone']}."
    )


def _table(cells: Mapping[str, Any]) -> str:
    heads = ["weights", "what classifies", "both", *TESTS, "seconds to train", "seconds to predict"]
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- |{' ---: |' * (len(heads) - 2)}"]
    titles = {"pretrained": "pretrained", **METHODS}
    for name in _names():
        if name in cells:
            cell, (weights, what) = cells[name], name.split("|")
            figures = [100 * cell["accuracy"], *(100 * cell["splits"][split] for split in TESTS)]
            seconds = [cell[stage]["cpu_seconds"] for stage in ("fit", "predict")]
            shown = [titles[weights], RECIPES.get(what, what), *(f"{x:.1f}" for x in (*figures, *seconds))]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _story(cell: Mapping[str, Any], title: str) -> str:
    counts = cell["parameters"]
    return (
        f"{title[0].upper()}{title[1:]}: {counts['trained']:,} of {counts['all']:,} parameters are trained, at a rate "
        f"of {cell['learning_rate']:g} in {cell['precision']}; stopped after {cell['epochs']} epochs "
        f"({cell['steps']:,} steps), the best of which, on {cell['held_out_rows']} held-out rows, is the "
        f"{_ordinal(cell['best_epoch'])}."
    )


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, default=ROWS, help="training rows (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("finetuned"), help="where checkpoints go (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    parser.add_argument("--cache", type=Path, help="folder for activations")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write(_table(json.loads(written[0].read_text(encoding="utf-8"))["cells"]) + "\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
