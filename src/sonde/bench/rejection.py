"""Texts of classes that training never showed: how well a score tells them from the others.

quarters      the classes, dealt into four parts, each of which is left out once
measure       fit without some classes; AUROC of each score on the test rows
scores        what could say that a text belongs to none of the known classes
to_markdown   the table, from finished cells
QUARTERS      how many parts there are
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from sonde.bench.cells import table
from sonde.bench.datasets import DataSet, in_order, title
from sonde.classifier import TextClassifier
from sonde.features import ActivationFeatures
from sonde.learn.calibration import softmax

QUARTERS = 4
NEIGHBOURS = 5
"""The distance to the fifth nearest: a single mislabelled or repeated text does not decide."""

SCORES = {
    "probability": "one minus the maximum probability (Hendrycks and Gimpel 2017)",
    "energy": "energy, minus the log-sum-exp of the logits (Liu et al. 2020)",
    "neighbours": f"cosine distance to the {NEIGHBOURS}th nearest training text, mean of the last hidden layer (Sun et "
    "al. 2022)",
    "both": "ours: probability and neighbours, each as a p value, by Fisher's method",
}
"""Name -> what it is; the higher, the stranger the text."""


def quarters(labels: Shaped[np.ndarray, " row"]) -> list[list[str]]:
    """The classes in four parts (fewer where there are fewer classes); none for two classes, of which none can go."""
    classes = np.random.default_rng(0).permutation(np.unique(labels))
    if len(classes) < 3:
        return []
    return [part.tolist() for part in np.array_split(classes, min(QUARTERS, len(classes)))]


def measure(
    train: DataSet, test: DataSet, unknown: list[str], classifier: TextClassifier, backbone: str, cache: Any
) -> dict[str, Any]:
    """Fit without some classes and score all test rows; AUROC is None where the test rows are of one kind."""
    known = ~np.isin(train.labels, unknown)
    texts = [text for text, keep in zip(train.texts, known, strict=True) if keep]
    classifier.fit(texts, train.labels[known])
    answers = classifier.held_answers_
    assert answers is not None, "the five sets have one label a text"
    layer = ActivationFeatures("hidden.-1", "mean", (backbone,), cache=cache).fit(texts)
    found = scores(
        classifier.decision_function(test.texts),
        answers[:, 0],
        layer.transform(texts),
        layer.transform(test.texts),
    )
    strange = np.isin(test.labels, unknown)
    both = 0 < strange.sum() < len(strange)
    return {
        "classes": unknown,
        "unknown_rows": int(strange.sum()),
        "known_rows": int((~strange).sum()),
        "auroc": {name: float(roc_auc_score(strange, score)) if both else None for name, score in found.items()},
    }


def scores(
    logits: Float[np.ndarray, "row ..."],
    confidences: Float[np.ndarray, " held"],
    train: Float32[np.ndarray, "known feature"],
    test: Float32[np.ndarray, "row feature"],
) -> dict[str, Float64[np.ndarray, " row"]]:
    """How strange each text is, by each score.

    Parameters
    ----------
    logits : ndarray (row, class), or (row,) of log-odds for two classes
    confidences : ndarray (held,)
        Maximum probabilities of rows of known classes that the model did not see.
    train, test : ndarray (known, feature), (row, feature)
        Features of the training and of the test texts.

    A p value is the share of texts of known classes that are as strange: for the probability the held-out rows, for the
    distance the training rows, each without itself. Where the two agree by chance alone, the sum of the logarithms
    follows a chi-squared distribution (Fisher 1932, section 21.1); here it only orders the texts.
    """
    both_sides = logits if logits.ndim == 2 else np.stack([-logits / 2, logits / 2], axis=1)  # row class
    wide = both_sides.astype(np.float64)
    unsure = 1 - softmax(wide).max(axis=1)
    index = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, metric="cosine").fit(train)
    far = index.kneighbors(test)[0][:, NEIGHBOURS - 1]
    own = index.kneighbors(train)[0][:, NEIGHBOURS]  # the nearest is the text itself
    p_values = _share_as_strange(1 - confidences.astype(np.float64), unsure), _share_as_strange(own, far)
    return {
        "probability": unsure,
        "energy": -logsumexp(wide, axis=1),
        "neighbours": far.astype(np.float64),
        "both": -np.log(p_values).sum(axis=0),
    }


def to_markdown(cells: Mapping[str, Any]) -> str:
    """The table and how to read it, from finished cells whose keys are `<set>|without <part>`."""
    by_set: dict[str, list[dict[str, Any]]] = {name: [] for name in in_order(key.partition("|")[0] for key in cells)}
    for key, cell in cells.items():
        name, _, part = key.partition("|")
        if part and cell["auroc"]["both"] is not None:
            by_set[name].append(cell)
    rows = [[title(name), *_means(found)] for name, found in by_set.items() if found]
    heads = ["set", "parts", "unknown rows", *SCORES]
    return (
        f"The classes are dealt into {QUARTERS} parts; each part is left out of training once. AUROC of telling test "
        "rows of the missing classes from the others, mean over the parts (lowest and highest). SST-2 and IMDb have "
        "two classes: without one of them there is nothing to train.\n\n"
        + "\n".join(f"- {name}: {title}" for name, title in SCORES.items())
        + f"\n\n{table(heads, rows)}"
    )


def _means(found: list[dict[str, Any]]) -> list[str]:
    columns = {name: [cell["auroc"][name] for cell in found] for name in SCORES}
    shown = [f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})" for values in columns.values()]
    return [str(len(found)), f"{sum(cell['unknown_rows'] for cell in found):,}", *shown]


def _share_as_strange(
    known: Float[np.ndarray, " known"], given: Float[np.ndarray, " row"]
) -> Float64[np.ndarray, " row"]:
    """P values: the text itself counts, so that none is 0."""
    stranger = len(known) - np.searchsorted(np.sort(known), given, side="left")
    return np.asarray((1 + stranger) / (1 + len(known)), dtype=np.float64)
