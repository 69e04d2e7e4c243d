"""Few labels: what eight labelled messages of each kind are worth, with and without a language model."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Eight messages of each of twelve kinds to train on, all others to test on
import warnings
from collections import defaultdict
from pathlib import Path

import sonde
from sonde.errors import SondeWarning
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
by_label: dict[str, list[str]] = defaultdict(list)
for text, label in zip(rows["text"], rows["label"], strict=True):
    by_label[label].append(text)
train = [(text, label) for label, texts in by_label.items() for text in texts[:8]]
test = [(text, label) for label, texts in by_label.items() for text in texts[8:]]

# %% n-grams know only the words that they have seen; a frozen model has read the world
warnings.simplefilter("ignore", SondeWarning)  # rare classes are the point here
for recipe in ("lexical", "linear", "auto"):
    classifier = sonde.TextClassifier(recipe).fit(*zip(*train, strict=True))
    accuracy = classifier.score(*zip(*test, strict=True))
    print(f"{recipe:8} {len(train)} rows: accuracy {accuracy:.3f} on {len(test)}")
