"""TextClassifier: read + learn, under the scikit-learn contract.

TextClassifier   texts and labels in, labels and probabilities out
"""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
from jaxtyping import Bool, Float, Float32
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, metadata_routing
from sklearn.utils.validation import check_is_fitted

from sonde import fit_settings, fitting, hub, saving, scoring
from sonde.errors import ArgumentError, BackboneError, ModelError, RecipeError, choose, warn
from sonde.inputs import as_texts
from sonde.learn import abstention, calibration, conformal, learning, metrics
from sonde.learn.problem import Fitted, Metric, Problem
from sonde.learn.recipes import SAMPLE_ROWS, Recipe, Sparsity, find
from sonde.learn.splitting import Folds, first_rows, text_keys
from sonde.plan import (
    BUNDLE,
    about,
    backbone_names,
    check_bounds,
    check_same,
    needed,
    token_loss,
    warn_lost,
    warn_truncated,
)
from sonde.rows import Labelled, as_labelled, check_class_weight, class_factors, score, with_validation
from sonde.scoring import Scores

if TYPE_CHECKING:
    from sonde.read.blocks import Source
    from sonde.read.store import Store

METRICS = ("accuracy", "macro_f1")


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
        What settings are chosen for, and what `score` returns; multi-label thresholds are chosen for each label's F1
        under either.
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
    sample_rows : int
        Most rows on which `stc` chooses neurons; all others are read for the chosen ones alone.
    eta : float, optional
        With `stc`: the share of each layer's importance whose neurons are kept, above 0 and at most 1. None: chosen
        out of fold.
    layers : int, optional
        With `stc`: how many layers are read. None: the fewest that are as good as any, out of fold.
    exit_loss : float, optional
        With `stc`: let texts leave at several depths, as soon as they are sure enough, so that at most this share of
        the metric is lost (.002 = .2 points). None: all are read equally deep.
    sites, poolings : tuple of str, optional
        Instead of those of the recipe (`auto`, `linear`, `stc`): every pooling is taken at every site, such as
        `("hidden.*", "ffn.*")` and `("mean", "last")`.

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
        sample_rows: int = SAMPLE_ROWS,
        eta: float | None = None,
        layers: int | None = None,
        exit_loss: float | None = None,
        sites: tuple[str, ...] | None = None,
        poolings: tuple[str, ...] | None = None,
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
        self.sample_rows = sample_rows
        self.eta = eta
        self.layers = layers
        self.exit_loss = exit_loss
        self.sites = sites
        self.poolings = poolings

    # ---------------------------------------------------------------- fit

    def fit(
        self, texts: Any, labels: Any, sample_weight: Any = None, validation: Any = None, groups: Any = None
    ) -> Self:
        """Read the texts and train the recipe.

        Parameters
        ----------
        texts : sequence of str
            List, tuple, array, pandas or polars Series.
        labels : sequence of str, int or bool; lists of labels, or a 0/1 matrix, for multi-label data
            Rows whose label is None, NaN or blank text are left out, with a warning.
        sample_weight : sequence of float, optional
            Whole numbers count rows: 2 is a row that stands twice. Others are relative: their unit does not matter. A
            row of weight 0 is left out.
        validation : (texts, labels), optional
            Replaces the folds: settings are chosen on these rows, the model is trained on the others.
        groups : sequence of str or int, optional
            Of each text the document, the author, the patient: rows of one group are always held out together, so that
            settings, probabilities and `out_of_fold` are those for groups that the model has never met.

        Raises
        ------
        DataError, ArgumentError, RecipeError, BackboneError, StoreError
            Each a sentence that says what was wrong, where, what is allowed, what to do.
        """
        started = time.perf_counter()
        recipe = self._check_arguments()
        seed, metric = _seed(self.random_state), cast(Metric, self.metric)
        train = as_labelled(texts, labels, sample_weight, None, groups)
        both, folds = with_validation(train, validation, seed)
        weights = both.weights * class_factors(self.class_weight, both.targets, both.weights, folds)
        problem = Problem({}, both.texts, both.targets, weights, folds, metric, seed)
        sources, store = self._open_for(recipe)
        done = fitting.fit(recipe, problem, sources, store, paper=self.paper, sparsity=self._sparsity())
        outcome, window = done.outcome, done.window
        if window:
            warn_lost(window)
        self._keep(outcome.model, both, sources)
        self._calibrate(outcome.held_out, both, weights, folds)
        self.summary_ = {
            "recipe": recipe.name,
            "paper": self.paper,
            "rows": len(train.texts),
            "seconds": {
                "reading": done.reading_seconds,
                "training": time.perf_counter() - started - done.reading_seconds,
            },
            "tokens": int(window.tokens.sum()) if window else 0,
            **token_loss(window),
            "out_of_fold": self._out_of_fold(outcome.held_out, both, folds),
            "learner": outcome.summary,
            "versions": _versions(),
        }
        return self

    def _check_arguments(self) -> Recipe:
        recipe = find(self.recipe).reading(self.sites, self.poolings)
        choose("metric", self.metric, METRICS)
        self._sparsity().check(recipe, len(backbone_names(self.backbones)))
        if self.paper and not recipe.has_paper_setting:
            raise RecipeError(f"The recipe {recipe.name!r} has no paper setting; leave out paper=True.")
        check_class_weight(self.class_weight)
        if unused := recipe.unused(self.get_params(deep=False)):
            warn(f"The recipe {recipe.name!r} has no use for {' and '.join(unused)}.", "unused_options", len(unused))
        return recipe

    def _sparsity(self) -> Sparsity:
        return Sparsity(self.sample_rows, self.eta, self.layers, self.exit_loss)

    def _open_for(self, recipe: Recipe) -> tuple[dict[int, "Source"], "Store | None"]:
        """The backbones that a recipe reads, and where their activations are kept."""
        if not recipe.reads:
            return {}, None
        check_bounds(self.max_tokens, len(backbone_names(self.backbones)))
        from sonde.read.sources import open_store

        names = needed(recipe, backbone_names(self.backbones))
        return self._open(names, self.max_tokens, self.long_text), open_store(self.cache)

    def _open(self, names: Mapping[int, str], max_tokens: Any, long_text: str) -> dict[int, "Source"]:
        from sonde.read.sources import open_sources

        return open_sources(names, max_tokens=max_tokens, long_text=long_text, dtype=self.dtype, device=self.device)

    def _keep(self, model: Fitted, both: Labelled, sources: Mapping[int, "Source"]) -> None:
        self.model_ = model
        self.classes_ = both.targets.classes
        self.multilabel_ = both.targets.multilabel
        self.matrix_labels_ = both.targets.matrix
        needed = {int(name.split("/")[0]) for name in model.needs}
        self.backbones_ = {index: about(source) for index, source in sources.items() if index in needed}
        self.label_names_: dict[str, str] = {}
        self.train_keys_ = np.unique(text_keys(both.texts))

    def _calibrate(
        self,
        held_out: Float[np.ndarray, "row class"],
        both: Labelled,
        weights: Float[np.ndarray, " row"],
        folds: Folds,
    ) -> None:
        """Temperature and thresholds on the choosing rows; the conformal rows choose nothing, each text counts once."""
        finite = np.isfinite(held_out).all(axis=1)
        choosing = folds.choosing & finite
        logits, targets = held_out[choosing], both.targets.take(choosing)
        self.temperature_ = calibration.fit_temperature(logits, targets, weights[choosing])
        self.thresholds_ = None
        if self.multilabel_:
            probabilities = calibration.to_probabilities(logits / self.temperature_, True)
            self.thresholds_ = calibration.fit_thresholds(probabilities, targets, weights[choosing])
        calibrating = np.flatnonzero(folds.conformal & finite & (both.weights > 0))
        calibrating = calibrating[first_rows([both.texts[row] for row in calibrating])]  # a copy is no further draw
        probabilities = calibration.to_probabilities(held_out[calibrating] / self.temperature_, self.multilabel_)
        targets = both.targets.take(calibrating)
        self.conformal_scores_ = conformal.conformal_scores(probabilities, targets)
        self.held_answers_ = None if self.multilabel_ else abstention.answers_of(probabilities, targets)

    def _out_of_fold(
        self, held_out: Float[np.ndarray, "row class"], both: Labelled, folds: Folds
    ) -> dict[str, float | int | None]:
        rows = np.isfinite(held_out).all(axis=1) & (folds.held >= 0)
        if not rows.any():
            return {"rows": 0, "accuracy": None, "macro_f1": None, "log_loss": None}
        probabilities = calibration.to_probabilities(held_out[rows] / self.temperature_, self.multilabel_)
        decided = calibration.decide(probabilities, self.multilabel_, self.thresholds_)
        truth = both.targets.indicator[rows]
        return {
            "rows": int(rows.sum()),
            "accuracy": metrics.accuracy(truth, decided, both.weights[rows]),
            "macro_f1": metrics.macro_f1(truth, decided, both.weights[rows]),
            "log_loss": metrics.log_loss(truth, probabilities, multilabel=self.multilabel_, weights=both.weights[rows]),
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

    def predict_set(self, texts: Any, alpha: float = 0.05, allow_empty: bool = False) -> list[list[Any]]:
        """Label sets that hold the true label with probability 1 - alpha (split conformal prediction).

        Of texts whose class was held out: classes with fewer texts than folds (warning rare_classes) were not.

        Multi-label: sets that miss at most a share alpha of a text's true labels in expectation (conformal risk
        control). Never empty unless `allow_empty`: an empty set says that no label is likely enough.

        Raises
        ------
        ArgumentError
            If alpha is not between 0 and 1.
        """
        check_is_fitted(self, "classes_")
        conformal.conformal_threshold(self.conformal_scores_, alpha)  # alpha is judged before the texts are read
        return self.sets_of(self.predict_proba(texts), alpha, allow_empty)

    def sets_of(
        self, probabilities: Float[np.ndarray, "row class"], alpha: float = 0.05, allow_empty: bool = False
    ) -> list[list[Any]]:
        """What `predict_set` makes of the probabilities that `predict_proba` gave."""
        sets = conformal.predict_sets(probabilities, self.conformal_scores_, alpha, allow_empty)
        return [self.classes_[row].tolist() for row in sets]

    def predict_or_abstain(
        self, texts: Any, *, threshold: float | None = None, target_error: float | None = None
    ) -> np.ndarray:
        """The label of each text whose probability is at least a threshold, None where the model abstains.

        Parameters
        ----------
        texts : sequence of str
        threshold, target_error : float
            One of the two: the threshold itself, or the error rate that answers may have, on texts whose class was held
            out; `answer_threshold` chooses the threshold then.

        Returns
        -------
        ndarray (row,) of objects
        """
        least = self.answer_threshold(threshold=threshold, target_error=target_error)
        probabilities = self.predict_proba(texts)
        return abstention.withhold(self.name_labels(self.decide(probabilities)), probabilities.max(axis=1), least)

    def answer_threshold(self, *, threshold: float | None = None, target_error: float | None = None) -> float:
        """The least probability at which `predict_or_abstain` answers; infinity if it cannot keep `target_error`.

        Raises
        ------
        ArgumentError
            If not exactly one is given, it is out of range, or the model is multi-label.
        """
        check_is_fitted(self, "classes_")
        if self.held_answers_ is None:
            raise ArgumentError(
                "Abstention withholds the one label of a text, but this model is multi-label: use predict_proba or "
                "predict_set."
            )
        if (threshold is None) == (target_error is None):
            raise ArgumentError(
                "Give either a threshold (--abstain-below) or a target error (--target-error), and not both."
            )
        if target_error is None:
            return abstention.check_threshold(cast(float, threshold))
        return abstention.error_threshold(self.held_answers_, target_error)

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """The metric that the classifier was asked to aim at, on these rows: accuracy, or macro F1.

        Labels are taken as `sonde.evaluation.evaluate` takes them, with the same errors and warnings.
        """
        check_is_fitted(self, "classes_")
        return score(self, texts, labels, sample_weight, lambda rows: self.decide(self.predict_proba(rows)))

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

    def stream(self, texts: list[str]) -> Iterator[Scores]:
        """Windows of texts that `as_texts` has checked -> their logits over temperature, in windows."""
        sources, store = self.sources(), None
        if sources:
            from sonde.read.sources import open_store

            store = open_store(self.cache)
        for part in scoring.score(self.model_, texts, sources, store):
            yield replace(part, logits=(part.logits / np.float32(self.temperature_)).astype(np.float32))

    def _scaled_logits(self, texts: Any) -> Float32[np.ndarray, "row class"]:
        check_is_fitted(self, "classes_")
        parts = list(self.stream(as_texts(texts)))
        warn_truncated(sum(int(part.truncated.sum()) for part in parts))
        empty = np.empty((0, len(self.classes_)), dtype=np.float32)
        return np.concatenate([empty, *(part.logits for part in parts)])  # row class

    def _fitted_sources(self) -> dict[int, "Source"]:
        """The backbones that the model was trained on, compared with what it remembers of them."""
        known = self.backbones_  # texts are seen as in training, whatever set_params said since
        bounds = [known[index]["max_tokens"] if index in known else None for index in range(max(known) + 1)]
        long_text = next(iter(known.values()))["long_text"]
        try:
            sources = self._open({index: one["id"] for index, one in known.items()}, bounds, long_text)
        except BackboneError as error:
            names = ", ".join(one["id"] for one in known.values())
            raise BackboneError(
                f"{error} The model was trained on {names}: say with backbones= (--backbone) where that lies now."
            ) from error
        for index, source in sources.items():
            check_same(self.backbones_[index], source)
        return sources

    def sources(self) -> dict[int, "Source"]:
        """The backbones that the model needs, by their index in block names; none if it reads the text alone."""
        check_is_fitted(self, "classes_")
        return self._fitted_sources() if self.backbones_ else {}

    # --------------------------------------------------------------- save

    def save(self, folder: Path | str) -> None:
        """Write the model to a folder: `sonde.json`, `arrays.safetensors`, and a card for its readers, `README.md`.

        Backbones are referenced, not copied.

        Raises
        ------
        ModelError
            If the folder holds something else, or cannot be written; what was there stays.
        """
        check_is_fitted(self, "classes_")
        saving.save(folder, self.manifest(), self.arrays())

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "A text classifier trained with sonde",
    ) -> str:
        """Upload the model to the model hub, from where `sonde.load(name)` reads it.

        Backbones are referenced, not uploaded. A card that somebody has edited on the hub stays as it is.

        Parameters
        ----------
        name : str
            Hub id, OWNER/MODEL; the repository is made if absent.
        private : bool, optional
            Whether a repository that is made is readable by its owner alone.
        token : str, optional
            By default that of `hf auth login`, or of the environment variable HF_TOKEN.
        message : str
            Of the commit.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ModelError
            If the hub refuses or is not reached.

        Warns
        -----
        SondeWarning
            push_to_hub: a backbone is a local folder, which nobody else has.
        """
        check_is_fitted(self, "classes_")
        local = [about["id"] for about in self.backbones_.values() if Path(about["id"]).expanduser().is_dir()]
        if local:
            warn(
                f"The backbone {local[0]!r} is a folder of this machine: who loads the model elsewhere must have it "
                "too, and say where with backbones=[...]. Its name stands in the uploaded files.",
                "push_to_hub",
                len(local),
            )
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return hub.push(Path(folder) / "model", name, private=private, token=token, message=message)

    def manifest(self) -> dict[str, Any]:
        """What `save` writes beside the arrays, JSON values."""
        return {
            "recipe": self.summary_["recipe"],
            "settings": fit_settings.to_record(self.get_params(deep=False)),
            "backbones": {str(index): known for index, known in self.backbones_.items()},
            "classes": self.classes_.tolist(),
            "multilabel": self.multilabel_,
            "matrix_labels": self.matrix_labels_,
            "label_names": self.label_names_,
            "temperature": self.temperature_,
            "summary": self.summary_,
            "versions": _versions(),
            "learner": learning.describe(self.model_).settings,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """What `save` writes as tensors."""
        arrays = {f"learner/{name}": array for name, array in learning.describe(self.model_).arrays.items()}
        arrays |= {"conformal_scores": self.conformal_scores_, "train_keys": self.train_keys_}
        optional = {"thresholds": self.thresholds_, "held_answers": self.held_answers_}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    def check_widths(self) -> None:
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


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        if not 0 <= random_state < 2**32:
            raise ArgumentError(f"random_state (--seed) is {random_state}; it must lie between 0 and 2**32 - 1.")
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _versions() -> dict[str, str]:
    names = ("sonde", "torch", "transformers", "scikit-learn", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
