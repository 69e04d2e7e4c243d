"""Are the reasons true? Tokens that speak for a label are removed from the text, and random ones.

run       train, explain, delete on each set with each recipe; write docs/results/reasons.{json,md}
measure   a classifier and texts -> what the label's probability loses
deleted   a text without some of its tokens

Deletion as a test of explanations: Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has
Learned"; on texts DeYoung et al. 2020, "ERASER" (comprehensiveness).
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.bench import machine
from sonde.bench.cells import write_json, write_page
from sonde.bench.datasets import TITLES, read_split
from sonde.classifier import TextClassifier
from sonde.errors import SondeWarning
from sonde.explanation import Explanation, Token, explain
from sonde.plan import BUNDLE
from sonde.progress import track

SETS = ("ag_news", "r8", "imdb")
RECIPES = ("lexical", "linear", "auto")
BACKBONE = BUNDLE

TRAIN_ROWS = 3000
"""Enough for models that are right about nine texts in ten, few enough to train in a minute."""

TEXTS = 200
"""Explained texts of each set: the mean loss of probability is then known within two points."""

SHARE = 0.2
"""Of a text's tokens that are removed."""

DRAWS = 5
"""Random choices of as many tokens, averaged for each text."""


def run(
    *, data: Path, models: Path | None, out: Path, rows: int | None, only: list[str] | None, cache: Any
) -> list[Path]:
    """Train and delete; arguments as in `bench.tables.run` (`models` is not needed)."""
    names = [name for name in SETS if not only or name in only]
    cells = []
    with track("reasons", len(names) * len(RECIPES), "models") as advance:
        for name in names:
            train = read_split(data, name, "train").take(min(rows or TRAIN_ROWS, TRAIN_ROWS))
            test = read_split(data, name, "test").take(min(rows or TEXTS, TEXTS))
            for recipe in RECIPES:
                classifier = TextClassifier(recipe, (BACKBONE,), cache=cache)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", SondeWarning)  # long texts are cut; what is removed was read
                    classifier.fit(train.texts, train.labels)
                    found = measure(classifier, test.texts)
                cells.append({"set": name, "recipe": recipe, "train_rows": len(train.texts), **found})
                advance(1)
    content = {"machine": machine.describe(), "share": SHARE, "draws": DRAWS, "cells": cells}
    path = Path(out) / "reasons.json"
    write_json(path, content)
    return write_page(path, _markdown(content))


def measure(classifier: TextClassifier, texts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Remove a fifth of each text's tokens in three ways; how much probability does the predicted label lose?

    Returns
    -------
    dict
        `texts`; `probability` of the predicted labels, on average; `top`, `random`, `bottom`: what it loses on average
        without the tokens that spoke most for the label, random ones, those that spoke least; `margin`: `top` less
        `random`, with `margin_error`, the half-width of its 95% interval over texts; `better`: the share of texts that
        lose more by `top` than by `random`; `largest_remainder` of all explanations; `dtype` of the reading.
    """
    kept = classifier.cache
    rng = np.random.default_rng(seed)
    found = explain(classifier, list(texts), top=0)
    variants = [_variants(one, rng) for one in found]
    try:
        classifier.cache = None  # what is read once and never again fills no store
        probabilities = classifier.predict_proba([text for row in variants for text in row])
    finally:
        classifier.cache = kept
    column = {label: i for i, label in enumerate(classifier.classes_.tolist())}
    own = np.repeat([column[one.label] for one in found], 2 + DRAWS)
    left = probabilities[np.arange(len(own)), own].reshape(len(found), 2 + DRAWS)  # row variant
    before = np.array([one.probability for one in found])
    lost = before[:, None] - left  # row variant
    chance = lost[:, 2:].mean(axis=1)
    margin = lost[:, 0] - chance
    return {
        "texts": len(found),
        "dtype": next((about["dtype"] for about in classifier.backbones_.values()), None),
        "probability": float(before.mean()),
        "top": float(lost[:, 0].mean()),
        "random": float(chance.mean()),
        "bottom": float(lost[:, 1].mean()),
        "margin": float(margin.mean()),
        "margin_error": float(1.96 * margin.std(ddof=1) / math.sqrt(len(margin))),
        "better": float((margin > 0).mean()),
        "largest_remainder": max(abs(one.remainder) for one in found),
    }


def _variants(one: Explanation, rng: np.random.Generator) -> list[str]:
    """The text without its top tokens, without its bottom ones, and without random ones a few times."""
    tokens = [token for token in one.tokens if token.start is not None and token.stop != token.start]
    ranked = sorted(tokens, key=lambda token: -token.contribution)
    size = math.ceil(SHARE * len(tokens))
    draws = [[tokens[i] for i in rng.permutation(len(tokens))[:size]] for _ in range(DRAWS)]
    return [deleted(one.text, some) for some in (ranked[:size], ranked[len(ranked) - size :], *draws)]


def deleted(text: str, tokens: Sequence[Token]) -> str:
    """A text without the characters of some of its tokens."""
    kept = np.ones(len(text), dtype=bool)
    for token in tokens:
        kept[token.start : token.stop] = False
    return "".join(character for character, keep in zip(text, kept, strict=True) if keep)


def _markdown(content: dict[str, Any]) -> str:
    lines = [
        "# Reasons, checked by deletion",
        "",
        f"Written by `sonde bench reasons`. Each test text is explained, then {content['share']:.0%} of its tokens are "
        "removed: those that spoke most for the predicted label, as many random ones (mean of "
        f"{content['draws']} draws), and those that spoke least for it. Figures are what the label's probability "
        "loses on average; the margin is top less random, with its 95% interval over texts.",
        "",
        machine.sentence(content["machine"]),
        "",
        "| set | recipe | training rows | texts | probability | top | random | bottom | margin | top > random |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in content["cells"]:
        lines.append(
            f"| {TITLES[cell['set']]} | `{cell['recipe']}` | {cell['train_rows']:,} | {cell['texts']} | "
            f"{cell['probability']:.3f} | {cell['top']:.3f} | {cell['random']:.3f} | {cell['bottom']:.3f} | "
            f"{cell['margin']:.3f} ± {cell['margin_error']:.3f} | {cell['better']:.0%} of texts |"
        )
    return "\n".join(lines) + "\n"
