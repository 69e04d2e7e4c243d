"""The data sets of the papers, as a reader finds them in a folder.

DataSet    texts and labels of one split
read_split one split of one set
label_names names of the integer labels
SPLITS     the test splits of each set
TITLES     how the sets are called in tables
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sonde.errors import DataError
from sonde.tables import label_column, read_table, text_column

SPLITS = {
    "sst2": ("test", "test1821"),
    "imdb": ("test",),
    "ag_news": ("test",),
    "r8": ("test",),
    "r52": ("test",),
}
TITLES = {"sst2": "SST-2", "imdb": "IMDb", "ag_news": "AG News", "r8": "R8", "r52": "R52"}


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
        kept = np.sort(np.random.default_rng(seed).permutation(len(self.texts))[:rows])
        return DataSet([self.texts[i] for i in kept], self.labels[kept])


def read_split(data: Path, name: str, split: str) -> DataSet:
    """Read `<data>/<name>/<split>.csv.gz` (columns text and label); `DataError` if it is not there."""
    path = Path(data) / name / f"{split}.csv.gz"
    if not path.is_file():
        raise DataError(f"{path} does not exist. --data must hold one folder a data set ({', '.join(SPLITS)}).")
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


def chosen(only: list[str] | None) -> list[str]:
    """The sets asked for, in the order of the tables."""
    for name in only or []:
        if name not in SPLITS:
            raise DataError(f"The data set {name!r} is unknown; known are: {', '.join(SPLITS)}.")
    return [name for name in SPLITS if not only or name in only]
