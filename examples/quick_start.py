"""Quick start: a CSV file becomes a saved classifier, and the classifier labels a new file.

Run `python examples/quick_start.py`, or the cells one by one in an editor that knows `# %%`.
"""

# ruff: noqa: T201 - a script for a terminal may print
# %% Read labelled messages
import tempfile
from pathlib import Path

import sonde
from sonde.evaluation import evaluate
from sonde.tables import read_table

FOLDER = Path(__file__).parent
train = read_table(FOLDER / "support.csv").columns
new = read_table(FOLDER / "new_mail.csv").columns

# %% Train: the model that is read stays frozen, what is trained is small
classifier = sonde.TextClassifier().fit(train["text"], train["label"])
print(f"accuracy out of fold: {classifier.summary_['out_of_fold']['accuracy']:.3f}")

# %% Measure on rows that it has not seen
report = evaluate(classifier, new["text"], new["label"])
print(f"accuracy on {report['n']} new messages: {report['accuracy']:.3f}, macro F1 {report['macro_f1']:.3f}")

# %% Save, load, label
with tempfile.TemporaryDirectory() as folder:
    classifier.save(Path(folder) / "support")
    again = sonde.load(Path(folder) / "support")
    print(again.predict(["hi, where is my parcel??", "Please delete my account."]))
