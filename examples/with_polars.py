"""Polars: the same with a polars frame, and a summary by label."""

# ruff: noqa: T201 - a script for a terminal may print
# %% A frame of labelled messages, shuffled and split
from pathlib import Path

import polars as pl

import sonde

frame = pl.read_csv(Path(__file__).parent / "support.csv").sample(fraction=1.0, shuffle=True, seed=0)
train, test = frame.head(511), frame.tail(-511)

# %% Train on columns
classifier = sonde.TextClassifier("linear").fit(train["text"], train["label"])

# %% Labels beside the texts
judged = test.with_columns(
    predicted=pl.Series(classifier.predict(test["text"])),
    probability=pl.Series(classifier.predict_proba(test["text"]).max(axis=1)),
)

# %% Which labels are hard
right = (pl.col("label") == pl.col("predicted")).mean().alias("right")
print(judged.group_by("label").agg(pl.len().alias("rows"), right).sort("right"))
print(f"accuracy {judged.select(right).item():.3f}")
