"""Fine-tune a backbone on some rows, then classify from its inside, with rows that it has not seen to choose on."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Four kinds of mail, a half of the rows for the weights, the other for the neurons
import tempfile
from pathlib import Path

import sonde
from sonde.baselines import FineTuning
from sonde.plan import BUNDLE
from sonde.tables import read_table

KINDS = ("order_status", "return_item", "wrong_item", "damaged_item", "cancel_order")


def read(name: str) -> tuple[list[str], list[str]]:
    """Texts and labels of these kinds."""
    rows = read_table(Path(__file__).parent / name).columns
    kept = [(text, label) for text, label in zip(rows["text"], rows["label"], strict=True) if label in KINDS]
    return [text for text, _ in kept], [label for _, label in kept]


texts, labels = read("support.csv")
new_texts, new_labels = read("new_mail.csv")
tuned = FineTuning(epochs=1, batch_rows=8).fit(texts[::2], labels[::2])
print(f"its own head: {tuned.score(new_texts, new_labels):.2f} of {len(new_texts)} new mails")

# %% The tuned weights are a backbone like any other
with tempfile.TemporaryDirectory() as folder:
    backbone = str(tuned.export(Path(folder) / "tuned"))
    for name, backbones in {"pretrained": (BUNDLE,), "fine-tuned": (backbone,)}.items():
        inside = sonde.TextClassifier("stc-hidden", backbones, cache=None)
        inside.fit(texts[1::2], labels[1::2])
        layers = inside.summary_["learner"]["layers"]
        print(f"the inside, {name}: {inside.score(new_texts, new_labels):.2f}, read up to layer {layers}")
