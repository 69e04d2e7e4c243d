"""Stepping: the weights of a model follow the gradient of its loss, epoch by epoch.

Schedule   how fast and how long
Task       what is trained on, and what decides when to stop
Position   where a run stands
seeded     the generator of torch, for a while
train      runs a task to its end, from wherever its folder says that it stands

AdamW, a learning rate that rises for a tenth of the steps and then falls linearly, gradients cut to length 1: the
recipe of Devlin et al. 2019 (BERT), with the longer training that Mosbach et al. 2021 found to make it stable, and
stopped early. Batches and dropout are pure functions of the seed and the position, so that a run that is taken up
again ends at the weights of one that never stopped (on a GPU, as nearly as two runs there ever do).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sonde.baselines.resuming import State, States
from sonde.baselines.tunable import Tunable
from sonde.errors import ModelError, ReadingError
from sonde.learn import metrics
from sonde.learn.calibration import decide, to_probabilities
from sonde.learn.targets import Targets
from sonde.learn.training import cross_entropy
from sonde.progress import Advance, track
from sonde.read.view import Pieces

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises (Mosbach et al. 2021, section 6)."""
WEIGHT_DECAY = 0.01
"""On matrices (Devlin et al. 2019, A.2)."""
MAX_LENGTH = 1.0
"""Of the gradient (Devlin et al. 2019, released code)."""
UNWATCHED_EPOCHS = 3
"""Where no rows can be held out: the middle of what Devlin et al. 2019, A.3 recommend."""
LEAST_STEPS = 100
"""Of an epoch: few rows are gone through several times before they are judged. What small sets lack is steps, not
epochs (Mosbach et al. 2021, section 6)."""
SORTED_BATCHES = 16
"""Texts are sorted by length within so many batches: enough to pad little, few enough to keep the order random."""
SAVE_SECONDS = 60.0
"""Work that a kill may cost; a state of a small encoder takes a second to write."""
SAVE_SHARE = 20
"""Where writing takes longer, it happens less often: at most one part in so many of the time."""


@dataclass(frozen=True)
class Schedule:
    """How fast and how long."""

    learning_rate: float
    """At its highest."""
    epochs: int
    """At most; the learning rate would reach 0 at their end."""
    patience: int
    """Epochs that are not better than the best so far, after which training stops."""
    batch_rows: int
    """Rows of a step."""


@dataclass(frozen=True)
class Task:
    """What is trained on, and what decides when to stop."""

    pieces: Pieces
    """All texts, one piece each."""
    targets: Targets
    """Of all texts."""
    weights: Float[np.ndarray, " row"]
    """Of all texts, not negative."""
    trained: Int64[np.ndarray, " trained"]
    """Rows that train."""
    watched: Int64[np.ndarray, " watched"]
    """Rows that decide; none: the run has `UNWATCHED_EPOCHS` and keeps its last weights."""
    metric: str
    """`accuracy` or `macro_f1`: what decides; of equals, the loss."""
    seed: int
    """Of batches and dropout."""

    def batches(self, epoch: int, rows: int) -> list[np.ndarray]:
        """The batches of an epoch: every trained row once, or several times where they are few."""
        random = np.random.default_rng([self.seed, epoch])
        found: list[np.ndarray] = []
        while len(found) < LEAST_STEPS:
            found += self._pass(random, rows)
        return found

    def _pass(self, random: np.random.Generator, rows: int) -> list[np.ndarray]:
        """Every trained row once, beside others of like length, in random order."""
        lengths = np.array([len(ids) for ids in self.pieces.ids])
        order = random.permutation(self.trained)
        found = []
        for start in range(0, len(order), rows * SORTED_BATCHES):
            part = order[start : start + rows * SORTED_BATCHES]
            part = part[np.argsort(-lengths[part], kind="stable")]
            found += [part[first : first + rows] for first in range(0, len(part), rows)]
        return [found[place] for place in random.permutation(len(found))]

    @property
    def watched_pieces(self) -> Pieces:
        """The texts of the watched rows."""
        pieces, rows = self.pieces, self.watched
        ids = [pieces.ids[row] for row in rows]
        return Pieces(ids, np.arange(len(ids)), pieces.prefix, pieces.suffix, pieces.tokens[rows], pieces.lost[rows])

    def judge(self, logits: Float[np.ndarray, "watched class"]) -> dict[str, float]:
        """Loss and metric of the watched rows."""
        targets, weights = self.targets.take(self.watched), self.weights[self.watched]
        probabilities = to_probabilities(logits, targets.multilabel)
        measure = metrics.macro_f1 if self.metric == "macro_f1" else metrics.accuracy
        return {
            "loss": metrics.log_loss(targets.indicator, probabilities, multilabel=targets.multilabel, weights=weights),
            self.metric: measure(targets.indicator, decide(probabilities, targets.multilabel), weights),
        }


@dataclass
class Position:
    """Where a run stands."""

    epoch: int = 0
    """Epochs that are done."""
    batch: int = 0
    """Batches of the present one that are done."""
    step: int = 0
    """Batches that are done in all."""
    loss: float = 0.0
    """Of the rows of the present epoch so far, summed."""
    best_epoch: int = 0
    """The epoch whose weights are kept; 0 = none yet."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Mean training loss, held-out loss and metric of each epoch that is done."""
    seconds: float = 0.0
    """Of all attempts, as far as their work is kept."""


def train(tunable: Tunable, task: Task, schedule: Schedule, states: States | None = None) -> Position:
    """Train the parameters of a model that ask for a gradient; they are the best ones then, in evaluation mode.

    Parameters
    ----------
    tunable : Tunable
    task : Task
    schedule : Schedule
    states : States, optional
        Where the run is written at least once a minute and after each epoch, and taken up if it stands there.

    Returns
    -------
    Position
        At the end.

    Raises
    ------
    ReadingError
        If the loss is no number any more.
    ModelError
        If what stands in the folder does not fit the model.
    """
    with seeded(task.seed, tunable.device):
        run = _Run(tunable, task, schedule, states)
        with track("fine-tuning", run.steps, "steps") as advance:
            advance(run.position.step)
            while not run.over:
                run.epoch(advance)
    run.take_best()
    tunable.model.eval()
    return run.position


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators at a seed; afterwards they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Run:
    """One run of a task."""

    def __init__(self, tunable: Tunable, task: Task, schedule: Schedule, states: States | None) -> None:
        self.tunable, self.task, self.schedule, self.states = tunable, task, schedule, states
        self.trained = tunable.trained
        matrices = [one for one in self.trained.values() if one.ndim > 1]
        vectors = [one for one in self.trained.values() if one.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
        self.weights = torch.from_numpy(task.weights / task.weights[task.trained].mean()).float()  # row
        self.epochs = schedule.epochs if len(task.watched) else min(schedule.epochs, UNWATCHED_EPOCHS)
        self.steps = self.epochs * len(task.batches(0, schedule.batch_rows))
        self.position, self.best = Position(), dict[str, Tensor]()
        self.saved, self.saving = time.perf_counter(), 0.0
        self._restore()
        self.began = time.perf_counter() - self.position.seconds

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        stale = self.position.epoch - self.position.best_epoch
        return self.position.epoch >= self.epochs or (len(self.task.watched) > 0 and stale >= self.schedule.patience)

    def epoch(self, advance: Advance) -> None:
        """What is left of an epoch, and its judgement."""
        position = self.position
        batches = self.task.batches(position.epoch, self.schedule.batch_rows)
        self.tunable.model.train()
        for rows in batches[position.batch :]:
            position.loss += self._step(rows)
            position.batch, position.step = position.batch + 1, position.step + 1
            advance(1)
            if time.perf_counter() - self.saved > max(SAVE_SECONDS, SAVE_SHARE * self.saving):
                self._save()
        position.history.append({"train_loss": position.loss / sum(map(len, batches))})
        position.epoch, position.batch, position.loss = position.epoch + 1, 0, 0.0
        if len(self.task.watched):
            self._judge()
        self._save()

    def _step(self, rows: np.ndarray) -> float:
        """One step; the weighted loss of the rows, summed."""
        indicator = torch.from_numpy(self.task.targets.indicator[rows]).to(self.tunable.device)  # row class
        weights = self.weights[torch.from_numpy(rows)].to(self.tunable.device)  # row
        losses = cross_entropy(self.tunable.logits(self.task.pieces, rows), indicator, self.task.targets.multilabel)
        loss = (losses * weights).mean()
        summed = float(loss.detach()) * len(rows)
        if not math.isfinite(summed):
            raise ReadingError(
                f"The loss of step {self.position.step + 1} of the fine-tuning is no number. Lower learning_rate "
                f"({self.schedule.learning_rate:g}), or use dtype='float32'."
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.trained.values(), MAX_LENGTH)
        self.optimiser.step()
        return summed

    def _rate(self) -> float:
        warm = max(1, round(WARM_UP * self.steps))
        rising, falling = (self.position.step + 1) / warm, (self.steps - self.position.step) / max(1, self.steps - warm)
        return self.schedule.learning_rate * min(rising, falling, 1.0)

    def _judge(self) -> None:
        position = self.position
        found = self.task.judge(self.tunable.predict(self.task.watched_pieces))
        position.history[-1] |= found
        best = position.history[position.best_epoch - 1] if position.best_epoch else None
        if best is None or self._rank(found) > self._rank(best):
            position.best_epoch = position.epoch
            self.best = {name: one.detach().to("cpu", copy=True) for name, one in self.trained.items()}
            if self.states is not None:
                self.states.save_best(position.epoch, self.best)

    def _rank(self, judged: dict[str, float]) -> tuple[float, float]:
        return judged[self.task.metric], -judged["loss"]

    def take_best(self) -> None:
        """Give the model the weights of the best epoch; without watched rows it keeps its last."""
        if not self.position.best_epoch:
            return
        if not self.best:
            assert self.states is not None, "best weights are in memory unless the run was taken up"
            self.best = self.states.best(self.position.best_epoch)
        self._take(self.best)

    # -------------------------------------------------------------- folder

    def _save(self) -> None:
        started = time.perf_counter()
        self.position.seconds = started - self.began
        if self.states is None:
            return
        self.states.save(State(asdict(self.position), dict(self._tensors())))
        self.states.forget(but=self.position.best_epoch)
        self.saved = time.perf_counter()
        self.saving = self.saved - started

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that the next step depends on."""
        for name, parameter in self.trained.items():
            yield f"weight/{name}", parameter
            for key, value in self.optimiser.state[parameter].items():
                yield f"optimiser/{key}/{name}", value
        yield "random/cpu", torch.get_rng_state()
        if self.tunable.device.type == "cuda":
            yield "random/cuda", torch.cuda.get_rng_state(self.tunable.device)

    def _restore(self) -> None:
        state = None if self.states is None else self.states.load()
        if state is None:
            return
        try:
            self.position = Position(**state.position)
            self._take({name: state.tensors[f"weight/{name}"] for name in self.trained})
            for name, parameter in self.trained.items():
                if f"optimiser/step/{name}" in state.tensors:  # else it never had a gradient
                    self.optimiser.state[parameter] = self._memory(name, parameter, state.tensors)
            torch.set_rng_state(state.tensors["random/cpu"])
            if self.tunable.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors["random/cuda"], self.tunable.device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise self._unfit(error) from error

    @staticmethod
    def _memory(name: str, parameter: Tensor, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What AdamW remembers of a parameter."""
        keys = ("step", "exp_avg", "exp_avg_sq")
        return {key: tensors[f"optimiser/{key}/{name}"].to(parameter.device) for key in keys}

    def _take(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                if weights[name].shape != parameter.shape:
                    raise self._unfit(f"{name} has another shape")
                parameter.copy_(weights[name])

    def _unfit(self, why: object) -> ModelError:
        assert self.states is not None
        return ModelError(
            f"resume: the state in {self.states.folder} does not fit the model ({why}). Delete the folder, and train "
            "from the start."
        )
