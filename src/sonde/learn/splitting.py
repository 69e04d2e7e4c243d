"""Which rows train, which choose, which calibrate.

    Folds               the answer, one entry per row
    make_folds          stratified folds that keep texts that read the same together
    validation_folds    the same for a validation set that the user brought
    normalised          the form in which two texts count as the same
    draw                a sample of the rows on which neurons are chosen
    first_rows          the first row of each text
    text_keys           8-byte keys of normalised texts, by which duplicates are found without keeping texts

Cross-validation (as drawn here for five folds): every fold is held out once. Rows of fold 0 calibrate label sets only:
they choose no setting, and the model of fold 0 did not see them. Rows of folds 1 to 4 choose settings, blends,
temperatures and thresholds.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64

from sonde.errors import ArgumentError, warn
from sonde.learn.targets import Targets

# Classes that a warning names before it says "and more": what fits on a terminal line.
NAMED_CLASSES = 5
# Fewer folds are tried if fewer than this share of the rows can be held out: what is chosen on a minority of the rows,
# all of them of frequent classes, says little about the rest.
ENOUGH_HELD = 0.5
# A class needs rows in every fold for its probes to say anything: four in each of five.
CLASS_ROWS = 20


@dataclass(frozen=True)
class Folds:
    """Which rows train, choose and calibrate."""

    held: Int64[np.ndarray, " row"]
    """The fold in which the row is held out; -1 = never held out."""
    trainable: Bool[np.ndarray, " row"]
    """Rows on which the final model trains: all but those of a validation set."""
    conformal: Bool[np.ndarray, " row"]
    """Held-out rows that choose nothing and calibrate label sets only."""
    n_folds: int
    """Number of folds; 0 if no row could be held out, 1 for a validation set."""

    def train(self, fold: int) -> Bool[np.ndarray, " row"]:
        """Rows on which the model of a fold trains."""
        return np.asarray(self.trainable & (self.held != fold))

    def held_out(self, fold: int) -> Bool[np.ndarray, " row"]:
        """Rows that the model of a fold does not see."""
        return np.asarray(self.held == fold)

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "Folds":
        """The same for some of the rows."""
        return Folds(self.held[rows], self.trainable[rows], self.conformal[rows], self.n_folds)

    def only(self, kept: Sequence[int]) -> "Folds":
        """The same with some of the folds, renumbered in this order; rows of the others are never held out."""
        number = np.full(self.n_folds + 1, -1, dtype=np.int64)  # the last is that of rows which are never held out
        number[list(kept)] = np.arange(len(kept))
        held = number[self.held]
        return Folds(held, self.trainable, self.conformal & (held >= 0), len(kept))

    @property
    def choosing(self) -> Bool[np.ndarray, " row"]:
        """Held-out rows on which settings are chosen."""
        return np.asarray((self.held >= 0) & ~self.conformal)


def make_folds(
    texts: Sequence[str],
    targets: Targets,
    *,
    seed: int,
    n_folds: int = 5,
    groups: Int64[np.ndarray, " row"] | None = None,
) -> Folds:
    """Deal the rows into stratified folds, texts that read the same always together.

    Parameters
    ----------
    texts : sequence of str, one per row
    targets : Targets
    seed : int
    n_folds : int
        Fewer are used, with a warning, if otherwise most rows could not be held out.
    groups : (row,), optional
        Numbers of groups whose rows stay together, too; a row that reads like one of another group joins the two.

    Returns
    -------
    Folds
        Rows are grouped by `normalised` text, groups numbered by first appearance and filed under the rarest label of
        their first row (for single-label data: its label), then dealt like cards, class after class. So repeating a
        row changes no other row's fold. A class with fewer groups than folds is never held out, nor is a text that
        carries it: every fold's model has seen every class. Groups of the caller differ in size and in labels: they are
        dealt by scikit-learn's StratifiedGroupKFold, rows under their rarest label.

    Warns
    -----
    SondeWarning
        rare_classes, fewer_folds, no_folds.
    """
    assert n_folds >= 2, "cross-validation needs at least two folds"
    own, first = _groups(texts)  # (row,) group of each row; (group,) first row of each group
    if groups is not None:
        own, first = _joined(own, groups)
    count, held = _most_held(own, targets.indicator, first, seed, n_folds, groups is not None)
    _warn_folds(targets, held, n_folds, count)
    return Folds(held, np.ones(len(held), dtype=bool), held == 0, count)


def validation_folds(n_train: int, targets: Targets, seed: int, texts: Sequence[str] | None = None) -> Folds:
    """Folds for a validation set: training rows first, then validation rows, all held out in fold 0.

    Parameters
    ----------
    n_train : int
        Number of training rows, which are never held out.
    targets : Targets
        Of training rows, then validation rows.
    seed : int
    texts : sequence of str, one per row, optional
        None: all texts differ.

    Returns
    -------
    Folds
        Every second validation text of a class calibrates label sets, with all that read the same; the others choose.
    """
    validation = np.arange(len(targets.indicator)) >= n_train
    held = np.where(validation, 0, -1)
    conformal = np.zeros(len(held), dtype=bool)
    groups, first = _groups(map(str, range(validation.sum())) if texts is None else texts[n_train:])
    conformal[n_train:] = (_deal(targets.indicator[n_train:][first], seed, 2) == 1)[groups]
    return Folds(held.astype(np.int64), ~validation, conformal, 1)


def normalised(text: str) -> str:
    """Compatibility-composed (NFKC), case-folded, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def first_rows(texts: Sequence[str]) -> Int64[np.ndarray, " text"]:
    """The first row of each text; rows that read the same are one text."""
    return _groups(texts)[1]


def text_keys(texts: Sequence[str]) -> UInt64[np.ndarray, " row"]:
    """Keys that are equal where texts read the same; among a million texts two others collide with probability 3e-8."""
    digests = [hashlib.blake2b(normalised(t).encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in texts]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _groups(texts: Iterable[str]) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " group"]]:
    seen: dict[bytes, int] = {}
    first: list[int] = []
    groups: list[int] = []
    for row, text in enumerate(texts):
        digest = hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        groups.append(seen.setdefault(digest, len(seen)))
        if groups[row] == len(first):
            first.append(row)
    return np.array(groups, dtype=np.int64), np.array(first, dtype=np.int64)


def _joined(
    one: Int64[np.ndarray, " row"], other: Int64[np.ndarray, " row"]
) -> tuple[Int64[np.ndarray, " row"], Int64[np.ndarray, " group"]]:
    """Groups of rows that share a group of either sort, by way of others too; numbered by first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(one.max()) + 1
    pairs = np.unique(other, return_inverse=True)[1] + size
    links = coo_array((np.ones(len(one), dtype=bool), (one, pairs)), shape=(pairs.max() + 1, pairs.max() + 1))
    found = connected_components(links, directed=False)[1][one].astype(np.int64)
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))
    return place[number], np.sort(first)


def _most_held(
    groups: Int64[np.ndarray, " row"],
    indicator: Float32[np.ndarray, "row class"],
    first: Int64[np.ndarray, " group"],
    seed: int,
    n_folds: int,
    uneven: bool,
) -> tuple[int, Int64[np.ndarray, " row"]]:
    """The largest number of folds that holds out enough rows; else the number that holds out most; else none."""
    best, best_held = 0, np.full(len(groups), -1, dtype=np.int64)
    for count in range(n_folds, 1, -1):
        held = _held(groups, indicator, first, seed, count, uneven)
        if (indicator[held > 0].sum(axis=0) > 0).sum() < 2:  # one class alone chooses nothing
            continue
        share = np.mean(held[first] >= 0)
        if share > np.mean(best_held[first] >= 0):
            best, best_held = count, held
        if share >= ENOUGH_HELD:
            break
    return best, best_held


def _held(
    groups: Int64[np.ndarray, " row"],
    indicator: Float32[np.ndarray, "row class"],
    first: Int64[np.ndarray, " group"],
    seed: int,
    n_folds: int,
    uneven: bool,
) -> Int64[np.ndarray, " row"]:
    filed = indicator[first]  # group class
    if uneven:
        np.maximum.at(filed, groups, indicator)
    rare = filed.sum(axis=0) < n_folds  # class
    never = np.zeros(len(first), dtype=bool)  # group
    never[groups[indicator[:, rare].any(axis=1)]] = True
    fold_of_group = np.full(len(first), -1, dtype=np.int64)
    if not uneven:
        fold_of_group[~never] = _deal(filed[~never], seed, n_folds)
    elif not never.all():
        from sklearn.model_selection import StratifiedGroupKFold

        rows = np.flatnonzero(~never[groups])
        folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        for fold, (_, held) in enumerate(folds.split(rows, _strata(indicator[rows]), groups[rows])):
            fold_of_group[groups[rows[held]]] = fold
    rows, classes = np.nonzero(indicator)
    met = np.zeros((indicator.shape[1], n_folds + 1), dtype=bool)  # class fold, the last for rows that are never held
    met[classes, fold_of_group[groups[rows]]] = True
    for one in np.flatnonzero((met.sum(axis=1) == 1) & ~met[:, -1]):  # to the model of that fold it would be unknown
        own = groups[indicator[:, one] > 0]
        if len(np.unique(fold_of_group[own])) == 1:
            fold_of_group[own] = -1
    return np.asarray(fold_of_group[groups])


def _deal(filed: Float32[np.ndarray, "group class"], seed: int, n_folds: int) -> Int64[np.ndarray, " group"]:
    """Shuffle within each stratum, then deal on from where the last stratum ended, so that folds are equally large."""
    shuffled = np.random.default_rng(seed).permutation(len(filed))
    order = shuffled[np.argsort(_strata(filed)[shuffled], kind="stable")]
    folds = np.empty(len(filed), dtype=np.int64)
    folds[order] = np.arange(len(filed)) % n_folds
    return folds


def _strata(indicator: Float32[np.ndarray, "entry class"]) -> Int64[np.ndarray, " entry"]:
    """The rarest label of each; those without a label form a stratum of their own."""
    stratum: Int64[np.ndarray, " entry"] = np.where(indicator > 0, indicator.sum(axis=0), np.inf).argmin(axis=1)
    stratum[~indicator.any(axis=1)] = indicator.shape[1]
    return stratum


def _warn_folds(targets: Targets, held: Int64[np.ndarray, " row"], wanted: int, count: int) -> None:
    if count == 0:
        warn(
            "No rows can be held out: every class has too few different texts. "
            "Nothing was chosen or calibrated; settings are the defaults.",
            "no_folds",
            len(held),
        )
        return
    if count < wanted:
        warn(
            f"Validation uses {count} folds, not {wanted}, because most classes have few different texts.",
            "fewer_folds",
        )
    never = (targets.indicator[held >= 0].sum(axis=0) == 0) & (targets.indicator.sum(axis=0) > 0)  # class
    if never.any():
        names = [repr(label) for label in targets.classes[never].tolist()]
        more = f" and {len(names) - NAMED_CLASSES} more" if len(names) > NAMED_CLASSES else ""
        warn(
            f"{len(names)} classes have fewer different texts than the {count} folds; they train but are not "
            f"validated: {', '.join(names[:NAMED_CLASSES])}{more}.",
            "rare_classes",
            len(names),
        )


def draw(targets: Targets, folds: Folds, limit: int, seed: int) -> Int64[np.ndarray, " drawn"]:
    """Rows to make a selection on: all of them if they are few, else `limit` at random, of each class some.

    Of every class the trainable rows or `CLASS_ROWS` of them are drawn, whichever is less; chance fills the rest. Rows
    of a validation set that choose are drawn first, up to half of all: a sample of both sorts would leave few.

    Raises
    ------
    ArgumentError
        If `limit` cannot hold these.
    """
    if targets.rows <= limit:
        return np.arange(targets.rows)
    order = np.random.default_rng(seed).permutation(targets.rows)
    of_class = (targets.indicator[order] > 0) & folds.trainable[order, None]  # row class
    early = (np.cumsum(of_class, axis=0) <= CLASS_ROWS) & of_class  # row class
    needed = early.any(axis=1)
    if needed.sum() > limit:
        raise ArgumentError(
            f"sample_rows is {limit}, too few for {targets.n_classes} classes: with {CLASS_ROWS} rows of each (all "
            f"where there are fewer) they take {int(needed.sum())}. Give at least so many."
        )
    left = limit - int(needed.sum())
    judges = np.flatnonzero(~folds.trainable[order] & folds.choosing[order])[: min(left, limit // 2)]
    rest = np.flatnonzero(~needed & folds.trainable[order])[: left - len(judges)]
    return np.sort(order[np.concatenate([np.flatnonzero(needed), judges, rest])])
