"""Data sets, as a reader finds them in a folder: those of the papers, and others.

DataSet      texts and labels of one split
read_split   one split of one set
read_test    all test splits of one set together
affordable   of sets of long texts a sample, where there is no GPU
label_names  names of the integer labels
chosen       the sets of a folder that are asked for
of_papers    those of the papers alone, which their tables compare
tests_of     the test splits of a set
title        how a set is called in tables
in_order     sets in the order of the tables
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from sonde.errors import DataError
from sonde.precision import choose_device
from sonde.tables import label_column, read_table, text_column

SECOND = "test1821"
"""A second test split of SST-2: the papers differ in which they report."""

TITLES = {"sst2": "SST-2", "imdb": "IMDb", "ag_news": "AG News", "r8": "R8", "r52": "R52"}


AFFORDABLE = {"imdb": (10_000, 5_000)}
"""Training and test rows of sets whose texts take two cores over half an hour to read."""


@dataclass(frozen=True)
class DataSet:
    """One split."""

    texts: list[str]
    """One text a row."""
    labels: np.ndarray
    """(row,) labels as text."""

    def take(self, rows: int | None, seed: int = 0) -> "DataSet":
        """At most `rows` rows, chosen at random, in their order."""
        if rows is None or rows >= len(self.texts):
            return self
        return self.at(np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:rows]))

    def at(self, rows: Int64[np.ndarray, " some"]) -> "DataSet":
        """These rows."""
        return DataSet([self.texts[i] for i in rows], self.labels[rows])

    def sampled(self, rows: int, seed: int = 0) -> Int64[np.ndarray, " some"]:
        """At most so many rows, in their order: one of each class, and then each class as often as it has rows."""
        if rows >= len(self.texts):
            return np.arange(len(self.texts))
        turn = np.empty(len(self.texts))  # row
        shuffled = np.random.default_rng(seed).permutation(len(self.texts))
        for label in np.unique(self.labels):
            own = shuffled[self.labels[shuffled] == label]
            turn[own] = (np.arange(len(own)) + 0.5) / len(own)
            turn[own[0]] = -1
        found: Int64[np.ndarray, " some"] = np.sort(shuffled[np.argsort(turn[shuffled], kind="stable")[:rows]])
        return found


def read_split(data: Path, name: str, split: str) -> DataSet:
    """Read `<data>/<name>/<split>.csv.gz` (columns text and label); `DataError` if it is not there."""
    path = Path(data) / name / f"{split}.csv.gz"
    if not path.is_file():
        raise DataError(f"{path} does not exist. --data must hold one folder a data set, such as {', '.join(TITLES)}.")
    table = read_table(path, ["text", "label"])
    return DataSet(text_column(table, "text"), np.array(label_column(table, "label"), dtype=str))


def label_names(data: Path, name: str) -> list[str]:
    """Names of the labels 0, 1, ... from `label_names.json`; `DataError` if it is not there."""
    path = Path(data) / name / "label_names.json"
    if not path.is_file():
        raise DataError(
            f"{path} does not exist, and the labels of {name} are numbers: a list of their names is needed."
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    return [str(one) for one in (content["label_names"] if isinstance(content, dict) else content)]


def read_test(data: Path, name: str) -> DataSet:
    """All test splits together."""
    parts = [read_split(data, name, split) for split in tests_of(data, name)]
    return DataSet([text for part in parts for text in part.texts], np.concatenate([part.labels for part in parts]))


def affordable(name: str, train: DataSet, test: DataSet) -> tuple[DataSet, DataSet]:
    """Both splits; where all of a set takes too long without a GPU, a seeded sample of every class of each."""
    if name not in AFFORDABLE or choose_device("auto").type != "cpu":
        return train, test
    kept = zip((train, test), AFFORDABLE[name], strict=True)
    train, test = (split.at(split.sampled(rows)) for split, rows in kept)
    return train, test


def chosen(data: Path, only: list[str] | None) -> list[str]:
    """The sets of a folder that are asked for, or all, in the order of the tables.

    Raises
    ------
    DataError
        If the folder holds no set, or not one that is asked for.
    """
    there = in_order(path.parent.name for path in Path(data).glob("*/train.csv.gz"))
    if not there:
        raise DataError(
            f"{data} holds no data set; it must hold a folder a set, each with train.csv.gz and test.csv.gz (text, "
            "label)."
        )
    for name in only or []:
        if name not in there:
            raise DataError(f"The data set {name!r} is not in {data}; there are: {', '.join(there)}.")
    return [name for name in there if not only or name in only]


def of_papers(only: list[str] | None) -> list[str]:
    """The sets of the papers that are asked for, in the order of their tables; `DataError` for others."""
    for name in only or []:
        if name not in TITLES:
            raise DataError(f"The papers have no data set {name!r}; they have: {', '.join(TITLES)}.")
    return [name for name in TITLES if not only or name in only]


def tests_of(data: Path, name: str) -> tuple[str, ...]:
    """The test splits of a set: `test`, and of SST-2 a second one, where it is there."""
    return ("test", SECOND) if (Path(data) / name / f"{SECOND}.csv.gz").is_file() else ("test",)


def title(name: str) -> str:
    """The name of a set in tables."""
    return TITLES.get(name, name)


def in_order(names: Iterable[str]) -> list[str]:
    """Those of the papers first, as there, then others by name; each once."""
    return sorted(set(names), key=lambda name: (list(TITLES).index(name) if name in TITLES else len(TITLES), name))
