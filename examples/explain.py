"""Explain: which layers, neurons and words spoke for a label."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Every hidden layer is read, the neurons that matter are kept
from pathlib import Path

import sonde
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
classifier = sonde.TextClassifier("linear").fit(rows["text"], rows["label"])

# %% One text, one label: the log-odds as a sum over tokens
(found,) = sonde.explain(classifier, ["hi, the kettle came with a cracked lid, can I have a new one"])
print(f"{found.label}: probability {found.probability:.2f}, log-odds {found.score:+.2f}")
for token in sorted(found.tokens, key=lambda token: -token.contribution)[:5]:
    print(f"  {token.contribution:+.2f}  {token.text}")

# %% The same for another label, and against one other
(found,) = sonde.explain(classifier, [found.text], label="refund_missing", against="damaged_item")
print(f"refund_missing rather than damaged_item: log-odds {found.score:+.2f}")
