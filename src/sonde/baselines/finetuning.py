"""Fine-tuning: the weights of a backbone change, all of them or low-rank adapters, under the head of transformers.

FineTuning   texts and labels in, labels and probabilities out; `export` makes a backbone of the result

Model classes and heads are transformers', adapters and their merging peft's. The loop is our own (`stepping`), not
transformers' Trainer, because Trainer seeds the generators of the whole process, writes a checkpoint file by file under
its final name and on resuming takes the newest name, so that a kill while writing ends all further attempts, and
pickles its arguments beside it. What would have been left of it after sample weights, batches by length, our folds and
our progress is shorter than what those overrides take.
"""

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float32
from sklearn.utils.validation import check_is_fitted

from sonde import __version__
from sonde.baselines.adapting import Lora, adapt, merge, need_peft
from sonde.baselines.classifying import Classifying
from sonde.baselines.prompting import check_whole
from sonde.baselines.resuming import States
from sonde.baselines.stepping import Position, Schedule, Task, seeded, train
from sonde.baselines.tunable import Tunable, free_folder, load_tunable, parameters, write_checkpoint
from sonde.errors import ArgumentError, DataError, ReadingError, choose
from sonde.inputs import as_texts
from sonde.learn.calibration import fit_temperature, fit_thresholds, to_probabilities
from sonde.learn.targets import Targets
from sonde.plan import BUNDLE, warn_truncated
from sonde.precision import choose_device, choose_dtype
from sonde.read.memory import is_out_of_memory
from sonde.rows import Labelled, as_labelled, check_class_weight, class_factors, with_validation

METHODS = ("full", "lora")
RATES = {"full": 5e-5, "lora": 5e-4}
"""Devlin et al. 2019, A.3, the highest of theirs; Hu et al. 2021, table 9, RoBERTa-base on SST-2."""
FOLDS = 10
"""One part in ten decides when to stop: those rows do not train."""
LONG_TEXT = ("cut", "head_tail")


@contextmanager
def _enough_memory(schedule: Schedule, tunable: Tunable) -> Iterator[None]:
    """What torch says of lacking memory becomes a sentence with the settings that need less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ReadingError(
            f"Memory does not suffice to train with {schedule.batch_rows} rows of up to {tunable.view.max_tokens} "
            f"tokens a step ({next(iter(str(error).splitlines()), 'out of memory')}). Give fewer batch_rows or "
            "max_tokens, or method='lora', which keeps the state of few weights."
        ) from error


class FineTuning(Classifying):
    """Fine-tuning of a transformers model, as a classifier of texts.

    Parameters
    ----------
    backbone : str
        Hub id or folder of an encoder, a decoder, or an encoder-decoder that transformers has a head for.
    method : {"full", "lora"}
        Train all weights, or low-rank adapters and the head; `lora` needs the extra `finetune`.
    learning_rate : float, optional
        By default 5e-5 (full) or 5e-4 (lora).
    epochs : int
        At most. An epoch is a pass over the rows, or several where they are few: at least a hundred steps.
    patience : int
        Epochs without a better score on held-out rows, after which training stops.
    batch_rows : int
        Rows of a step.
    rank, alpha : int, float
        Of the adapters.
    targets : tuple of str, optional
        Names of the linear maps that get an adapter, such as ("query", "value"); by default all of the backbone.
    max_tokens : int, optional
        As in `TextClassifier`.
    long_text : {"cut", "head_tail"}
        What is read of texts that are longer.
    class_weight, metric, dtype, device
        As in `TextClassifier`. With bfloat16 products are computed in it (mixed precision) while the weights that
        change stay float32; weights that LoRA freezes are stored in it.
    resume : path, optional
        A folder for the state of the training. The same call goes on from there after a kill.
    random_state : int

    Attributes
    ----------
    classes_ : ndarray (class,)
        Sorted labels, of the type they came in.
    summary_ : dict
        What was chosen and measured during training, JSON-able.
    """

    def __init__(
        self,
        backbone: str = BUNDLE,
        method: str = "full",
        *,
        learning_rate: float | None = None,
        epochs: int = 5,
        patience: int = 2,
        batch_rows: int = 32,
        rank: int = 8,
        alpha: float = 16.0,
        targets: tuple[str, ...] | None = None,
        max_tokens: int | None = None,
        long_text: str = "cut",
        class_weight: str | Mapping[Any, float] | None = None,
        metric: str = "accuracy",
        dtype: str = "auto",
        device: str = "auto",
        resume: Path | str | None = None,
        random_state: int = 0,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.patience = patience
        self.batch_rows = batch_rows
        self.rank = rank
        self.alpha = alpha
        self.targets = targets
        self.max_tokens = max_tokens
        self.long_text = long_text
        self.class_weight = class_weight
        self.metric = metric
        self.dtype = dtype
        self.device = device
        self.resume = resume
        self.random_state = random_state

    # ---------------------------------------------------------------- fit

    def fit(
        self, texts: Any, labels: Any, sample_weight: Any = None, validation: Any = None, groups: Any = None
    ) -> Self:
        """Train, and keep the weights of the best epoch.

        Parameters
        ----------
        texts, labels, sample_weight, groups : as in `TextClassifier.fit`
        validation : (texts, labels), optional
            Rows that decide when to stop, instead of a tenth of the training rows.

        Raises
        ------
        DataError, ArgumentError, BackboneError, ModelError, MissingExtraError, ReadingError
            Each a sentence that says what was wrong, where, what is allowed, what to do.
        """
        started = time.perf_counter()
        schedule = self._check_arguments()
        train_rows = as_labelled(texts, labels, sample_weight, None, groups)
        both, folds = with_validation(train_rows, validation, self.random_state, FOLDS)
        weights = both.weights * class_factors(self.class_weight, both.targets, both.weights, folds)
        watched = np.flatnonzero((folds.held == 0) & (weights > 0))
        trained = np.flatnonzero(folds.trainable & (folds.held != 0) & (weights > 0))
        if not len(trained):
            raise DataError("All rows that would train have a weight of 0. Give more rows a weight.")
        tunable, adapted = self._load(both.targets)
        pieces = tunable.encode(both.texts)
        warn_truncated(int((pieces.lost > 0).sum()))
        task = Task(pieces, both.targets, weights, trained, watched, self.metric, self.random_state)
        states = None if self.resume is None else States(self.resume, self._identity(schedule, both, task, tunable))
        with _enough_memory(schedule, tunable):
            position = train(tunable, task, schedule, states)
        self.tunable_, self.adapted_ = tunable, adapted
        self._know(both.targets)
        self._calibrate(task)
        self.summary_ = {
            "method": self.method,
            "backbone": self.backbone,
            "rows": len(train_rows.texts),
            "held_out_rows": len(watched),
            "parameters": parameters(tunable.model),
            "learning_rate": schedule.learning_rate,
            "precision": str(tunable.precision).removeprefix("torch."),
            **_story(position),
            "temperature": self.temperature_,
            "truncated_rows": int((pieces.lost > 0).sum()),
            "seconds": time.perf_counter() - started,
        }
        return self

    def _check_arguments(self) -> Schedule:
        """Everything that can be judged before anything is loaded."""
        choose("method", self.method, METHODS)
        choose("metric", self.metric, ("accuracy", "macro_f1"))
        choose("long_text", self.long_text, LONG_TEXT)
        check_class_weight(self.class_weight)
        for name in ("epochs", "patience", "batch_rows", "rank"):
            check_whole(name, getattr(self, name), 1)
        check_whole("random_state", self.random_state, 0)
        if not isinstance(self.backbone, str):
            raise ArgumentError(f"backbone is {self.backbone!r:.60}; give one hub id or folder, as a string.")
        rate = RATES[self.method] if self.learning_rate is None else self.learning_rate
        for name, number in (("learning_rate", rate), ("alpha", self.alpha)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
                raise ArgumentError(f"{name} is {number!r}; it must be a number above 0.")
        if self.targets is not None and not (
            isinstance(self.targets, tuple | list) and self.targets and all(type(x) is str for x in self.targets)
        ):
            raise ArgumentError(f"targets is {self.targets!r:.60}; give a tuple of names, such as ('query', 'value').")
        if self.targets is not None and self.method != "lora":
            raise ArgumentError("targets are places of adapters; method='full' trains every weight. Leave them out.")
        if self.method == "lora":
            need_peft()
        return Schedule(float(rate), int(self.epochs), int(self.patience), int(self.batch_rows))

    def _load(self, targets: Targets) -> tuple[Tunable, Any]:
        """The model as it is before training, and the handle of its adapters, if any."""
        where = choose_device(self.device)
        products = choose_dtype(self.dtype, where)
        lora = self.method == "lora"
        with seeded(self.random_state, where):
            tunable = load_tunable(
                self.backbone,
                targets.classes.tolist(),
                multilabel=targets.multilabel,
                max_tokens=self.max_tokens,
                long_text=self.long_text,
                device=where,
                precision=products,
                stored=products if lora else torch.float32,
            )
            adapters = Lora(int(self.rank), float(self.alpha), _tuple(self.targets))
            return tunable, adapt(tunable, adapters) if lora else None

    def _identity(self, schedule: Schedule, both: Labelled, task: Task, tunable: Tunable) -> dict[str, Any]:
        """What makes a run this one and no other, for its folder."""
        digest = hashlib.sha256()
        for text in both.texts:
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        for array in (both.targets.indicator, task.weights, task.trained, task.watched):
            digest.update(np.ascontiguousarray(array).tobytes())
        lora: dict[str, Any] = {}
        if self.method == "lora":
            lora = {"rank": int(self.rank), "alpha": float(self.alpha), "targets": self.targets}
        view = {"max_tokens": tunable.view.max_tokens, "long_text": self.long_text}
        return {
            "method": self.method, **asdict(schedule), **lora, **view, "metric": self.metric,
            "multilabel": both.targets.multilabel, "matrix": both.targets.matrix, "sonde": __version__,
            "random_state": int(self.random_state), "precision": str(tunable.precision),
            "device": tunable.device.type, "classes": [str(label) for label in both.targets.classes.tolist()],
            "backbone": tunable.fingerprint, "rows": digest.hexdigest(),
        }  # fmt: skip

    def _calibrate(self, task: Task) -> None:
        """Temperature and thresholds on the rows that decided when to stop."""
        self.temperature_, self.thresholds_ = 1.0, None
        if not len(task.watched):
            return
        logits, targets, weights = (
            self.tunable_.predict(task.watched_pieces),
            task.targets.take(task.watched),
            task.weights[task.watched],
        )
        self.temperature_ = fit_temperature(logits, targets, weights)
        if self.multilabel_:
            self.thresholds_ = fit_thresholds(to_probabilities(logits / self.temperature_, True), targets, weights)

    # ------------------------------------------------------------ predict

    def predict_proba(self, texts: Any) -> Float[np.ndarray, "row class"]:
        """Calibrated probabilities, columns in the order of `classes_`; rows sum to 1 unless multi-label."""
        return self._probabilities(self._checked(texts))

    def decision_function(self, texts: Any) -> Float[np.ndarray, "..."]:
        """Logits over temperature, (row, class); (row,) of log-odds for two classes, positive for `classes_[1]`."""
        logits = self._logits(self._checked(texts))
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else logits

    def _checked(self, texts: Any) -> list[str]:
        check_is_fitted(self, "classes_")
        return as_texts(texts)

    def _probabilities(self, texts: list[str]) -> Float[np.ndarray, "row class"]:
        return to_probabilities(self._logits(texts), self.multilabel_)

    def _logits(self, texts: list[str]) -> Float32[np.ndarray, "row class"]:
        pieces = self.tunable_.encode(texts)
        warn_truncated(int((pieces.lost > 0).sum()))
        return self.tunable_.predict(pieces) / np.float32(self.temperature_)

    # ------------------------------------------------------------- export

    def export(self, folder: Path | str) -> Path:
        """Write the fine-tuned checkpoint, adapters merged into the weights: a backbone like any other.

        The folder holds what `save_pretrained` writes, the classification head included, with the files of the
        tokenizer. `TextClassifier(recipe, (folder,))` reads it from the inside.

        Parameters
        ----------
        folder : path
            New or empty.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArgumentError
            If the folder holds something, or cannot be written.
        """
        check_is_fitted(self, "classes_")
        free_folder(folder)
        return write_checkpoint(self._merged() if self.adapted_ is not None else self.tunable_, folder)

    def _merged(self) -> Tunable:
        """A copy in float32 on the CPU: what is small beside a weight is lost in a coarser type."""
        adapted = copy.deepcopy(self.adapted_).cpu().float()
        return replace(self.tunable_, model=merge(adapted), device=torch.device("cpu"), precision=torch.float32)


def _story(position: Position) -> dict[str, Any]:
    return {
        "epochs": position.epoch,
        "best_epoch": position.best_epoch or position.epoch,
        "steps": position.step,
        "training_seconds": position.seconds,
        "history": position.history,
    }


def _tuple(targets: Any) -> tuple[str, ...] | None:
    return None if targets is None else tuple(targets)
