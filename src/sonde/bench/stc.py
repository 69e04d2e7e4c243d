"""The tables of Sparsify-then-Classify (arXiv 2311.15983; SPIN, Findings of ACL 2024), with checkpoints of one's own.

run           fit and measure every cell; write stc.{json,md} and stc-depth-<set>.svg
CHECKPOINTS   which of them there are
LINES         what is fitted on each
checkpoint_of where the checkpoint of a set lies, or why there is none

Every finished cell is kept in the JSON file at once: a run that is stopped goes on where it was, and what was refused
is tried again.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.bench import depth
from sonde.bench.cells import Cells, attempted, opened, write_page
from sonde.bench.datasets import DataSet, of_papers, read_split, read_test
from sonde.bench.llmembed import command_of
from sonde.bench.stc_page import curves, to_markdown
from sonde.bench.tables import pack
from sonde.classifier import TextClassifier
from sonde.cost import Meter, parameters_of
from sonde.errors import SondeWarning, choose
from sonde.learn import metrics
from sonde.learn.targets import encode_against
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.tables import write_atomically

CHECKPOINTS = ("pretrained", "finetuned", "lora")
FITS = ("linear", "stc-hidden", "stc-ffn", "stc")
"""The last layer alone, and the neurons that matter of all layers: hidden states, feed-forward activations, both."""
DEPTHS = {"depth-hidden": "stc-hidden", "depth-ffn": "stc-ffn"}
"""A head at every layer: accuracy against depth."""
LINES = (*FITS, *DEPTHS)


def run(
    *,
    data: Path,
    models: Path | None,
    out: Path,
    rows: int | None,
    only: list[str] | None,
    cache: Any,
    recipes: Sequence[str] | None = None,
    backbone: str | None = None,
    finetuned: Path | None = None,
    lora: Path | None = None,
) -> list[Path]:
    """Fill every cell and write the page, the figures and a picture a set.

    Parameters
    ----------
    data, out, rows, only, cache : as in `bench.tables.run`; `models` is not needed
    recipes : sequence of str or None
        Of `LINES`; by default all. Cells of others stay in the tables.
    backbone : str or None
        Hub id or folder of the pretrained checkpoint; by default the bundle.
    finetuned, lora : Path or None
        Folders of checkpoints that were fine-tuned on the training rows, one sub-folder a set (`sst2`, `imdb`, ...),
        as `FineTuning(...).fit(...).export(folder)` writes them.
    """
    lines = [choose("The line", name, LINES) for name in recipes or LINES]
    folders = {"backbone": backbone or BUNDLE, "finetuned": finetuned, "lora": lora}
    given = {name: str(one) for name, one in folders.items() if one}
    cells = opened(Path(out) / "stc.json", {"backbone": given["backbone"], "limit": rows, "loss": depth.LOSS})
    bench = _Bench(Path(data), given, rows, cache, cells)
    names = of_papers(only)
    with track("stc", len(names) * len(CHECKPOINTS) * len(lines), "cells") as advance:
        for name in names:
            train, test = read_split(bench.data, name, "train").take(rows), read_test(bench.data, name).take(rows)
            for checkpoint in CHECKPOINTS:
                for line in lines:
                    bench.fill(name, checkpoint, line, train, test)
                    advance(1)
    written = write_page(cells.path, to_markdown(cells.content))
    for name, picture in curves(cells.content["cells"]).items():
        path = cells.path.with_name(f"stc-depth-{name}.svg")
        with write_atomically(path) as file:
            file.write(picture)
        written.append(path)
    return written


def checkpoint_of(checkpoint: str, name: str, given: Mapping[str, str]) -> tuple[str | None, str]:
    """Where a checkpoint lies; else None, and why there is none.

    Parameters
    ----------
    checkpoint : str
        Of `CHECKPOINTS`.
    name : str
        The data set.
    given : mapping of str to str
        `backbone`, and `finetuned` and `lora` where they were given.
    """
    if checkpoint == "pretrained":
        return given["backbone"], ""
    if checkpoint not in given:
        return None, f"no checkpoints were given: --{checkpoint} FOLDER, with one sub-folder a set"
    folder = Path(given[checkpoint]) / name
    if not (folder / "config.json").is_file():
        return None, f"{folder} holds no checkpoint (config.json)"
    return str(folder), ""


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    data: Path
    given: Mapping[str, str]
    rows: int | None
    cache: Any
    cells: Cells

    def fill(self, name: str, checkpoint: str, line: str, train: DataSet, test: DataSet) -> None:
        """One cell; without a checkpoint, the reason."""
        key = f"{name}|{checkpoint}|{line}"
        backbone, reason = checkpoint_of(checkpoint, name, self.given)
        known = self.cells.content["cells"].get(key, {"failed": ""})
        if "failed" not in known and (backbone is None or known["checkpoint"] == backbone):
            return
        if backbone is None:
            self.cells.put(key, {"failed": reason})
            return
        found = attempted(lambda: self._measure(backbone, line, train, test))
        options = {"data": str(self.data), **self.given, "rows": self.rows}
        command = command_of("stc", name, line, options)
        self.cells.put(key, {"checkpoint": backbone, **found, "command": command})

    def _measure(self, backbone: str, line: str, train: DataSet, test: DataSet) -> dict[str, Any]:
        if line in DEPTHS:
            return depth.measure(train, test, self.cache, recipe=DEPTHS[line], backbone=backbone)
        meter = Meter()
        classifier = TextClassifier(line, (backbone,), cache=self.cache)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)
            with meter.stage("training"):
                classifier.fit(train.texts, train.labels)
            with meter.stage("inference"):
                decided = classifier.decide(classifier.predict_proba(test.texts))
        right = classifier.name_labels(decided) == test.labels
        truth = encode_against(test.labels.tolist(), classifier.classes_, False).indicator
        learner: Any = classifier.summary_["learner"]
        return {
            "accuracy": float(right.mean()),
            "macro_f1": metrics.macro_f1(truth, decided),
            "correct": pack(right),
            "n": len(right),
            "train_rows": len(train.texts),
            **{name: learner[name] for name in ("eta", "layers", "neurons") if name in learner},
            "cost": meter.cost(parameters_of(classifier)).to_dict(),
        }
