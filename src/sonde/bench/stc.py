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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sonde.bench import depth, machine
from sonde.bench.cells import Cells, attempted, opened, write_page
from sonde.bench.compare import Rows, measure
from sonde.bench.datasets import DataSet, affordable, of_papers, read_split, read_test
from sonde.bench.llmembed import cache_option, command_of
from sonde.bench.reading import Wanted, into_store
from sonde.bench.stc_page import curves, to_markdown
from sonde.classifier import TextClassifier
from sonde.cost import Meter, parameters_of
from sonde.errors import ArgumentError, SondeError, SondeWarning, choose
from sonde.plan import BUNDLE
from sonde.progress import Advance, track
from sonde.read.checkpoint import fingerprint
from sonde.read.location import find_checkpoint
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
VERSION = 2
"""Of the cells: those of another are not read."""


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
        If a line is unknown, `tune` is below 1 or has no folder to write to, `finetuned` and `lora` are one folder,
        there is no store, or the folder holds cells of another setting.
    """
    lines = [choose("The line", name, LINES) for name in recipes or LINES]
    folders = {"backbone": backbone or BUNDLE, "finetuned": finetuned, "lora": lora}
    given = {name: str(one) for name, one in folders.items() if one}
    if tune is not None and (tune < 1 or not given.keys() & METHODS):
        raise ArgumentError(
            f"--tune {tune} fine-tunes on so many rows, at least 1, into the folders --finetuned and --lora; give one."
        )
    if finetuned and lora and Path(finetuned).resolve() == Path(lora).resolve():
        raise ArgumentError(f"--finetuned and --lora are both {lora}; checkpoints of the two kinds need a folder each.")
    if open_store(cache) is None:
        raise ArgumentError("`sonde bench stc` needs a store, so that texts are read once; leave out --no-cache.")
    setting = {"version": VERSION, "backbone": given["backbone"], "limit": rows, "loss": depth.LOSS}
    cells = opened(Path(out) / "stc.json", setting)
    bench = _Bench(Path(data), given, rows, cache, tune, cells)
    names = of_papers(only)
    try:
        with track("stc", len(names) * len(CHECKPOINTS) * len(lines), "cells") as advance:
            for name in names:
                whole = read_split(bench.data, name, "train").take(rows), read_test(bench.data, name).take(rows)
                splits = dict(zip(("train", "test"), affordable(name, *whole), strict=True))
                sizes = dict(zip(("train", "test"), (len(one.texts) for one in whole), strict=True))
                for checkpoint in CHECKPOINTS:
                    bench.fill(_Rows(name, splits, sizes), checkpoint, lines, advance)
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


@dataclass(frozen=True)
class _Rows:
    """A data set as it is used."""

    name: str
    """Of its folder."""
    splits: Mapping[str, DataSet]
    """`train` and `test`; of sets that take too long here, samples."""
    sizes: Mapping[str, int]
    """Rows of each whole split."""

    def told(self, *splits: str) -> dict[str, dict[str, int]]:
        """What a cell keeps of the rows that it depends on: how many, of how many."""
        used = {split: len(self.splits[split].texts) for split in splits}
        return {"used_rows": used, "of_rows": {split: self.sizes[split] for split in splits}}

    def told_of(self, line: str) -> dict[str, dict[str, int]]:
        """The same for a line: own heads are not trained on these rows."""
        return self.told("test") if line == OWN else self.told("train", "test")


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint that is there."""

    name: str
    """Folder or hub id."""
    identity: str
    """Its fingerprint."""


@dataclass(frozen=True)
class _Bench:
    """What all cells share."""

    data: Path
    given: Mapping[str, str]
    rows: int | None
    cache: Any
    tune: int | None
    cells: Cells
    identities: dict[str, str] = field(default_factory=dict)
    """Fingerprints by folder or hub id: the hub is asked and weights are hashed once."""
    unstored: set[str] = field(default_factory=set)
    """Set and checkpoint whose texts the store does not take."""

    def fill(self, some: _Rows, checkpoint: str, lines: Sequence[str], advance: Advance) -> None:
        """The cells of one checkpoint, with the readings that they need; without a checkpoint, the reason."""
        place = f"{some.name}|{checkpoint}"
        there = [line for line in lines if line != OWN or checkpoint != "pretrained"]
        found, reason = self._find(some.name, checkpoint)
        made_here = self.tune is not None and checkpoint in METHODS and checkpoint in self.given
        if made_here and any(self._lacks(f"{place}|{line}", found, some.told_of(line)) for line in there):
            refused = attempted(partial(self._tune, some, checkpoint))
            found, reason = (None, refused["failed"]) if refused else self._find(some.name, checkpoint)
        for line in lines:
            if line in there:
                self._fill(place, line, some, found, reason)
            advance(1)

    def _fill(self, place: str, line: str, some: _Rows, found: _Checkpoint | None, reason: str) -> None:
        due = self._lacks(f"{place}|{line}", found, some.told_of(line))
        if found is None:
            if due:
                self.cells.put(f"{place}|{line}", {"failed": reason})
            return
        stored = line == OWN or self._stored(place, some, found, due)
        if due:
            cell = attempted(partial(self._measure, found, line, some.splits["train"], some.splits["test"]))
            told = {"checkpoint": found.name, **({} if stored else {"read_within": True}), **some.told_of(line)}
            self._put(f"{place}|{line}", {**told, **cell}, found, some.name, line)

    def _find(self, name: str, checkpoint: str) -> tuple[_Checkpoint | None, str]:
        """The checkpoint of a set; else None, and why it cannot be used."""
        where, reason = checkpoint_of(checkpoint, name, self.given)
        if where is None:
            return None, reason
        try:
            if where not in self.identities:
                self.identities[where] = fingerprint(find_checkpoint(where))
        except SondeError as error:
            return None, str(error)
        return _Checkpoint(where, self.identities[where]), ""

    def _lacks(self, key: str, found: _Checkpoint | None, told: Mapping[str, Any]) -> bool:
        """Whether a cell is to be made; one of another checkpoint or other rows is, if there is a checkpoint."""
        if self.cells.lacks(key) or found is None:
            return self.cells.lacks(key)
        cell, wanted = self.cells.content["cells"][key], {"fingerprint": found.identity, **told}
        return any(cell.get(name) != one for name, one in wanted.items())

    def _put(self, key: str, cell: Mapping[str, Any], found: _Checkpoint, name: str, line: str) -> None:
        options = {"data": str(self.data), **self.given, "rows": self.rows, "tune": self.tune}
        options["cache"] = cache_option(self.cache)
        told = {"command": command_of("stc", name, line, options), "machine": machine.describe()}
        self.cells.put(key, {**cell, "fingerprint": found.identity, **told})

    def _tune(self, some: _Rows, checkpoint: str) -> dict[str, Any]:
        """Make the checkpoint if it is not there; nothing but the reason where that is refused."""
        from sonde.bench.tuned import tune  # it brings what is trained with, which frozen backbones do without

        assert self.tune is not None
        folder = Path(self.given[checkpoint]) / some.name
        tune(folder, METHODS[checkpoint], self.given["backbone"], some.splits["train"], self.tune)
        return {}

    def _stored(self, place: str, some: _Rows, found: _Checkpoint, due: bool) -> bool:
        """Read what the lines need of a checkpoint; whether the store holds it. What it refuses is not tried twice."""

        def put(split: str, cell: dict[str, Any]) -> None:
            self._put(f"{place}|reading {split}", {**cell, **some.told(split)}, found, some.name, "linear")

        if place in self.unstored:
            return False
        texts = {split: rows.texts for split, rows in some.splits.items()}
        new = [split for split in texts if self._lacks(f"{place}|reading {split}", found, some.told(split))]
        if not into_store(texts, partial(_wanted, found.name), self.cache, put, new=new, due=due):
            self.unstored.add(place)
        return place not in self.unstored

    def _measure(self, found: _Checkpoint, line: str, train: DataSet, test: DataSet) -> dict[str, Any]:
        if line in DEPTHS:
            return depth.measure(train, test, self.cache, recipe=DEPTHS[line], backbone=found.name)
        asked = Rows(test.texts, test.labels.tolist())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)
            if line == OWN:
                return _own(found, train, asked)
            meter, classifier = Meter(), TextClassifier(line, (found.name,), cache=self.cache)
            with meter.stage("training"):
                classifier.fit(train.texts, train.labels)
            cell = measure(classifier, asked, meter)
        learner: Any = classifier.summary_["learner"]
        return {
            **cell,
            "train_rows": len(train.texts),
            **{name: learner[name] for name in ("eta", "layers", "neurons") if name in learner},
            "cost": meter.cost(parameters_of(classifier)).to_dict(),
        }


def _wanted(backbone: str) -> Wanted:
    """What all lines read of a backbone."""
    sources = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="auto")
    return sources, [block for site, how in SITES for block in expand_blocks(0, sources[0], site, how)]


def _own(found: _Checkpoint, train: DataSet, test: Rows) -> dict[str, Any]:
    """The head that a checkpoint holds; how it was trained is known where `tune` has made it."""
    from sonde.bench.tuned import OwnHead, story_of

    meter, head = Meter(), OwnHead(found.name)
    story = story_of(Path(found.name), found.identity)
    if not story:  # a label that `tune` did not see is missed, as by every line
        head.know(set(train.labels.tolist()) & set(test.labels))
    cell = measure(head, test, meter)
    return {**cell, "train_rows": story.get("rows"), "tuning": story, "cost": meter.cost().to_dict()}
