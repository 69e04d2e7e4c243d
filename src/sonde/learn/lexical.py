"""Linear classification of texts by their word and character n-grams (TF-IDF); loads no torch.

    fit           texts -> fitted model; C and the share of characters chosen by folds
    Lexical       the fitted model
    GRID, SHARES  values of C, and lengths of the character block, that are tried

Words: 1- and 2-grams; characters: 2- to 5-grams within words, which serve typing errors, endings, and scripts without
blanks. Which n-grams count and how much is learned from the training rows of each fold alone; what the folds share are
raw counts. Document frequencies are those of different texts: repeating a row is the same as doubling its weight.

The classifier is a linear support vector machine, one class against the rest (Joachims 1998; squared hinge as in Fan et
al. 2008, LIBLINEAR), and its margins, divided by a temperature, are the logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Float64, Int64
from sklearn.svm import LinearSVC

from sonde.learn.calibration import decide, fit_temperature, to_probabilities
from sonde.learn.metrics import accuracy, log_loss, macro_f1
from sonde.learn.ngrams import CHARS, WORDS, Vocabulary, learn
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.tfidf import Block, weigh
from sonde.progress import tracked

GRID = (0.3, 1.0, 3.0)
# Length of a row's character features beside its words' unit length. Topics gain by characters; in the opinion of a
# long review they drown the words: a model of 16,000 IMDb rows is 1.6 points worse with them than without.
SHARES = (0.0, 0.5, 1.0)
# Taken if no row could be held out.
UNCHOSEN_C, UNCHOSEN_SHARE, UNCHOSEN_TEMPERATURE = 1.0, 0.5, 0.3
# Once so many rows that choose were held out, the accuracy of two settings that differ in 2% of the rows is compared to
# .3 points, their log loss closer still: the other folds are trained with the chosen setting alone.
ENOUGH_ROWS = 2000
# LIBLINEAR's own default for this solver; ten times less gives the same accuracies on R8 and AG News.
TOLERANCE = 0.1
# Logit of a class that has no training rows: its probability is 0 in float32.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class Lexical:
    """A fitted lexical model."""

    blocks: tuple[Block, ...]
    """Words, then characters if they have a share."""
    coefficients: Float32[np.ndarray, "feature class"]
    """Per feature of all blocks in turn; divided by the temperature."""
    intercept: Float32[np.ndarray, " class"]
    """Divided by the temperature."""

    needs: tuple[str, ...] = ()
    """No blocks."""
    reads_text: bool = True
    """It reads the texts."""

    @property
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """None: it reads no blocks."""
        return {}

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Margins of the texts, divided by the temperature."""
        parts = [block.features(block.vocabulary.count(texts)) for block in self.blocks]
        return np.asarray(_margins(_beside(parts), self.coefficients, self.intercept))

    def strings(self) -> list[str]:
        """The n-gram of each feature; those of words first."""
        return [gram for block in self.blocks for gram in block.strings()]

    def record(self) -> Record:
        """The model as plain data; the arrays of each block stand under "word/" or "char/"."""
        arrays = {"coefficients": self.coefficients, "intercept": self.intercept}
        for block in self.blocks:
            arrays |= {f"{block.vocabulary.kind.name}/{name}": array for name, array in block.arrays().items()}
        return Record({"blocks": [block.settings() for block in self.blocks]}, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "Lexical":
        """The model from plain data."""
        blocks = []
        for settings in record.settings["blocks"]:
            prefix = f"{settings['kind']['name']}/"
            own = {key.removeprefix(prefix): array for key, array in record.arrays.items() if key.startswith(prefix)}
            blocks.append(Block.restored(settings, own))
        return cls(tuple(blocks), record.arrays["coefficients"], record.arrays["intercept"])


def fit(problem: Problem, *, grid: Sequence[float] = GRID, shares: Sequence[float] = SHARES) -> Outcome:
    """Choose C and the share of characters by folds and train the final model.

    Parameters
    ----------
    problem : Problem
    grid : sequence of float
        Values of C, the strength of the data term, as in scikit-learn.
    shares : sequence of float
        Lengths of the character block; at 0 the model has words only.

    Returns
    -------
    Outcome
        Settings are chosen by log loss on the rows that choose (macro F1 if that is aimed at), as is the temperature.
        Once enough rows have been held out for the choice, the remaining folds are trained with it alone.
    """
    once, origin = _merged(problem)
    counted = [learn(kind, once.texts) for kind in (WORDS, CHARS)]
    margins, setting, tried = _validate(once, counted, [_Setting(c, share) for share in shares for c in sorted(grid)])
    choosing = _choosing(once)
    temperature = UNCHOSEN_TEMPERATURE
    if choosing.any():
        temperature = fit_temperature(margins[choosing], once.targets.take(choosing), once.weights[choosing])
    blocks, parts = _features(counted, once, once.folds.trainable)
    coefficients, intercept = _solve(setting.joined(parts), once, once.folds.trainable, setting.c)
    used = tuple(replace(block, length=length) for block, length in zip(blocks, setting.lengths, strict=True) if length)
    scale = np.float32(1 / temperature)
    summary = {
        "C": setting.c,
        "share": setting.share,
        "path": tried,
        "temperature": temperature,
        "features": {block.vocabulary.kind.name: len(block.columns) for block in used},
        "texts_cut": {
            block.vocabulary.kind.name: sum(
                len(text) > (block.vocabulary.kind.max_chars or len(text)) for text in problem.texts
            )
            for block in used
        },
        "rows": int(problem.folds.trainable.sum()),
    }
    return Outcome(Lexical(used, coefficients * scale, intercept * scale), (margins * scale)[origin], summary)


@dataclass(frozen=True)
class _Setting:
    """What the rows that choose decide."""

    c: float
    """C of the machines."""
    share: float
    """Length of the character block."""

    @property
    def lengths(self) -> tuple[float, float]:
        """Lengths of the blocks of words and characters."""
        return 1.0, self.share

    def joined(self, parts: Sequence[sp.csr_array]) -> sp.csr_array:
        """Unit-length features of words and characters side by side; a block of length 0 is left out."""
        return _beside([part * np.float32(length) for part, length in zip(parts, self.lengths, strict=True) if length])


_Counted: TypeAlias = Sequence[tuple[Vocabulary, sp.csr_array]]


def _merged(problem: Problem) -> tuple[Problem, Int64[np.ndarray, " row"]]:
    """The problem with repeated rows as one row of their total weight, and which of these each row became."""
    folds, truth = problem.folds, problem.targets.indicator
    numbers: dict[tuple[str, int, bool, bool, bytes], int] = {}
    keys = zip(
        problem.texts, folds.held.tolist(), folds.trainable.tolist(), folds.conformal.tolist(), truth, strict=True
    )
    origin = np.array([numbers.setdefault((*key, labels.tobytes()), len(numbers)) for *key, labels in keys], np.int64)
    first = np.unique(origin, return_index=True)[1]
    once = replace(
        problem,
        blocks={},
        texts=[key[0] for key in numbers],
        targets=problem.targets.take(first),
        weights=np.bincount(origin, problem.weights),
        folds=replace(
            folds, held=folds.held[first], trainable=folds.trainable[first], conformal=folds.conformal[first]
        ),
    )
    return once, origin


def _choosing(problem: Problem) -> Bool[np.ndarray, " row"]:
    return np.asarray(problem.folds.choosing & (problem.weights > 0))


def _validate(
    problem: Problem, counted: _Counted, settings: Sequence[_Setting]
) -> tuple[Float32[np.ndarray, "row class"], _Setting, list[dict[str, float]]]:
    """Margins of the held-out rows (else NaN), the chosen setting, and what was measured for each."""
    folds, choosing = problem.folds, _choosing(problem)
    if not choosing.any():
        settings = [_Setting(UNCHOSEN_C, UNCHOSEN_SHARE)]
    margins = {setting: np.full(problem.targets.indicator.shape, np.nan, dtype=np.float32) for setting in settings}
    tried: list[dict[str, float]] = []
    order = sorted(range(folds.n_folds), key=lambda fold: not choosing[folds.held_out(fold)].any())
    for fold in tracked(order, "training on n-grams", "folds"):
        held, train = folds.held_out(fold), folds.train(fold)
        blocks, parts = _features(counted, problem, train)
        unseen = [block.features(counts[held]) for block, (_, counts) in zip(blocks, counted, strict=True)]
        for setting, found in margins.items():
            solution = _solve(setting.joined(parts), problem, train, setting.c)
            found[held] = _margins(setting.joined(unseen), *solution)
        seen = choosing & np.isfinite(next(iter(margins.values()))).all(axis=1)
        if len(margins) > 1 and (seen.sum() >= ENOUGH_ROWS or seen.sum() == choosing.sum()):
            tried = [_measured(problem, setting, found, seen) for setting, found in margins.items()]
            best = _best(tried, problem.metric)
            margins = {setting: found for setting, found in margins.items() if setting == best}
    setting, found = next(iter(margins.items()))
    return found, setting, tried


def _measured(
    problem: Problem, setting: _Setting, margins: Float32[np.ndarray, "row class"], rows: Bool[np.ndarray, " row"]
) -> dict[str, float]:
    targets, weights, multilabel = problem.targets.take(rows), problem.weights[rows], problem.targets.multilabel
    probabilities = to_probabilities(margins[rows] / fit_temperature(margins[rows], targets, weights), multilabel)
    predicted = decide(probabilities, multilabel)
    return {
        "C": setting.c,
        "share": setting.share,
        "log_loss": log_loss(targets.indicator, probabilities, multilabel=multilabel, weights=weights),
        "accuracy": accuracy(targets.indicator, predicted, weights=weights),
        "macro_f1": macro_f1(targets.indicator, predicted, weights=weights),
    }


def _best(tried: Sequence[dict[str, float]], metric: str) -> _Setting:
    best = min(tried, key=lambda one: (-one["macro_f1"] if metric == "macro_f1" else 0.0, one["log_loss"]))
    return _Setting(best["C"], best["share"])


def _features(
    counted: _Counted, problem: Problem, rows: Bool[np.ndarray, " row"]
) -> tuple[list[Block], list[sp.csr_array]]:
    """What the rows of positive weight say about n-grams, and their features, of unit length."""
    counts = [counts[rows & (problem.weights > 0)] for _, counts in counted]
    blocks = [weigh(vocabulary, part) for (vocabulary, _), part in zip(counted, counts, strict=True)]
    return blocks, [block.features(part) for block, part in zip(blocks, counts, strict=True)]


def _beside(parts: Sequence[sp.csr_array]) -> sp.csr_array:
    return sp.csr_array(sp.hstack(parts, format="csr"))


def _solve(
    x: sp.csr_array, problem: Problem, rows: Bool[np.ndarray, " row"], c: float
) -> tuple[Float32[np.ndarray, "feature class"], Float32[np.ndarray, " class"]]:
    """Coefficients and intercepts of one machine per class, trained on the rows of positive weight."""
    rows = rows & (problem.weights > 0)
    truth, weights = problem.targets.indicator[rows].astype(np.int64), problem.weights[rows]
    if not problem.targets.multilabel:
        return _machine(x, truth.argmax(axis=1), truth.shape[1], weights, c, problem.seed)
    pairs = [_machine(x, label, 2, weights, c, problem.seed) for label in truth.T]  # row class -> row
    return np.stack([w[:, 1] - w[:, 0] for w, _ in pairs], axis=1), np.array([b[1] - b[0] for _, b in pairs])


def _machine(
    x: sp.csr_array,
    labels: Int64[np.ndarray, " row"],
    n_classes: int,
    weights: Float64[np.ndarray, " row"],
    c: float,
    seed: int,
) -> tuple[Float32[np.ndarray, "feature class"], Float32[np.ndarray, " class"]]:
    """One machine per class against the rest; for two classes the halves of one, with opposite signs."""
    present = np.unique(labels)
    coefficients = np.zeros((x.shape[1], n_classes), dtype=np.float32)
    intercept = np.full(n_classes, IMPOSSIBLE, dtype=np.float32)
    intercept[present] = 0
    if len(present) == 1:
        return coefficients, intercept
    padded = x if x.shape[1] else sp.csr_array((x.shape[0], 1), dtype=np.float32)  # no n-gram stands in two texts
    machine = LinearSVC(C=c, tol=TOLERANCE, random_state=seed).fit(padded, labels, sample_weight=weights)
    w, b = machine.coef_.T[: x.shape[1]], machine.intercept_
    if len(present) == 2:
        w, b = np.hstack([-w / 2, w / 2]), np.concatenate([-b / 2, b / 2])
    coefficients[:, present], intercept[present] = w, b
    return coefficients, intercept


def _margins(
    x: sp.csr_array, coefficients: Float32[np.ndarray, "feature class"], intercept: Float32[np.ndarray, " class"]
) -> Float32[np.ndarray, "row class"]:
    return np.asarray(x @ coefficients + intercept, dtype=np.float32)
