"""The tables of Sparsify-then-Classify (arXiv 2311.15983; SPIN, Findings of ACL 2024), with checkpoints of one's own.

run           tune, read, fit and measure every cell; write stc.{json,md} and stc-depth-<set>.svg
CHECKPOINTS   which of them there are
LINES         what is measured on each
checkpoint_of where the checkpoint of a set lies, or why there is none

Every finished cell is kept in the JSON file at once: a run that is stopped goes on where it was, and what was refused
is tried again. All that the lines read of a checkpoint is read before the first of them is fitted.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from functools import partial
from pathlib import Path
from typing import Any

from sonde.bench import depth, machine
from sonde.bench.cells import Cells, attempted, opened, write_page
from sonde.bench.compare import Rows, measure
from sonde.bench.datasets import DataSet, affordable, of_papers, read_split, read_test
from sonde.bench.llmembed import cache_option, command_of
from sonde.bench.reading import read_all
from sonde.bench.stc_page import curves, to_markdown
from sonde.classifier import TextClassifier
from sonde.cost import Meter, parameters_of
from sonde.errors import ArgumentError, SondeWarning, choose
from sonde.plan import BUNDLE
from sonde.progress import track
from sonde.read.checkpoint import Sentence, fingerprint
from sonde.read.location import find_checkpoint
from sonde.read.sites import Site
from sonde.read.sources import expand_blocks, open_sources, open_store
from sonde.tables import write_atomically

CHECKPOINTS = ("pretrained", "finetuned", "lora")
METHODS = {"finetuned": "full", "lora": "lora"}
OWN = "own"
"""The head that a checkpoint was fine-tuned with; a pretrained one has none."""
FITS = ("linear", "stc-hidden", "stc-ffn", "stc")
"""The last layer alone, and the neurons that matter of all layers: hidden states, feed-forward activations, both."""
DEPTHS = {"depth-hidden": "stc-hidden", "depth-ffn": "stc-ffn"}
"""A head at every layer: accuracy against depth."""
LINES = (OWN, *FITS, *DEPTHS)
SITES = (("hidden.*", "mean"), ("hidden.*", "max"), ("ffn.*", "mean"))
"""What the lines read."""


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
    tune: int | None = None,
) -> list[Path]:
    """Fill every cell and write the page, the figures and a picture a set, also when it is stopped.

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
    tune : int, optional
        Fine-tune those that are not there, on at most so many training rows.

    Raises
    ------
    ArgumentError
        If a line is unknown, `tune` is below 1 or has no folder to write to, there is no store, or the folder holds
        cells of another setting.
    """
    lines = [choose("The line", name, LINES) for name in recipes or LINES]
    folders = {"backbone": backbone or BUNDLE, "finetuned": finetuned, "lora": lora}
    given = {name: str(one) for name, one in folders.items() if one}
    if tune is not None and (tune < 1 or not given.keys() & METHODS):
        raise ArgumentError(
            f"--tune {tune} fine-tunes on so many rows, at least 1, into the folders --finetuned and --lora; give one."
        )
    if open_store(cache) is None:
        raise ArgumentError("`sonde bench stc` needs a store, so that texts are read once; leave out --no-cache.")
    cells = opened(Path(out) / "stc.json", {"backbone": given["backbone"], "limit": rows, "loss": depth.LOSS})
    bench = _Bench(Path(data), given, rows, cache, tune, cells)
    names = of_papers(only)
    try:
        with track("stc", len(names) * len(CHECKPOINTS) * len(lines), "cells") as advance:
            for name in names:
                whole = read_split(bench.data, name, "train").take(rows), read_test(bench.data, name).take(rows)
                splits = dict(zip(("train", "test"), affordable(name, *whole), strict=True))
                sizes = dict(zip(("train", "test"), (len(one.texts) for one in whole), strict=True))
                cells.content.setdefault("sets", {})[name] = sizes  # written with the next cell
                for checkpoint in CHECKPOINTS:
                    for line in lines:
                        bench.fill(name, checkpoint, line, splits)
                        advance(1)
    finally:
        written = _write(cells) if cells.content["cells"] else []
    return written


def _write(cells: Cells) -> list[Path]:
    """The page, and a picture for each set that has depths."""
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


@remembered
def _identity(folder: Path) -> str:
    return fingerprint(folder, Sentence(Site("main", "hidden", 0), None))


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    data: Path
    given: Mapping[str, str]
    rows: int | None
    cache: Any
    tune: int | None
    cells: Cells

    def fill(self, name: str, checkpoint: str, line: str, splits: Mapping[str, DataSet]) -> None:
        """One cell, with the readings that it needs; without a checkpoint, the reason."""
        if line == OWN and checkpoint == "pretrained":
            return
        place = f"{name}|{checkpoint}"
        refused = attempted(partial(self._tune, name, checkpoint, splits["train"]))
        backbone, reason = checkpoint_of(checkpoint, name, self.given)
        if backbone is None:
            if self.cells.lacks(f"{place}|{line}"):
                self.cells.put(f"{place}|{line}", refused or {"failed": reason})
            return
        identity = _identity(find_checkpoint(backbone))
        if line != OWN:
            for split, rows in splits.items():
                if not self._has(f"{place}|reading {split}", identity):
                    found = attempted(partial(self._read, backbone, split, rows))
                    self._put(f"{place}|reading {split}", found, identity, name, "linear")
        if not self._has(f"{place}|{line}", identity):
            found = attempted(partial(self._measure, backbone, line, splits["train"], splits["test"]))
            self._put(f"{place}|{line}", {"checkpoint": backbone, **found}, identity, name, line)

    def _has(self, key: str, identity: str) -> bool:
        """Whether a cell is finished, of this checkpoint."""
        return not self.cells.lacks(key) and self.cells.content["cells"][key]["fingerprint"] == identity

    def _put(self, key: str, cell: Mapping[str, Any], identity: str, name: str, line: str) -> None:
        options = {"data": str(self.data), **self.given, "rows": self.rows, "tune": self.tune}
        options["cache"] = cache_option(self.cache)
        told = {"command": command_of("stc", name, line, options), "machine": machine.describe()}
        self.cells.put(key, {**cell, "fingerprint": identity, **told})

    def _tune(self, name: str, checkpoint: str, train: DataSet) -> dict[str, Any]:
        """Make the checkpoint if it is to be made; nothing but the reason where that is refused."""
        if self.tune is None or checkpoint not in self.given or checkpoint not in METHODS:
            return {}
        from sonde.bench.tuned import tune  # it brings what is trained with, which frozen backbones do without

        tune(Path(self.given[checkpoint]) / name, METHODS[checkpoint], self.given["backbone"], train, self.tune)
        return {}

    def _read(self, backbone: str, split: str, rows: DataSet) -> dict[str, Any]:
        sources = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="auto")
        blocks = [block for site, how in SITES for block in expand_blocks(0, sources[0], site, how)]
        return read_all(rows.texts, sources, blocks, self.cache, f"reading_{split}")

    def _measure(self, backbone: str, line: str, train: DataSet, test: DataSet) -> dict[str, Any]:
        if line in DEPTHS:
            return depth.measure(train, test, self.cache, recipe=DEPTHS[line], backbone=backbone)
        asked = Rows(test.texts, test.labels.tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)
            if line == OWN:
                return _own(Path(backbone), asked)
            meter, classifier = Meter(), TextClassifier(line, (backbone,), cache=self.cache)
            with meter.stage("training"):
                classifier.fit(train.texts, train.labels)
            found = measure(classifier, asked, meter)
        learner: Any = classifier.summary_["learner"]
        return {
            **found,
            "train_rows": len(train.texts),
            **{name: learner[name] for name in ("eta", "layers", "neurons") if name in learner},
            "cost": meter.cost(parameters_of(classifier)).to_dict(),
        }


def _own(folder: Path, test: Rows) -> dict[str, Any]:
    """The head that a checkpoint holds; how it was trained is known where `tune` has made it."""
    from sonde.bench.tuned import OwnHead, story_of

    meter, head = Meter(), OwnHead(folder)
    found, story = measure(head, test, meter), story_of(folder)
    return {**found, "train_rows": story.get("rows"), "tuning": story, "cost": meter.cost().to_dict()}
