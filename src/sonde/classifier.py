"""TextClassifier: read + learn, under the scikit-learn contract.

TextClassifier   texts and labels in, labels and probabilities out
load             a saved classifier, from its folder
"""

import importlib.metadata
import json
import logging
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from jaxtyping import Bool, Float, Float32
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, metadata_routing
from sklearn.utils.validation import check_is_fitted

from sonde import saving
from sonde.errors import ArgumentError, DataError, InputError, ModelError, RecipeError, choose, warn
from sonde.inputs import as_texts, as_weights, present
from sonde.learn import calibration, learning, metrics
from sonde.learn.problem import Fitted, Metric, Problem, Record
from sonde.learn.recipes import Recipe, find
from sonde.learn.splitting import Folds, make_folds, text_keys, validation_folds
from sonde.learn.targets import Targets, encode, encode_against

if TYPE_CHECKING:
    from sonde.read.extract import Block, Source, Window

logger = logging.getLogger(__name__)

BUNDLE = "sentence-transformers/all-MiniLM-L6-v2"
METRICS = ("accuracy", "macro_f1")

CHUNK_ROWS = 4096
"""Rows predicted together where nothing is read: bounds the sparse matrix of the lexical block."""


@dataclass(frozen=True)
class _Labelled:
    """Training or validation rows, checked."""

    texts: list[str]
    targets: Targets
    weights: Float[np.ndarray, " row"]


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier on the inside of frozen language models.

    Parameters
    ----------
    recipe : str
        What to read and what to train: `auto`, `linear`, `lexical`, `llmembed-1` to `llmembed-15` (`llmembed` is 15).
    backbones : tuple of str
        Hub ids or folders of transformers models. The first is the deep one of LLMEmbed, the second and third give
        sentence embeddings; other recipes read each.
    max_tokens : int or tuple of int, optional
        Most tokens of a text in one forward pass, for all backbones or one entry for each; by default the checkpoint's
        positions, at most 512.
    long_text : {"cut", "head_tail", "windows"}
        What happens to longer texts: the beginning is read, a quarter from the beginning and the rest from the end, or
        everything in windows.
    class_weight : "balanced", dict or None
        As in scikit-learn.
    metric : {"accuracy", "macro_f1"}
        What settings are chosen for, and what `score` returns.
    dtype : {"auto", "float32", "bfloat16"}
        Of the forward pass; `auto` asks the hardware.
    device : str
        `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
    cache : "auto", path, or None
        Where activations are kept: the platform's cache folder (at most 20 GB), a folder, or nowhere.
    random_state : int, RandomState or None
        Seed of folds and of heads with random starts.
    paper : bool
        The exact setting of the recipe's paper instead of the default, for recipes that have one.

    Attributes
    ----------
    classes_ : ndarray (class,)
        Sorted labels, of the type they came in.
    summary_ : dict
        What was chosen and measured during training, JSON-able.
    """

    # scikit-learn calls them X and y; under our names too they are no metadata to be routed
    __metadata_request__fit: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__score: ClassVar = {"texts": metadata_routing.UNUSED, "labels": metadata_routing.UNUSED}
    __metadata_request__predict: ClassVar = {"texts": metadata_routing.UNUSED}
    __metadata_request__predict_proba: ClassVar = {"texts": metadata_routing.UNUSED}
    __metadata_request__decision_function: ClassVar = {"texts": metadata_routing.UNUSED}

    def __init__(
        self,
        recipe: str = "auto",
        backbones: tuple[str, ...] = (BUNDLE,),
        *,
        max_tokens: int | tuple[int | None, ...] | None = None,
        long_text: str = "cut",
        class_weight: str | Mapping[Any, float] | None = None,
        metric: str = "accuracy",
        dtype: str = "auto",
        device: str = "auto",
        cache: str | Path | bool | None = "auto",
        random_state: Any = 0,
        paper: bool = False,
    ) -> None:
        self.recipe = recipe
        self.backbones = backbones
        self.max_tokens = max_tokens
        self.long_text = long_text
        self.class_weight = class_weight
        self.metric = metric
        self.dtype = dtype
        self.device = device
        self.cache = cache
        self.random_state = random_state
        self.paper = paper

    # ---------------------------------------------------------------- fit

    def fit(self, texts: Any, labels: Any, sample_weight: Any = None, validation: Any = None) -> Self:
        """Read the texts and train the recipe.

        Parameters
        ----------
        texts : sequence of str
            List, tuple, array, pandas or polars Series.
        labels : sequence of str, int or bool; lists of labels, or a 0/1 matrix, for multi-label data
            Rows whose label is None or NaN are left out, with a warning.
        sample_weight : sequence of float, optional
        validation : (texts, labels), optional
            Replaces the folds: settings are chosen on these rows, the model is trained on the others.

        Raises
        ------
        DataError, ArgumentError, RecipeError, BackboneError, StoreError
            Each a sentence that says what was wrong, where, what is allowed, what to do.
        """
        started = time.perf_counter()
        recipe = self._check_arguments()
        seed, metric = _seed(self.random_state), cast(Metric, self.metric)
        train = _labelled(texts, labels, sample_weight, None)
        both, folds = self._with_validation(train, validation, seed)
        blocks_by_group, window, sources = self._read_training(recipe, both.texts)
        read_seconds = time.perf_counter() - started
        weights = both.weights * _class_weights(self.class_weight, both.targets, both.weights, folds)
        problem = Problem(window.blocks if window else {}, both.texts, both.targets, weights, folds, metric, seed)
        outcome = learning.fit(recipe, problem, blocks_by_group, self.paper)
        self._keep(outcome.model, both, train, sources)
        self.matrix_labels_ = self.multilabel_ and _is_matrix(labels)
        self._calibrate(outcome.held_out, both, weights, folds)
        self.summary_ = {
            "recipe": recipe.name,
            "paper": self.paper,
            "rows": len(train.texts),
            "seconds": {"reading": read_seconds, "training": time.perf_counter() - started - read_seconds},
            "tokens": int(window.tokens.sum()) if window else 0,
            **_loss_of_tokens(window),
            "out_of_fold": self._out_of_fold(outcome.held_out, both, folds),
            "learner": outcome.summary,
            "versions": _versions(),
        }
        return self

    def _check_arguments(self) -> Recipe:
        recipe = find(self.recipe)
        choose("metric", self.metric, METRICS)
        if self.paper and not recipe.has_paper_setting:
            raise RecipeError(f"The recipe {recipe.name!r} has no paper setting; leave out paper=True.")
        if isinstance(self.class_weight, str):
            choose("class_weight", self.class_weight, ["balanced"])
        elif not isinstance(self.class_weight, Mapping | None):
            raise ArgumentError(f"class_weight is {self.class_weight!r:.60}; it must be 'balanced', a dict or None.")
        return recipe

    def _with_validation(self, train: _Labelled, validation: Any, seed: int) -> tuple[_Labelled, Folds]:
        if validation is None:
            return train, make_folds(train.texts, train.targets, seed=seed)
        if not isinstance(validation, Sequence) or len(validation) != 2:
            raise DataError("validation must be a pair (texts, labels).")
        held = _labelled(validation[0], validation[1], None, train.targets)
        known = np.asarray(held.targets.indicator.any(axis=1) | train.targets.multilabel)  # row
        if not known.all():
            warn(
                f"{int((~known).sum())} validation rows have labels that never stand in the training rows; left out.",
                "unseen_labels",
                int((~known).sum()),
            )
        if not known.any():
            raise DataError("validation has no row with a label of the training rows.")
        targets = Targets(
            train.targets.classes,
            np.concatenate([train.targets.indicator, held.targets.indicator[known]]),  # row class
            train.targets.multilabel,
        )
        texts = [*train.texts, *(text for text, keep in zip(held.texts, known, strict=True) if keep)]
        both = _Labelled(texts, targets, np.concatenate([train.weights, held.weights[known]]))
        return both, validation_folds(len(train.texts), targets, seed)

    def _read_training(
        self, recipe: Recipe, texts: Sequence[str]
    ) -> tuple[list[list[str]], "Window | None", dict[int, "Source"]]:
        if not recipe.reads:
            return [], None, {}
        from sonde.read.extract import read
        from sonde.read.sources import open_store, prepare

        names = _needed(recipe, self.backbones)
        sources = self._open(names)
        groups = _groups(recipe, sources)
        blocks = list(dict.fromkeys(block for group in groups for block in group))
        store = open_store(self.cache)
        prepare(len(texts), sources, blocks, store, texts=texts)
        window = read(texts, sources, blocks, store)
        _warn_lost(window)
        return [[block.name for block in group] for group in groups], window, sources

    def _open(self, names: Mapping[int, str]) -> dict[int, "Source"]:
        from sonde.read.sources import open_sources

        return open_sources(
            names, max_tokens=self.max_tokens, long_text=self.long_text, dtype=self.dtype, device=self.device
        )

    def _keep(self, model: Fitted, both: _Labelled, train: _Labelled, sources: Mapping[int, "Source"]) -> None:
        self.model_ = model
        self.classes_ = both.targets.classes
        self.multilabel_ = both.targets.multilabel
        needed = {int(name.split("/")[0]) for name in model.needs}
        self.backbones_ = {index: _describe(source) for index, source in sources.items() if index in needed}
        self.label_names_: dict[str, str] = {}
        self.train_keys_ = np.unique(text_keys(train.texts))

    def _calibrate(
        self,
        held_out: Float[np.ndarray, "row class"],
        both: _Labelled,
        weights: Float[np.ndarray, " row"],
        folds: Folds,
    ) -> None:
        """Temperature and thresholds on the choosing rows; the conformal rows choose nothing."""
        finite = np.isfinite(held_out).all(axis=1)
        choosing = folds.choosing & finite
        logits, targets = held_out[choosing], both.targets.take(choosing)
        self.temperature_ = calibration.fit_temperature(logits, targets, weights[choosing])
        self.thresholds_ = None
        if self.multilabel_:
            probabilities = calibration.to_probabilities(logits / self.temperature_, True)
            self.thresholds_ = calibration.fit_thresholds(probabilities, targets, weights[choosing])
        conformal = folds.conformal & finite
        probabilities = calibration.to_probabilities(held_out[conformal] / self.temperature_, self.multilabel_)
        self.conformal_scores_ = calibration.conformal_scores(probabilities, both.targets.take(conformal))

    def _out_of_fold(
        self, held_out: Float[np.ndarray, "row class"], both: _Labelled, folds: Folds
    ) -> dict[str, float | int | None]:
        rows = np.isfinite(held_out).all(axis=1) & (folds.held >= 0)
        if not rows.any():
            return {"rows": 0, "accuracy": None, "log_loss": None}
        probabilities = calibration.to_probabilities(held_out[rows] / self.temperature_, self.multilabel_)
        decided = calibration.decide(probabilities, self.multilabel_, self.thresholds_)
        truth = both.targets.indicator[rows]
        return {
            "rows": int(rows.sum()),
            "accuracy": metrics.accuracy(truth, decided, both.weights[rows]),
            "log_loss": metrics.log_loss(truth, probabilities, multilabel=self.multilabel_),
        }

    # ------------------------------------------------------------ predict

    def predict(self, texts: Any) -> Any:
        """The most probable label of each text.

        Returns
        -------
        ndarray (row,) of the type of `classes_`; for multi-label data a list of label lists, or a 0/1 matrix
        (row, class) if the model was trained on one
        """
        return self.name_labels(self.decide(self.predict_proba(texts)))

    def predict_proba(self, texts: Any) -> Float[np.ndarray, "row class"]:
        """Calibrated probabilities, columns in the order of `classes_`; rows sum to 1 unless multi-label."""
        return calibration.to_probabilities(self._scaled_logits(texts), self.multilabel_)

    def decision_function(self, texts: Any) -> Float[np.ndarray, "..."]:
        """Logits over temperature, (row, class); (row,) of log-odds for two classes, positive for `classes_[1]`."""
        logits = self._scaled_logits(texts)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else logits

    def predict_set(self, texts: Any, alpha: float = 0.05) -> list[list[Any]]:
        """Label sets that hold the true label with probability 1 - alpha (split conformal prediction), never empty.

        Raises
        ------
        ArgumentError
            If alpha is not between 0 and 1, or the model is multi-label.
        """
        check_is_fitted(self, "classes_")
        if self.multilabel_:
            raise ArgumentError(
                "predict_set guarantees one label a text; this model is multi-label: use predict_proba."
            )
        calibration.conformal_threshold(self.conformal_scores_, alpha)  # alpha is judged before the texts are read
        sets = calibration.predict_sets(self.predict_proba(texts), self.conformal_scores_, alpha)
        return [self.classes_[row].tolist() for row in sets]

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """The metric that the classifier was asked to aim at, on these rows: accuracy, or macro F1."""
        check_is_fitted(self, "classes_")
        decided = self.decide(self.predict_proba(texts))
        truth = encode_against(labels, self.classes_, self.multilabel_).indicator
        weights = None if sample_weight is None else as_weights(sample_weight, len(truth))
        measure = metrics.macro_f1 if self.metric == "macro_f1" else metrics.accuracy
        return measure(truth, decided, weights)

    def decide(self, probabilities: Float[np.ndarray, "row class"]) -> Bool[np.ndarray, "row class"]:
        """Probabilities -> predicted labels as an indicator: the largest, or those above their thresholds."""
        return calibration.decide(probabilities, self.multilabel_, self.thresholds_)

    def name_labels(self, decided: Bool[np.ndarray, "row class"]) -> Any:
        """An indicator -> labels in the form that `fit` was given."""
        if not self.multilabel_:
            return self.classes_[decided.argmax(axis=1)]
        if self.matrix_labels_:
            return decided.astype(np.int64)
        return [self.classes_[row].tolist() for row in decided]

    def stream(self, texts: list[str]) -> Iterator[tuple[Float[np.ndarray, "row class"], int]]:
        """Windows of texts that `as_texts` has checked -> (probabilities, truncated rows)."""
        for logits, lost in self._windows(texts):
            yield calibration.to_probabilities(logits / self.temperature_, self.multilabel_), lost

    def _scaled_logits(self, texts: Any) -> Float32[np.ndarray, "row class"]:
        check_is_fitted(self, "classes_")
        rows = as_texts(texts)
        parts = list(self._windows(rows))
        lost = sum(truncated for _, truncated in parts)
        _warn_truncated(lost)
        empty = np.empty((0, len(self.classes_)), dtype=np.float32)
        logits = np.concatenate([empty, *(part for part, _ in parts)])  # row class
        return (logits / np.float32(self.temperature_)).astype(np.float32)

    def _windows(self, texts: list[str]) -> Iterator[tuple[Float32[np.ndarray, "row class"], int]]:
        if not self.model_.needs:
            for start in range(0, len(texts), CHUNK_ROWS):
                yield self.model_.logits({}, texts[start : start + CHUNK_ROWS]), 0
            return
        from sonde.read.extract import extract
        from sonde.read.sources import block_of, open_store

        sources = self._fitted_sources()
        blocks: list[Block] = [block_of(name, sources) for name in self.model_.needs]
        for window in extract(texts, sources, blocks, open_store(self.cache), total=len(texts)):
            logits = self.model_.logits(window.blocks, texts[window.start : window.start + window.rows])
            yield logits, int((window.lost > 0).any(axis=0).sum())

    def _fitted_sources(self) -> dict[int, "Source"]:
        """The backbones that the model was trained on, compared with what it remembers of them."""
        sources = self._open({index: about["id"] for index, about in self.backbones_.items()})
        for index, source in sources.items():
            _check_same(self.backbones_[index], source)
        return sources

    # --------------------------------------------------------------- save

    def save(self, folder: Path | str) -> None:
        """Write the model to a folder: `sonde.json` and `arrays.safetensors`. Backbones are referenced, not copied.

        Raises
        ------
        ModelError
            If the folder holds something else, or cannot be written; what was there stays.
        """
        check_is_fitted(self, "classes_")
        saving.save(folder, self._manifest(), self._arrays())

    def _manifest(self) -> dict[str, Any]:
        return {
            "recipe": self.summary_["recipe"],
            "settings": {
                "max_tokens": self.max_tokens,
                "long_text": self.long_text,
                "metric": self.metric,
                "paper": self.paper,
            },
            "backbones": {str(index): about for index, about in self.backbones_.items()},
            "classes": self.classes_.tolist(),
            "multilabel": self.multilabel_,
            "matrix_labels": self.matrix_labels_,
            "label_names": self.label_names_,
            "temperature": self.temperature_,
            "summary": self.summary_,
            "versions": _versions(),
            "learner": learning.describe(self.model_).settings,
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"learner/{name}": array for name, array in learning.describe(self.model_).arrays.items()}
        arrays |= {"conformal_scores": self.conformal_scores_, "train_keys": self.train_keys_}
        return arrays if self.thresholds_ is None else {**arrays, "thresholds": self.thresholds_}

    def _check_widths(self) -> None:
        """Run the learner once: what it reads must be as wide as the backbones are, and it must know every class."""
        from_backbones: dict[str, np.ndarray] = {}
        if self.model_.needs:
            from sonde.read.sources import block_of

            sources = self._fitted_sources()
            blocks = [block_of(name, sources) for name in self.model_.needs]
            widths = [sources[block.backbone].backbone.width(block.site) for block in blocks]
            names = zip(self.model_.needs, widths, strict=True)
            from_backbones = {name: np.zeros((1, width), dtype=np.float32) for name, width in names}
        shape = self.model_.logits(from_backbones, ["a"]).shape
        if shape != (1, len(self.classes_)):
            raise ModelError(f"The learner gives {shape[-1]} numbers a text for {len(self.classes_)} classes.")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags


def load(
    folder: Path | str,
    *,
    backbones: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache: str | Path | bool | None = "auto",
) -> TextClassifier:
    """Read a saved classifier.

    Parameters
    ----------
    folder : path
    backbones : sequence of str, optional
        Where the backbones lie now, if they moved: one for each that the model needs, in order.
    dtype, device, cache
        As in `TextClassifier`, but for `dtype="auto"` a model trained in float32 is used in float32.

    Raises
    ------
    ModelError
        If the folder is not a saved model, is damaged, has a newer protocol, or a backbone is another than the one
        that the model was trained on.
    """
    content, arrays = saving.load(folder)
    try:
        classifier = _rebuild(content, arrays, {"dtype": dtype, "device": device, "cache": cache})
        _compare(classifier, content, arrays)
        _move(classifier, backbones)
        classifier._check_widths()
    except InputError as error:
        if isinstance(error, RecipeError | DataError):  # of an entry that no fit has written
            raise ModelError(f"{folder} is damaged: {error} Copy it again or train it again.") from error
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ModelError(f"{folder} is damaged: {what}. Copy it again or train it again.") from error
    return classifier


def _rebuild(content: dict[str, Any], arrays: dict[str, np.ndarray], here: dict[str, Any]) -> TextClassifier:
    known = {int(index): {name: about[name] for name in _ABOUT} for index, about in content["backbones"].items()}
    names = tuple(known.get(i, {"id": BUNDLE})["id"] for i in range(max(known, default=0) + 1))
    if here["dtype"] == "auto" and known and all(about["dtype"] == "float32" for about in known.values()):
        here = {**here, "dtype": "float32"}  # what was trained on exact values is not read in coarser ones unasked
    classifier = TextClassifier(find(content["recipe"]).name, names, **content["settings"], **here)
    learner = {name.removeprefix("learner/"): a for name, a in arrays.items() if name.startswith("learner/")}
    classifier.model_ = learning.restore(Record(content["learner"], learner))
    classes = content["classes"]
    classifier.classes_ = np.array(classes, dtype=str) if isinstance(classes[0], str) else np.array(classes)
    classifier.multilabel_ = bool(content["multilabel"])
    classifier.matrix_labels_ = bool(content["matrix_labels"])
    classifier.backbones_ = known
    classifier.label_names_ = dict(content["label_names"])
    classifier.temperature_ = float(content["temperature"])
    classifier.thresholds_ = arrays.get("thresholds")
    classifier.conformal_scores_ = arrays["conformal_scores"]
    classifier.train_keys_ = arrays["train_keys"]
    classifier.summary_ = dict(content["summary"])
    return classifier


_ABOUT = ("id", "fingerprint", "dtype", "max_tokens")


def _compare(classifier: TextClassifier, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """What was understood of a saved model must be all that it holds, and agree with itself."""
    again = json.loads(json.dumps(classifier._manifest()))
    for name in again.keys() - {"versions"}:  # the versions are those of whoever trained it
        if again[name] != content[name]:
            raise ModelError(
                f"The entry {name!r} of {saving.MANIFEST} is not as sonde writes it; the model is damaged."
            )
    held = classifier._arrays()
    if odd := sorted(held.keys() ^ arrays.keys()):
        raise ModelError(f"The array {odd[0]!r} is missing or too many for this learner; the model is damaged.")
    for name, array in held.items():
        if array.shape != arrays[name].shape or not np.array_equal(array, arrays[name]):
            raise ModelError(f"The array {name!r} does not fit the others of this learner; the model is damaged.")
    classes, thresholds = classifier.classes_, classifier.thresholds_
    if len(classes) < 2 or not np.array_equal(np.unique(classes), classes):
        raise ModelError("The classes are not two or more distinct labels in order; the model is damaged.")
    if (thresholds is not None) != classifier.multilabel_ or (
        thresholds is not None and thresholds.shape != classes.shape
    ):
        raise ModelError(f"The thresholds do not fit {len(classes)} classes; the model is damaged.")
    if classifier.conformal_scores_.ndim != 1 or classifier.train_keys_.ndim != 1:
        raise ModelError("The conformal scores and training keys must have one dimension; the model is damaged.")
    if not 0 < classifier.temperature_ < math.inf:
        raise ModelError(f"The temperature is {classifier.temperature_}; the model is damaged.")


def _move(classifier: TextClassifier, backbones: Sequence[str] | None) -> None:
    """Look for the backbones elsewhere than where they lay."""
    known = classifier.backbones_
    if backbones is None:
        return
    if isinstance(backbones, str) or len(backbones) != len(known):
        given = "a string" if isinstance(backbones, str) else f"{len(backbones)} entries"
        raise ArgumentError(f"backbones is {given}; give a list of {len(known)}, one for each that this model needs.")
    for about, name in zip(known.values(), backbones, strict=True):
        about["id"] = name
    names = (known.get(i, {"id": name})["id"] for i, name in enumerate(classifier.backbones))
    classifier.backbones = tuple(names)


def _labelled(texts: Any, labels: Any, weights: Any, known: Targets | None) -> _Labelled:
    """Check texts, labels and weights together; leave out rows without a label."""
    rows = as_texts(texts)
    here = present(labels, len(rows))
    chosen = as_weights(weights, len(rows))[here]
    missing = int((~here).sum())
    if missing:
        warn(f"{missing} rows have no label and are left out.", "missing_labels", missing)
        labels = [label for label, keep in zip(labels, here, strict=True) if keep]
        rows = [text for text, keep in zip(rows, here, strict=True) if keep]
    targets = encode(labels) if known is None else encode_against(labels, known.classes, known.multilabel)
    _warn_conflicts(rows, targets)
    return _Labelled(rows, targets, chosen)


def _is_matrix(labels: Any) -> bool:
    """Whether multi-label labels came as a 0/1 matrix; nested lists count as one where `encode` reads them so."""
    if not isinstance(labels, list | tuple):
        return len(getattr(labels, "shape", ())) == 2
    rows = [list(row) for row in labels if row is not None]
    return len({len(row) for row in rows}) == 1 and any(len(set(row)) < len(row) for row in rows)


def _warn_conflicts(texts: Sequence[str], targets: Targets) -> None:
    keys = text_keys(texts)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    differ = (targets.indicator[order][1:] != targets.indicator[order][:-1]).any(axis=1)
    count = len(np.unique(keys[order][1:][same & differ]))
    if count:
        warn(f"{count} texts stand more than once with different labels; all are kept.", "conflicting_labels", count)


def _class_weights(
    class_weight: Any, targets: Targets, weights: Float[np.ndarray, " row"], folds: Folds
) -> Float[np.ndarray, " row"]:
    """The factor of each row: by its class, or the mean over its classes."""
    if class_weight is None:
        return np.ones(targets.rows)
    if isinstance(class_weight, str):
        count = weights[folds.trainable] @ targets.indicator[folds.trainable]  # class
        factor = count.sum() / (len(count) * np.maximum(count, 1e-12))
    else:
        unknown = set(class_weight) - set(targets.classes.tolist())
        if unknown:
            raise ArgumentError(
                f"class_weight names {sorted(map(str, unknown))}, which are no labels of the training rows."
            )
        factor = np.array([class_weight.get(label, 1.0) for label in targets.classes.tolist()], dtype=np.float64)
        if not (np.isfinite(factor).all() and (factor >= 0).all() and factor.any()):
            raise ArgumentError("class_weight must hold finite numbers that are not negative, and not zero everywhere.")
    labels = targets.indicator.sum(axis=1)
    return np.where(labels > 0, targets.indicator @ factor / np.maximum(labels, 1), 1.0).astype(np.float64)


def _needed(recipe: Recipe, backbones: Any) -> dict[int, str]:
    """The backbones that a recipe reads, out of those given."""
    from sonde.features import backbone_names

    given = backbone_names(backbones)
    wanted: set[int] = set()
    for reads in recipe.reads:
        wanted |= set(given) if reads.backbone is None else {reads.backbone}
        if reads.backbone is not None and reads.backbone not in given and not reads.optional:
            raise RecipeError(f"The recipe {recipe.name!r} needs {reads.backbone + 1} backbones; {len(given)} given.")
    return {index: name for index, name in given.items() if index in wanted}


def _groups(recipe: Recipe, sources: Mapping[int, "Source"]) -> list[list["Block"]]:
    """The blocks of each `Reads` of a recipe."""
    from sonde.read.sources import expand_blocks

    groups = []
    for reads in recipe.reads:
        indexes = sources if reads.backbone is None else [i for i in (reads.backbone,) if i in sources]
        blocks = [b for i in indexes for b in expand_blocks(i, sources[i], reads.site, reads.pooling)]
        groups.append(blocks if reads.last is None else blocks[::-1][: reads.last])
    return groups


def _describe(source: "Source") -> dict[str, Any]:
    backbone = source.backbone
    return {
        "id": backbone.name,
        "fingerprint": backbone.fingerprint,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max_tokens": source.view.max_tokens,
    }


_said: set[tuple[str, str]] = set()


def _check_same(about: Mapping[str, Any], source: "Source") -> None:
    backbone = source.backbone
    if backbone.fingerprint != about["fingerprint"]:
        raise ModelError(
            f"{backbone.name} is not the backbone that the model was trained on (fingerprint "
            f"{backbone.fingerprint[:12]} instead of {about['fingerprint'][:12]}). Give the right one with backbones=."
        )
    dtype = str(backbone.dtype).removeprefix("torch.")
    if dtype != about["dtype"] and (backbone.name, dtype) not in _said:
        _said.add((backbone.name, dtype))
        logger.warning("%s was read in %s for training and is now read in %s", backbone.name, about["dtype"], dtype)


def _loss_of_tokens(window: "Window | None") -> dict[str, int]:
    if window is None:
        return {"truncated_rows": 0, "lost_tokens": 0}
    return {"truncated_rows": int((window.lost > 0).any(axis=0).sum()), "lost_tokens": int(window.lost.sum())}


def _warn_lost(window: "Window") -> None:
    loss = _loss_of_tokens(window)
    if loss["truncated_rows"]:
        share = loss["lost_tokens"] / max(int(window.tokens.sum()), 1)
        warn(
            f"{loss['truncated_rows']} texts are longer than the model reads: {loss['lost_tokens']} tokens "
            f"({share:.1%}) were lost. long_text='windows' reads everything, 'head_tail' beginning and end.",
            "truncated_rows",
            loss["truncated_rows"],
        )


def _warn_truncated(rows: int) -> None:
    if rows:
        warn(f"{rows} texts are longer than the model reads and were cut.", "truncated_rows", rows)


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        if not 0 <= random_state < 2**32:
            raise ArgumentError(f"random_state (--seed) is {random_state}; it must lie between 0 and 2**32 - 1.")
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _versions() -> dict[str, str]:
    names = ("sonde", "torch", "transformers", "scikit-learn", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
