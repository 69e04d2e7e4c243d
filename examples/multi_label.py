"""Multi-label: a text may have several labels, one or none; each has a threshold of its own, chosen out of fold."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Mails that ask for two things at once: two messages, joined
import random
from pathlib import Path

import sonde
from sonde.evaluation import evaluate
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
draw = random.Random(0)
messages = list(zip(rows["text"], rows["label"], strict=True))
pairs = [draw.sample(messages, 2) for _ in range(600)]
texts = [f"{one} {other}" for (one, _), (other, _) in pairs]
labels = [sorted({first, second}) for (_, first), (_, second) in pairs]

# %% Lists of labels make it multi-label
classifier = sonde.TextClassifier("linear").fit(texts[:450], labels[:450])
print(classifier.predict(texts[450:453]))

# %% How good is it, over single decisions, whole sets and rankings?
report = evaluate(classifier, texts[450:], labels[450:])
for name in ("micro_f1", "macro_f1", "subset_accuracy", "mean_average_precision"):
    print(f"{name:24} {report[name]:.3f}")
