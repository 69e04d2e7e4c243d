"""The main job in one page: fit on three quarters of a CSV, evaluate on the rest, save, reload, predict.

Run by `make demo`; needs no network: the backbone comes from the extra `offline`.
"""
# ruff: noqa: T201 - a script for a terminal may print

import sys
import time
from collections import Counter
from pathlib import Path

from sklearn.model_selection import train_test_split

import sonde
from sonde.evaluation import evaluate
from sonde.tables import label_column, read_table, text_column

NEW_TEXTS = [
    "hi, my parcel says delivered but there is nothing on the porch??",
    "Please close my account and erase everything you have on me.",
    "the kettle arrived with a cracked lid, want a replacement not a voucher",
]


def main(folder: Path) -> None:
    """Do it all, and say what happens."""
    table = read_table(Path(__file__).parent / "support.csv")
    texts, labels = text_column(table, "text"), label_column(table, "label")
    train_texts, test_texts, train_labels, test_labels = train_test_split(
        texts, labels, test_size=0.25, random_state=0, stratify=labels
    )
    print(f"{len(texts)} customer messages in {len(set(labels))} intents; {len(train_texts)} to train on.")

    started = time.perf_counter()
    classifier = sonde.TextClassifier().fit(train_texts, train_labels)
    print(f"Trained in {time.perf_counter() - started:.0f} seconds on a frozen all-MiniLM-L6-v2.")

    report = evaluate(classifier, test_texts, test_labels)
    print(f"Accuracy on {report['n']} held-out messages: {report['accuracy']:.3f} (macro F1 {report['macro_f1']:.3f})")

    largest = Counter(train_labels).most_common(1)[0][0]
    print(f"Answering {largest} to all of them would give {test_labels.count(largest) / len(test_labels):.3f}.")

    classifier.save(folder)
    again = sonde.load(folder)
    print(f"Saved to {folder} and loaded again. Three new messages:")
    for text, label, row in zip(NEW_TEXTS, again.predict(NEW_TEXTS), again.predict_proba(NEW_TEXTS), strict=True):
        print(f"  {label:<16} {row.max():.2f}  {text}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out/model"))
