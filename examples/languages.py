"""Accuracy of lexical, linear and auto on short reports to a town hall in German, Japanese and Russian.

    python examples/languages.py
    python examples/languages.py --backbone sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2

Every row is predicted once, by a model that was trained on four fifths of the rows without it: on its own language
alone, then on all three together. The default backbone is English; give --backbone a multilingual one.
"""

# ruff: noqa: T201 - a script for a terminal may print
import argparse
import warnings
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

import sonde
from sonde.errors import SondeWarning
from sonde.plan import BUNDLE
from sonde.tables import read_table

RECIPES = ("lexical", "linear", "auto")


def main() -> None:
    """Print one line for each language and recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BUNDLE, help="hub id or folder of a transformers model")
    backbone = parser.parse_args().backbone

    columns = read_table(Path(__file__).parent / "languages.csv").columns
    texts, labels, languages = (np.array(columns[name]) for name in ("text", "label", "language"))
    names = sorted(set(languages))
    print(f"{len(texts)} reports, {len(set(labels))} labels, backbone {backbone}")
    print(f"{'':26}" + "".join(f"{name:>6}" for name in names))
    for recipe in RECIPES:
        alone = [right(recipe, backbone, texts, labels, languages, [name])[languages == name].mean() for name in names]
        every = right(recipe, backbone, texts, labels, languages, names)
        together = [every[languages == name].mean() for name in names]
        print(f"{recipe:8} one language    " + "".join(f"{share:6.2f}" for share in alone))
        print(f"{recipe:8} all together    " + "".join(f"{share:6.2f}" for share in together))


def right(
    recipe: str, backbone: str, texts: np.ndarray, labels: np.ndarray, languages: np.ndarray, some: list[str]
) -> np.ndarray:
    """Which rows of these languages are labelled rightly by a model that did not see them; others are False."""
    rows = np.flatnonzero(np.isin(languages, some))
    correct = np.zeros(len(texts), dtype=bool)
    strata = [f"{labels[row]} {languages[row]}" for row in rows]
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(rows, strata):
        train, test = rows[train], rows[test]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SondeWarning)
            classifier = sonde.TextClassifier(recipe, (backbone,)).fit(texts[train], labels[train])
            correct[test] = classifier.predict(texts[test]) == labels[test]
    return correct


if __name__ == "__main__":
    main()
