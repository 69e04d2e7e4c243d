"""Abstain: answer only where the error stays below a target, hand the rest to people; or give sets of labels."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Train on three quarters
from pathlib import Path

from sklearn.model_selection import train_test_split

import sonde
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
texts, new_texts, labels, new_labels = train_test_split(rows["text"], rows["label"], test_size=0.25, random_state=0)
classifier = sonde.TextClassifier("linear").fit(texts, labels)

# %% At most 15% of the answers may be wrong: the threshold is chosen on rows that training did not see
answers = classifier.predict_or_abstain(new_texts, target_error=0.15)
given = [(answer, label) for answer, label in zip(answers, new_labels, strict=True) if answer is not None]
wrong = sum(answer != label for answer, label in given)
print(f"{len(given)} of {len(new_texts)} messages are answered, {wrong} of the answers are wrong")

# %% Sets that hold the true label nine times in ten: one label where it is clear, several where it is not
sets = classifier.predict_set(new_texts, alpha=0.1)
held = sum(label in some for some, label in zip(sets, new_labels, strict=True))
print(f"{held} of {len(sets)} sets hold the true label; mean size {sum(map(len, sets)) / len(sets):.2f}")
