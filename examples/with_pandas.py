"""Pandas: columns of a data frame go in, a data frame with labels and probabilities comes out."""

# ruff: noqa: T201 - a script for a terminal may print
# %% A frame of labelled messages
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

import sonde

frame = pd.read_csv(Path(__file__).parent / "support.csv")
train, test = train_test_split(frame, test_size=0.25, random_state=0, stratify=frame["label"])

# %% Train on columns
classifier = sonde.TextClassifier("linear").fit(train["text"], train["label"])

# %% Labels and their probabilities beside the texts, the least sure first
probabilities = pd.DataFrame(classifier.predict_proba(test["text"]), index=test.index, columns=classifier.classes_)
judged = test.assign(predicted=probabilities.idxmax(axis=1), probability=probabilities.max(axis=1))
print(judged.sort_values("probability").head())

# %% How often each pair of labels is confused
wrong = judged[judged["label"] != judged["predicted"]]
print(wrong.groupby(["label", "predicted"]).size().sort_values(ascending=False).head())
print(f"accuracy {(judged['label'] == judged['predicted']).mean():.3f}")
